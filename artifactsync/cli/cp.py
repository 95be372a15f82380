"""``cp``: a run to another remote.

Owns: its lines and its JSON fields. Does not own: the copying (``run``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from artifactsync.cli.progress import byte_bar
from artifactsync.cli.run_names import complete_run_names
from artifactsync.cli.session import global_options, pass_session
from artifactsync.cli.terminal import printable
from artifactsync.cli.units import counted, human_bytes, human_duration
from artifactsync.naming.configuration import storage_options_for

if TYPE_CHECKING:
    from artifactsync.cli.session import Session


@click.command(
    "cp",
    short_help="Copy a run to another remote.",
    epilog="""\b
Examples:
  artifactsync cp my-run gs://other-bucket/runs
  artifactsync cp my-run /mnt/archive --dry-run
  artifactsync --remote /mnt/archive cp my-run s3://bucket/runs

Typed again, it continues an interrupted copy, or brings a copy up to date.
""",
)
@click.argument("run", shell_complete=complete_run_names)
@click.argument("remote2", metavar="REMOTE2")
@click.option("--dry-run", is_flag=True, help="Show what would be copied, and write nothing.")
@global_options
@pass_session
def command(session: Session, run: str, remote2: str, *, dry_run: bool) -> None:
    """Copy RUN with its checkpoints, files and journal to REMOTE2, verified.

    Nothing of it counts there before all of it is there. A run that is live is copied as it is now.
    """
    with session.open_run(run) as opened, byte_bar("copying", is_wanted=session.has_progress and not dry_run) as bar:
        report = opened.copy_to(
            remote2,
            storage_options=storage_options_for(remote2, session.configuration),
            dry_run=dry_run,
            on_plan=bar.restart,
            on_progress=bar.advance,
        )
    if session.is_json:
        session.screen.json(report.to_json())
    elif not session.screen.is_quiet or dry_run:
        what = [
            counted(report.checkpoints, "checkpoint"),
            f"{counted(report.files, 'file')}, {human_bytes(report.bytes)}",
        ]
        if report.skipped_files:
            what.append(f"{report.skipped_files:,} there already")
        target = f"{report.target}/{report.run_name}"
        if dry_run:
            session.screen.text(printable(f"would copy: {', '.join(what)} to {target}; nothing was written"))
        else:
            line = f"verified: {', '.join(what)} at {target} in {human_duration(report.seconds)}"
            session.screen.text(printable(line), "good")
