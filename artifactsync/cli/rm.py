"""``rm``: removes a run.

Owns: that it is meant (``--yes``, or an answer typed on a terminal), its lines and its JSON fields. Does not own: the
removal (``run``).
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from artifactsync.cli.failures import USAGE_EXIT_CODE
from artifactsync.cli.progress import byte_bar
from artifactsync.cli.run_names import complete_run_names
from artifactsync.cli.session import global_options, pass_session
from artifactsync.cli.terminal import printable
from artifactsync.cli.units import counted, human_bytes
from artifactsync.errors import RunIsLiveError

if TYPE_CHECKING:
    from artifactsync.cli.session import Session
    from artifactsync.journal.removal import RemovalReport
    from artifactsync.run import Run

_UNCONFIRMED = "nothing was removed: --yes is missing"


@click.command(
    "rm",
    short_help="Remove a run.",
    epilog="""\b
Examples:
  artifactsync rm my-run          shows what would go; on a terminal, asks
  artifactsync rm my-run --yes    removes it
  artifactsync rm my-run --dry-run --json | jq .freed_bytes

Typed again, it finishes a removal that was interrupted. Exit code 5 while the run has a live writer.
""",
)
@click.argument("run", shell_complete=complete_run_names)
@click.option("--yes", "-y", is_flag=True, help="Do it, and do not ask.")
@click.option("--dry-run", is_flag=True, help="Show what would go, and remove nothing.")
@global_options
@click.pass_context
@pass_session
def command(session: Session, context: click.Context, run: str, *, yes: bool, dry_run: bool) -> None:
    """Remove RUN from the remote: checkpoints, files, journal.

    Local files stay. A run that has a live writer is not removed.
    """
    with session.open_run(run) as opened:
        if dry_run:
            _show_plan(session, opened)
            return
        if not yes and not _is_confirmed(session, opened.remove(dry_run=True), opened.remote):
            context.exit(USAGE_EXIT_CODE)
        report = _remove(session, opened)
    if session.is_json:
        session.screen.json(report.to_json())
    elif not session.screen.is_quiet:
        session.screen.text(printable(f"removed: {_what(report)}"), "good")


def _show_plan(session: Session, run: Run) -> None:
    planned = run.remove(dry_run=True)
    if session.is_json:
        session.screen.json(planned.to_json())
    else:
        session.screen.text(printable(f"{_would(planned, run.remote)}; nothing was removed"))


def _remove(session: Session, run: Run) -> RemovalReport:
    with byte_bar("removing", is_wanted=session.has_progress) as bar:
        try:
            return run.remove(on_plan=bar.restart, on_progress=bar.advance)
        except RunIsLiveError as error:  # its own hint is for those who want to write
            hint = error.hint if "being" in error.message else "stop that process first; nothing was removed"
            raise RunIsLiveError(error.message, hint=hint, url=error.url) from error


def _is_confirmed(session: Session, planned: RemovalReport, remote: str) -> bool:
    """Show what would go; ask if there is somebody to ask."""
    if session.is_json:
        error = {"kind": "usage", "message": _UNCONFIRMED, "hint": "add --yes to remove it", "url": remote}
        session.screen.json({**planned.to_json(), "error": error})
        return False
    session.screen.text(printable(_would(planned, remote)))
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        session.screen.warn(f"{_UNCONFIRMED}; add it to remove the run")
        return False
    return click.confirm("Remove it for good?", err=True)


def _would(planned: RemovalReport, remote: str) -> str:
    return f"would remove {planned.run_name} at {remote}: {_what(planned)}"


def _what(report: RemovalReport) -> str:
    objects = f"{counted(report.deleted_keys, 'object')}, {human_bytes(report.freed_bytes)}"
    return f"{counted(report.checkpoints, 'checkpoint')}, {objects}"
