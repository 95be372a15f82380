"""What a restarted command needs, back in its working folder.

Owns: which files come, and what becomes of files that are there already. Does not own: fetching, verifying (``run``).

Invariants: a file of ours gets its name only when it is whole and verified. No file of the user's is ever destroyed:
what has to give way is moved to our own folder, and said. Files are as old, one beside the other, as they were where
they were written: many a script, and Lightning, resumes from the one that was written last.
"""

from __future__ import annotations

import datetime as dt
import glob
import os
import shutil
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from artifactsync.errors import DestinationError
from artifactsync.supervisor.links import LINK_SUFFIX, path_in, place_link
from artifactsync.supervisor.mirror import is_log
from artifactsync.supervisor.structure import is_whole
from artifactsync.supervisor.units import FILE_SUFFIXES
from artifactsync.transfer.hashing import hash_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from artifactsync.run import Checkpoint, Run
    from artifactsync.supervisor.tree import Tree
    from artifactsync.supervisor.units import Rules, Unit


_APART_S = 0.01  # between the files of two commits, where the clocks of their writers contradict their order


@dataclass(frozen=True, kw_only=True)
class Restored:
    """What came back."""

    checkpoint: Checkpoint | None = None
    """The newest whole one; None if the run has none."""
    files: dict[str, str] = field(default_factory=dict)
    """Path below the run → sha256, of the checkpoint's files as they are here now."""
    logs: tuple[str, ...] = ()
    """Logs that are as on the remote."""
    kept: tuple[str, ...] = ()
    """Files that are newer here, and stayed."""
    displaced: tuple[str, ...] = ()
    """Files that gave way."""
    bytes: int = 0
    """What was brought here, files that were here already included."""
    seconds: float = 0.0
    """How long it took."""


def restore(run: Run, tree: Tree, *, stage: Path, tell: Callable[[str], None]) -> Restored:
    """Bring the newest whole checkpoint and the logs to the working folder.

    Args:
        run: The run.
        tree: Where files go.
        stage: A folder of ours on the same disk: an interrupted restore goes on there.
        tell: Says what a user should know.

    Raises:
        DamagedError: every checkpoint of the run is damaged.
        DestinationError, DiskFullError: the working folder cannot be used.
    """
    began = time.monotonic()
    checkpoint = run.latest()
    contents = run.contents()
    logs = [artifact.path for artifact in contents.artifacts if is_log(artifact.path) and tree.counts(artifact.path)]
    if checkpoint is None and not logs:
        return Restored()
    wanted = [file.path for file in checkpoint.files] if checkpoint else []
    for path in (*wanted, *logs):
        _offer(tree.local(path), stage / path)
    report = run.pull(
        stage,
        checkpoint="latest" if checkpoint else "none",
        include=[glob.escape(path) for path in (*wanted, *logs)],
        on_fallback=lambda bad, error: tell(f"checkpoint {bad.name} is damaged ({error}); taking the one before it"),
    )
    if report.fallback_from is not None and report.checkpoint is not None:
        checkpoint = next(c for c in reversed(run.checkpoints()) if c.name == report.checkpoint)
        run.pull(stage, checkpoint=checkpoint.name, only="checkpoints")
        wanted = [file.path for file in checkpoint.files]
    digests = {file.path: file.sha256 for file in checkpoint.files} if checkpoint else {}
    aside = stage.parent / "displaced" / dt.datetime.now(tz=dt.timezone.utc).strftime("%Y%m%dT%H%M%SZ")
    newer = _all_newer(tree, digests, stage, checkpoint)
    places = _Places(tree, stage, aside)
    written_ns = _written_ns(run, checkpoint)
    try:
        for path in sorted(wanted, key=lambda path: (path.endswith(LINK_SUFFIX), written_ns[path], path)):
            if path.endswith(LINK_SUFFIX) and (to := path_in(stage / path)) is not None:
                place_link(tree.local(path), tree.local(to), written_s=written_ns[path] / 1e9)
                continue
            places.put(path, stays=path in newer)
            if path not in newer:
                os.utime(tree.local(path), ns=(time.time_ns(), written_ns[path]))
        placed_logs = [
            path for path in logs if (stage / path).is_file() and places.put(path, stays=_is_longer(tree, stage, path))
        ]
    except OSError as error:
        raise DestinationError(
            f"{error.filename} cannot be put in place: {error.strerror}", hint="check the working folder's owner"
        ) from error
    shutil.rmtree(stage, ignore_errors=True)
    if moved := places.displaced:
        tell(f"{len(moved)} file(s) that differ from the run's were moved to {aside}: {', '.join(moved[:3])}")
    return Restored(
        checkpoint=checkpoint,
        files={path: sha256 for path, sha256 in digests.items() if path not in newer},
        logs=tuple(placed_logs),
        kept=tuple(places.kept),
        displaced=tuple(places.displaced),
        bytes=report.bytes,
        seconds=time.monotonic() - began,
    )


