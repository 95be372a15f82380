"""``pull``: brings a run here, verified.

Owns: its arguments, the tree at the end. Does not own: the choice of files and checkpoints (``journal.restore``), the
transfer (``transfer``).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from artifactsync.cli.progress import byte_bar
from artifactsync.cli.run_names import complete_run_names
from artifactsync.cli.session import global_options, pass_session
from artifactsync.cli.terminal import printable
from artifactsync.cli.tree import show_tree
from artifactsync.cli.units import counted, human_bytes, human_duration, human_rate
from artifactsync.errors import UnsafeKeyError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from artifactsync.cli.session import Session
    from artifactsync.errors import DamagedError
    from artifactsync.journal.restore import PullReport
    from artifactsync.run import Checkpoint, Run
    from artifactsync.transfer.pull import PullItem

_RATE_FROM_S = 0.5  # a rate over less time than this says nothing


@click.command(
    "pull",
    short_help="Bring a run here, verified.",
    epilog="""\b
Examples:
  artifactsync pull 1657932618-infrared-ferret
  artifactsync pull my-run /data/my-run --only checkpoints
  artifactsync pull my-run --checkpoint best --metric val_loss
  artifactsync pull my-run --only logs --include '*.txt' --dry-run

Typed again, an interrupted pull goes on where it broke off. A checkpoint's files
that are there with the right bytes are not fetched again; of logs and other
files no hash is recorded, so they are.
""",
)
@click.argument("run", shell_complete=complete_run_names)
@click.argument("destination", metavar="[DEST]", required=False, type=click.Path(path_type=Path))
@click.option("--checkpoint", metavar="WHICH", help="latest (default), best, none, or its name.")
@click.option("--metric", metavar="NAME", help="The metric that decides which checkpoint is best.")
@click.option(
    "--mode",
    type=click.Choice(["min", "max"]),
    default="min",
    show_default=True,
    help="Whether its smallest or greatest value is best.",
)
@click.option(
    "--only",
    type=click.Choice(["checkpoints", "logs", "all"]),
    default="all",
    show_default=True,
    help="The checkpoint's files, all other files, or both.",
)
@click.option("--include", metavar="GLOB", multiple=True, help="Bring only files that match; may be repeated.")
@click.option("--exclude", metavar="GLOB", multiple=True, help="Leave files that match; may be repeated.")
@click.option("--dry-run", is_flag=True, help="Show what would come, and write nothing.")
@global_options
@pass_session
def command(
    session: Session,
    run: str,
    destination: Path | None,
    checkpoint: str | None,
    metric: str | None,
    mode: Literal["min", "max"],
    only: Literal["checkpoints", "logs", "all"],
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    *,
    dry_run: bool,
) -> None:
    """Bring RUN to the folder DEST (./RUN unless given), verified.

    No file is visible under its name before it is whole and checked.
    """
    _check_choice(checkpoint, metric, only)
    planned: list[PullItem] = []
    with (
        session.open_run(run) as opened,
        byte_bar("pulling", is_wanted=session.has_progress and not dry_run) as bar,
    ):

        def on_plan(items: Sequence[PullItem]) -> None:
            planned[:] = items
            bar.restart(len(items), sum(item.size_bytes or 0 for item in items))

        def on_fallback(damaged: Checkpoint, error: DamagedError) -> None:
            session.screen.warn(f"checkpoint {damaged.name} is damaged ({error}); trying the one before it")

        chosen = checkpoint or ("best" if metric else "latest")
        try:
            report = opened.pull(
                destination if destination is not None else Path(opened.name),
                checkpoint=chosen,
                metric=metric or (_only_metric(opened) if chosen == "best" else None),
                mode=mode,
                only=only,
                include=include,
                exclude=exclude,
                dry_run=dry_run,
                on_plan=on_plan,
                on_progress=bar.advance,
                on_fallback=on_fallback,
            )
        except UnsafeKeyError as error:
            raise UnsafeKeyError(error.message, hint="leave it out with --exclude GLOB", url=error.url) from error
    if session.is_json:
        session.screen.json(report.to_json())
    elif not session.screen.is_quiet or dry_run:
        _show(session, report, {item.path: item.size_bytes or 0 for item in planned})


def _check_choice(checkpoint: str | None, metric: str | None, only: str) -> None:
    """Refuse options that contradict each other.

    Raises:
        click.UsageError: they do.
    """
    if metric and checkpoint not in {None, "best"}:
        raise click.UsageError(f"--metric decides which checkpoint is best; it does not go with {checkpoint!r}.")
    if only == "logs" and (metric or checkpoint not in {None, "none"}):
        raise click.UsageError("--only logs brings no checkpoint: leave --checkpoint and --metric out.")
    if only == "checkpoints" and checkpoint == "none":
        raise click.UsageError("--only checkpoints --checkpoint none brings nothing.")


def _only_metric(run: Run) -> str | None:
    """The run's metric if it has just one.

    Raises:
        click.UsageError: it has several.
    """
    names: list[Any] = sorted({name for checkpoint in run.checkpoints() for name in checkpoint.metrics})
    if len(names) > 1:
        raise click.UsageError(f"--checkpoint best needs --metric, one of: {', '.join(names)}.")
    return names[0] if names else None


def _show(session: Session, report: PullReport, sizes: dict[str, int]) -> None:
    if not report.paths:
        session.screen.note("nothing to bring: no file of the run is chosen by these options")
        return
    show_tree(session.screen, f"{report.destination}/", {path: sizes.get(path, 0) for path in report.paths}, sys.stdout)
    what = [f"checkpoint {report.checkpoint}"] if report.checkpoint else []
    what.append(f"{counted(report.files, 'file')}, {human_bytes(report.bytes)}")
    if report.skipped_files:
        what.append(f"{report.skipped_files:,} there already")
    if report.dry_run:
        session.screen.text(printable(f"would bring {', '.join(what)}; nothing was written"))
        return
    took = f"in {human_duration(report.seconds)}"
    if report.seconds >= _RATE_FROM_S and not report.skipped_files:
        took += f", {human_rate(report.bytes / report.seconds)}"
    session.screen.text(printable(f"verified: {', '.join(what)} {took}"), "good")
