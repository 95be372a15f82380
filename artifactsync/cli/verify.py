"""``verify``: every committed file is there, with its size; ``--deep`` reads and hashes every byte.

Owns: its lines, its JSON fields (CONTRACT §5), exit code 4 when something is wrong. Does not own: the checking
(``run``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from artifactsync.cli.progress import byte_bar
from artifactsync.cli.run_names import complete_run_names
from artifactsync.cli.session import global_options, pass_session
from artifactsync.cli.terminal import printable
from artifactsync.cli.units import counted, human_bytes
from artifactsync.errors import DamagedError

if TYPE_CHECKING:
    from artifactsync.cli.session import Session


@click.command(
    "verify",
    short_help="Check that every committed file is there, whole.",
    epilog="""\b
Examples:
  artifactsync verify 1657932618-infrared-ferret           compares sizes
  artifactsync verify 1657932618-infrared-ferret --deep    reads every byte
  artifactsync verify 1657932618-infrared-ferret --json | jq .damaged

Exit code 4 when a file is damaged or missing.
""",
)
@click.argument("run", shell_complete=complete_run_names)
@click.option("--deep", is_flag=True, help="Read and hash every byte.")
@global_options
@click.pass_context
@pass_session
def command(session: Session, context: click.Context, run: str, *, deep: bool) -> None:
    """Check that every committed file of RUN is on the remote, whole."""
    with session.open_run(run) as opened, byte_bar("verifying", is_wanted=session.has_progress) as bar:
        report = opened.verify(deep=deep, on_plan=bar.restart, on_progress=bar.advance)
    if session.is_json:
        session.screen.json(report.to_json())
    else:
        for word, keys in (("missing", report.missing), ("damaged", report.damaged)):
            for key in keys:
                session.screen.text(f"{word}  {printable(key)}", "error")
        for key in report.wrong_packs:
            session.screen.text(f"wrong    {printable(key)} (harmless: its records are read one by one)", "warning")
        if report.wrong_packs:
            session.screen.note("`artifactsync prune` removes wrong packs; the run's writer makes them anew")
        files = counted(report.checked_files, "file")
        how = "every byte read" if deep else "sizes compared; --deep reads every byte"
        verdict = "verified" if report.ok else f"{len(report.missing)} missing, {len(report.damaged)} damaged"
        if not (session.screen.is_quiet and report.ok):
            session.screen.text(
                f"{verdict}: {files}, {human_bytes(report.checked_bytes)} ({how})", "good" if report.ok else "error"
            )
    if not report.ok:
        context.exit(DamagedError.exit_code)
