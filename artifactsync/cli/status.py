"""``status``: how far a run is, and how much of it is safe.

Owns: its lines and its JSON fields (CONTRACT §5). Does not own: the figures (``run``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from artifactsync.cli.run_names import complete_run_names
from artifactsync.cli.session import global_options, pass_session
from artifactsync.cli.terminal import display_width, printable
from artifactsync.cli.units import counted, human_bytes, human_duration, human_rate

if TYPE_CHECKING:
    from artifactsync.cli.session import Session
    from artifactsync.run import RunStatus


@click.command(
    "status",
    short_help="Show how far a run is, and how much of it is safe.",
    epilog="""\b
Examples:
  artifactsync status 1657932618-infrared-ferret
  artifactsync status 1657932618-infrared-ferret --json | jq .durable_step
  watch -n 10 artifactsync status 1657932618-infrared-ferret
""",
)
@click.argument("run", shell_complete=complete_run_names)
@global_options
@pass_session
def command(session: Session, run: str) -> None:
    """Show the durable step, the backlog, rate, ETA and attempt of RUN, and whether it is alive."""
    with session.open_run(run) as opened:
        run_status = opened.status()
    if session.is_json:
        session.screen.json(run_status.to_json())
    else:
        session.screen.text(status_text(run_status))
        if note := ending_note(run_status):
            session.screen.note(note)


def status_text(run_status: RunStatus) -> str:
    """The lines for a person."""
    lines = [
        ("run", run_status.run_name),
        ("state", run_status.state + _alive(run_status)),
        ("attempt", str(run_status.attempt)),
        ("durable step", _step(run_status.durable_step)),
        ("local step", _step(run_status.local_step)),
        ("backlog", _backlog(run_status)),
    ]
    if run_status.bytes_per_s:
        lines.append(("rate", human_rate(run_status.bytes_per_s)))
    if run_status.eta_s is not None and run_status.pending_files:
        lines.append(("eta", human_duration(run_status.eta_s)))
    if run_status.last_error:
        lines.append(("last error", run_status.last_error))
    width = max(display_width(title) for title, _ in lines)
    return "\n".join(f"{title:<{width}}  {printable(value)}" for title, value in lines)


def ending_note(run_status: RunStatus) -> str:
    """What a person may wonder at when a run has neither an end nor a writer; empty otherwise."""
    if run_status.state != "unknown" or not run_status.attempt:
        return ""
    goes_on = "" if run_status.durable_step is None else f" after step {run_status.durable_step:,}"
    return f"nobody wrote down how it ended, as after kill -9; opened by its name it goes on{goes_on}"


def _alive(run_status: RunStatus) -> str:
    if run_status.alive:
        return ", alive"
    return ", not alive" if run_status.state in {"running", "unknown"} else ""


def _step(step: int | None) -> str:
    return "-" if step is None else f"{step:,}"


def _backlog(run_status: RunStatus) -> str:
    if run_status.pending_files == 0:
        return "none"
    return f"{counted(run_status.pending_files, 'file')}, {human_bytes(run_status.pending_bytes)}"