def _written_ns(run: Run, checkpoint: Checkpoint | None) -> dict[str, int]:
    """When each file of a checkpoint was written, as far as the journal knows: when it was first committed.

    What was committed earlier is older, whatever the writers' clocks said, and nothing is newer than now.
    """
    if checkpoint is None:
        return {}
    first: dict[tuple[str, str], Checkpoint] = {}
    for each in sorted(run.checkpoints(), key=lambda each: each.seq):
        for file in each.files:
            first.setdefault((file.path, file.sha256), each)
    found: dict[int, list[str]] = {}
    committed_s = {checkpoint.seq: _unix_s(checkpoint.committed_at)}
    for file in checkpoint.files:
        commit = first.get((file.path, file.sha256), checkpoint)
        found.setdefault(commit.seq, []).append(file.path)
        committed_s[commit.seq] = _unix_s(commit.committed_at)
    latest_s = min(time.time(), committed_s[checkpoint.seq])
    written_ns: dict[str, int] = {}
    for seq in sorted(found, reverse=True):
        latest_s = min(latest_s, committed_s[seq])
        written_ns.update(dict.fromkeys(found[seq], int(latest_s * 1e9)))
        latest_s -= _APART_S
    return written_ns


class _Places:
    """Gives verified files their names."""

    def __init__(self, tree: Tree, stage: Path, aside: Path) -> None:
        self._tree, self._stage, self._aside = tree, stage, aside
        self.kept: list[str] = []
        self.displaced: list[str] = []

    def put(self, path: str, *, stays: bool) -> bool:
        """Put a file in place unless the one that is there stays; says whether it did."""
        if stays:
            self.kept.append(path)
        elif _place(self._stage / path, self._tree.local(path), self._aside / path):
            self.displaced.append(path)
        return not stays


def _is_longer(tree: Tree, stage: Path, path: str) -> bool:
    """Whether a log here was appended to after its last push."""
    local = tree.local(path)
    return local.is_file() and local.stat().st_size > (stage / path).stat().st_size


def set_torn_aside(units: list[Unit], rules: Rules, tree: Tree, *, aside: Path, tell: Callable[[str], None]) -> None:
    """Move away what a killed command left half-written: a restarted one would take it for its newest checkpoint."""
    for unit in units:
        if rules.is_complete(unit, tree, quiet_s=float("inf"), settle_s=0.0, is_over=False):
            continue
        target = aside / unit.path
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            tree.local(unit.path).rename(target)
        except OSError as error:
            tell(f"{unit.path} is half a checkpoint, and cannot be moved away: {error.strerror}")
        else:
            tell(f"{unit.path} is half a checkpoint, left by a process that was killed; it was moved to {target}")


def _offer(local: Path, staged: Path) -> None:
    """Have the pull find a file that is here already: by its hash it knows whether it is the right one."""
    if local.is_file() and not local.is_symlink() and not staged.exists():
        try:
            staged.parent.mkdir(parents=True, exist_ok=True)
            os.link(local, staged)
        except OSError:  # another disk: then it is fetched
            return


def _all_newer(tree: Tree, digests: dict[str, str], stage: Path, checkpoint: Checkpoint | None) -> set[str]:
    """Files of the checkpoint that were written here after it, all of them whole; none if only some are.

    A process that was killed before it could send them left them; together they are what the command would find.
    """
    if checkpoint is None:
        return set()
    different = set()
    committed_s = _unix_s(checkpoint.committed_at)
    for path, sha256 in digests.items():
        local = tree.local(path)
        if not local.is_file() or ((stage / path).is_file() and local.samefile(stage / path)):
            continue
        if hash_file(local).sha256 == sha256:
            continue
        is_telling = path.endswith(FILE_SUFFIXES)
        if local.stat().st_mtime <= committed_s or (is_telling and not is_whole(local)):
            return set()
        different.add(path)
    return different


def _place(staged: Path, local: Path, aside: Path) -> bool:
    """Give a verified file its name; says whether another one had to give way."""
    if local.exists() and staged.samefile(local):
        return False
    is_other = local.is_symlink() or local.exists()
    is_same = is_other and local.is_file() and hash_file(local) == hash_file(staged)
    if is_same:
        return False
    if is_other:
        aside.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(local, aside)
    local.parent.mkdir(parents=True, exist_ok=True)
    try:
        staged.rename(local)
    except OSError:  # a watched folder on another disk
        shutil.copyfile(staged, f"{local}.artifactsync-part")
        os.replace(f"{local}.artifactsync-part", local)  # noqa: PTH105
    return is_other


def _unix_s(text: str) -> float:
    try:
        return dt.datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
    except ValueError:
        return float("inf")
