"""``adopt``: a folder that another program filled becomes a run.

Owns: its lines and its JSON fields. Does not own: what is adopted (``run``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from artifactsync.cli.progress import byte_bar
from artifactsync.cli.run_names import complete_run_names
from artifactsync.cli.session import global_options, pass_session
from artifactsync.cli.terminal import printable
from artifactsync.cli.units import counted, human_bytes, human_duration

if TYPE_CHECKING:
    from artifactsync.cli.session import Session
    from artifactsync.journal.adoption import AdoptReport

_SHOWN = 10


@click.command(
    "adopt",
    short_help="Make a run of what another program left.",
    epilog="""\b
Examples:
  artifactsync adopt my-run --dry-run
  artifactsync adopt my-run
  artifactsync adopt my-run --pattern 'model-(?P<step>\\d+)\\.pt'

Known without --pattern: Composer (ep1-ba100-rank0.pt), Lightning (epoch=1-step=100.ckpt), Hugging Face
(checkpoint-100/), and folders or files named after a step. Typed again, it adopts what has come since.
""",
)
@click.argument("run", shell_complete=complete_run_names)
@click.option("--pattern", metavar="REGEX", help="How steps are named, with a group called step.")
@click.option("--dry-run", is_flag=True, help="Only show what would be adopted.")
@global_options
@pass_session
def command(session: Session, run: str, *, pattern: str | None, dry_run: bool) -> None:
    """Give the checkpoints in the folder RUN, which another program uploaded, their records.

    Every byte is read and hashed once; no object is changed, moved or deleted. A checkpoint of which files are missing
    is left out.
    """
    with session.open_run(run) as opened, byte_bar("reading", is_wanted=session.has_progress and not dry_run) as bar:
        report = opened.adopt(pattern=pattern, dry_run=dry_run, on_plan=bar.restart, on_progress=bar.advance)
    if session.is_json:
        session.screen.json(report.to_json())
        return
    if not session.screen.is_quiet:
        for line in _lines(report):
            session.screen.text(printable(line), "good" if not dry_run else "")
    for name, reason in report.left_out.items():
        session.screen.warn(printable(f"left out: {name}: {reason}"))


def _lines(report: AdoptReport) -> list[str]:
    verb = "would adopt" if report.dry_run else "adopted"
    what = f"{counted(len(report.adopted), 'checkpoint')}, {counted(report.files, 'file')}, {human_bytes(report.bytes)}"
    more = []
    if report.already:
        more.append(f"{report.already:,} adopted before")
    if report.other_files:
        more.append(f"{counted(report.other_files, 'other file')} beside them")
    if not report.dry_run and report.adopted:
        more.append(f"in {human_duration(report.seconds)}")
    lines = [f"{verb}: {', '.join([what, *more])}"]
    if report.dry_run:
        lines += [f"  {name}" for name in report.adopted[:_SHOWN]]
        if len(report.adopted) > _SHOWN:
            lines.append(f"  and {len(report.adopted) - _SHOWN:,} more")
    return lines
