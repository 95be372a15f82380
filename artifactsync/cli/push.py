"""``push``: mirrors files and folders under a run.

Owns: its arguments, and that nothing is sent while one of them is wrong. Does not own: keys and the upload (``run``).
"""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from artifactsync.cli.progress import byte_bar
from artifactsync.cli.run_names import complete_run_names
from artifactsync.cli.session import global_options, pass_session
from artifactsync.cli.terminal import printable
from artifactsync.cli.tree import show_tree
from artifactsync.cli.units import counted, human_bytes, human_duration
from artifactsync.errors import (
    AccessError,
    ConfigurationError,
    ObjectNotFoundError,
    UnsafeKeyError,
    UploadError,
    WaitTimeoutError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from artifactsync.cli.progress import Bar
    from artifactsync.cli.session import Session
    from artifactsync.run import Run
    from artifactsync.transfer.upload import Upload, UploadedFile

_LOOK_S = 0.2  # how often the bar looks at an upload
_MAX_FILES = 10_000_000  # in one push: no training loop is held up by their number
_GIVE_UP_S = 5.0  # a user waits: beyond what the store itself tries again, a full remote is tried no longer


@click.command(
    "push",
    short_help="Mirror files or folders under a run.",
    epilog="""\b
Examples:
  artifactsync push my-run notes.md              becomes my-run/notes.md
  artifactsync push my-run plots/                becomes my-run/plots/...
  artifactsync push my-run loss.png --as plots/final.png
  artifactsync push my-run plots/ --dry-run
""",
)
@click.argument("run", shell_complete=complete_run_names)
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--as", "key", metavar="KEY", help="Its path below the run; only with a single PATH.")
@click.option("--dry-run", is_flag=True, help="Show what would be pushed, and send nothing.")
@global_options
@pass_session
def command(session: Session, run: str, paths: tuple[Path, ...], key: str | None, *, dry_run: bool) -> None:
    """Mirror files or folders under RUN.

    A file that was pushed before is replaced. The command ends when everything is durable on the remote.
    """
    if key is not None and len(paths) > 1:
        raise click.UsageError(f"--as names one file or folder, but there are {len(paths)} PATHs.")
    if key is not None and not key.strip("/"):
        raise click.UsageError("--as needs a name.")
    _check_paths(paths)
    began = time.monotonic()
    from artifactsync.transfer.patience import Patience

    patience = Patience(deadline_s=_GIVE_UP_S)
    with session.open_run(run, patience=patience, max_pending_files=_MAX_FILES) as opened, _local_names():
        _check_names(opened, paths)
        if dry_run:
            _show_plan(session, opened.name, [opened.plan_push(path, key) for path in paths])
            return
        with byte_bar("pushing", is_wanted=session.has_progress) as bar:
            uploads = [upload for path in paths for upload in opened.push(path, key)]
            bar.restart(len(uploads), sum(upload.size_bytes for upload in uploads))
            done = _wait(uploads, bar)
        root = opened.name
    sizes = {file.key.removeprefix(f"{root}/"): file.size_bytes for file in done}
    seconds = time.monotonic() - began
    if session.is_json:
        session.screen.json(
            {
                "run_name": root,
                "files": len(done),
                "bytes": sum(sizes.values()),
                "seconds": round(seconds, 3),
                "uploaded": [
                    {
                        "path": file.key.removeprefix(f"{root}/"),
                        "key": file.key,
                        "size": file.size_bytes,
                        "sha256": file.sha256,
                    }
                    for file in done
                ],
            }
        )
    elif not done:
        session.screen.note("nothing to push: there is no file in it")
    elif not session.screen.is_quiet:
        show_tree(session.screen, f"{root}/", sizes, sys.stdout)
        total = f"{counted(len(done), 'file')}, {human_bytes(sum(sizes.values()))}"
        session.screen.text(printable(f"durable: {total} in {human_duration(seconds)}"), "good")


def _show_plan(session: Session, run_name: str, plans: Sequence[Mapping[str, Path]]) -> None:
    sizes = {key: file.stat().st_size for plan in plans for key, file in plan.items()}
    total_bytes = sum(sizes.values())
    if session.is_json:
        session.screen.json(
            {
                "run_name": run_name,
                "files": len(sizes),
                "bytes": total_bytes,
                "would_upload": [
                    {"path": key.removeprefix(f"{run_name}/"), "key": key, "size": size} for key, size in sizes.items()
                ],
                "dry_run": True,
            }
        )
        return
    if sizes:
        show_tree(
            session.screen,
            f"{run_name}/",
            {key.removeprefix(f"{run_name}/"): size for key, size in sizes.items()},
            sys.stdout,
        )
    total = f"{counted(len(sizes), 'file')}, {human_bytes(total_bytes)}"
    session.screen.text(f"would push {total}; nothing was sent")


@contextlib.contextmanager
def _local_names() -> Iterator[None]:
    """A name that cannot be on the remote was typed, or is on this disk: to be changed here, and no bytes are damaged.

    Raises:
        ConfigurationError: there is one.
    """
    try:
        yield
    except UnsafeKeyError as error:
        raise ConfigurationError(error.message, hint=error.hint, url=error.url) from error


def _check_paths(paths: Sequence[Path]) -> None:
    """Refuse a path that is not there before anything is sent.

    Raises:
        ObjectNotFoundError: one is not.
        click.UsageError: it is a pipe, a socket or a device.
    """
    for path in paths:
        if not path.exists():
            raise ObjectNotFoundError(f"there is nothing at {path}", hint="check the path; nothing was pushed")
        if not (path.is_file() or path.is_dir()):
            raise click.UsageError(f"{path} is neither a file nor a folder.")


def _check_names(run: Run, paths: Sequence[Path]) -> None:
    """Refuse two paths that would become one name: the second would silently replace the first.

    Raises:
        click.UsageError: there are two.
    """
    first: dict[str, Path] = {}
    for path in paths:
        source = path.resolve()
        if not source.is_relative_to(run.local_dir.resolve()):  # those keep their path below the run
            other = first.setdefault(source.name, path)
            if other is not path:
                raise click.UsageError(f"{other} and {path} would both become {source.name}; push one with --as.")


def _wait(uploads: Sequence[Upload], bar: Bar) -> list[UploadedFile]:
    """Wait until all is durable; raise the first failure."""
    done: list[UploadedFile] = []
    while len(done) < len(uploads):
        try:
            done.append(uploads[len(done)].result(_LOOK_S if bar.is_shown else None))
        except WaitTimeoutError:  # noqa: PERF203 (five times a second)
            moved = (u.size_bytes if u.done() else min(u.moved_bytes, u.size_bytes) for u in uploads)
            bar.set(sum(moved))
        except UploadError as error:
            cause = error.__cause__
            if isinstance(cause, AccessError):  # what to mend decides the exit code, not that it was an upload
                raise type(cause)(error.message, hint=cause.hint, url=error.url) from error
            raise
    return done
