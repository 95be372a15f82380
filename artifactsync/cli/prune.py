"""``prune``: retention, safe against readers and crashes.

Owns: its arguments, its lines, its JSON fields (CONTRACT §5). Does not own: the choice (``journal.retention``), the
deleting (``journal.retire``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import click

from artifactsync.cli.run_names import complete_run_names
from artifactsync.cli.session import global_options, pass_session
from artifactsync.cli.terminal import printable
from artifactsync.cli.units import counted, human_bytes

if TYPE_CHECKING:
    from artifactsync.cli.session import Session
    from artifactsync.journal.retire import PruneReport

_HOUR_S = 3600.0
_ATLEAST_ONE = click.IntRange(min=1)


@click.command(
    "prune",
    short_help="Remove old checkpoints; what is in use stays.",
    epilog="""\b
Examples:
  artifactsync prune my-run --keep-last 3 --dry-run
  artifactsync prune my-run --keep-last 3 --keep-every 1000
  artifactsync prune my-run --keep-last 1 --keep-best 2 --metric val_loss

A checkpoint that any of the rules wants stays, and the newest always stays.
What somebody is pulling right now stays until the next prune. Leftovers of
crashes and unfinished uploads go too, when they are old enough.
""",
)
@click.argument("run", shell_complete=complete_run_names)
@click.option("--keep-last", metavar="N", type=_ATLEAST_ONE, help="Keep the newest N.")
@click.option("--keep-every", metavar="N", type=_ATLEAST_ONE, help="Keep one of every N steps.")
@click.option("--keep-best", metavar="N", type=_ATLEAST_ONE, help="Keep the N with the best value of --metric.")
@click.option("--metric", metavar="NAME", help="The metric that decides which are best.")
@click.option(
    "--mode",
    type=click.Choice(["min", "max"]),
    default="min",
    show_default=True,
    help="Whether its smallest or greatest values are best.",
)
@click.option(
    "--orphans-after",
    metavar="HOURS",
    type=click.FloatRange(min=0),
    default=24.0,
    show_default=True,
    help="Age from which leftovers of crashes are removed.",
)
@click.option("--dry-run", is_flag=True, help="Show what would be removed, and remove nothing.")
@global_options
@pass_session
def command(
    session: Session,
    run: str,
    keep_last: int | None,
    keep_every: int | None,
    keep_best: int | None,
    metric: str | None,
    mode: Literal["min", "max"],
    orphans_after: float,
    *,
    dry_run: bool,
) -> None:
    """Remove the checkpoints of RUN that no rule keeps, and what crashes left."""
    if keep_last is None and keep_every is None and keep_best is None:
        raise click.UsageError("Say what to keep: --keep-last, --keep-every or --keep-best.")
    if (keep_best is None) != (metric is None):
        raise click.UsageError("--keep-best and --metric go together.")
    with session.open_run(run) as opened:
        from artifactsync.run import RetentionPolicy

        policy = RetentionPolicy(
            keep_last=keep_last, keep_every=keep_every, keep_best=keep_best, metric=metric, mode=mode
        )
        report = opened.prune(policy, dry_run=dry_run, orphans_age_s=orphans_after * _HOUR_S)
    if session.is_json:
        session.screen.json(report.to_json())
    elif not session.screen.is_quiet or dry_run:
        _show(session, report)


def _show(session: Session, report: PruneReport) -> None:
    would = "would be " if report.dry_run else ""
    for name in report.retired:
        session.screen.text(f"{would}removed  {printable(name)}")
    for key in report.orphans:
        session.screen.text(f"{would}removed  {printable(key)} (left by a crash)")
    parts = [f"{counted(len(report.retired), 'checkpoint')} {would}removed, {len(report.kept):,} kept"]
    parts.append(f"{counted(report.deleted_keys, 'file')}, {human_bytes(report.freed_bytes)} {would}freed")
    if report.pinned_keys:
        parts.append(f"{counted(report.pinned_keys, 'file')} in use, left for the next prune")
    if report.aborted_uploads:
        parts.append(f"{counted(report.aborted_uploads, 'unfinished upload')} {would}given up")
    session.screen.text("; ".join(parts), "" if report.dry_run else "good")
