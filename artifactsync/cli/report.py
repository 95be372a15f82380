"""``report``: a run as one small page, readable anywhere.

Owns: where the page is written, and the JSON fields. Does not own: the page (``report``).

Invariant: the file appears whole or not at all; one that is there is replaced only by a whole one.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from artifactsync.cli.failures import OutputClosedError
from artifactsync.cli.run_names import complete_run_names
from artifactsync.cli.session import global_options, pass_session
from artifactsync.cli.terminal import printable
from artifactsync.cli.units import counted, human_bytes
from artifactsync.errors import ConfigurationError, DestinationError

if TYPE_CHECKING:
    from artifactsync.cli.session import Session


@click.command(
    "report",
    short_help="Make one page of a run: metrics, checkpoints, stalls.",
    epilog="""\b
Examples:
  artifactsync report 1657932618-infrared-ferret     writes <RUN>.html here
  artifactsync report 1657932618-infrared-ferret -o ferret.html
  artifactsync report 1657932618-infrared-ferret -o - > ferret.html
""",
)
@click.argument("run", shell_complete=complete_run_names)
@click.option(
    "--output", "-o", metavar="FILE", help="Where to write; '-' is stdout. RUN.html here unless given.", default=None
)
@global_options
@pass_session
def command(session: Session, run: str, output: str | None) -> None:
    """Make a self-contained HTML page of RUN from its journal and its mirrored logs.

    No script, no network, light and dark, readable on a phone. It reads only, and shows a live run as it is now.
    """
    if output == "-" and session.is_json:
        raise click.UsageError("--json and -o - both want stdout.")
    from artifactsync.report import build_report

    with session.open_run(run) as opened:
        made = build_report(opened, now=session.now())
        name = opened.name
    data = made.html.encode()
    if output == "-":
        try:
            sys.stdout.buffer.write(data)
            sys.stdout.flush()
        except BrokenPipeError as error:
            raise OutputClosedError from error
        return
    path = Path(output or f"{name}.html")
    write_whole(path, data)
    if session.is_json:
        session.screen.json(
            {
                "run_name": name,
                "path": str(path),
                "bytes": len(data),
                "metrics": made.metrics,
                "points": made.points,
                "checkpoints": made.checkpoints,
                "attempts": made.attempts,
            }
        )
    else:
        what = f"{counted(made.metrics, 'metric')}, {counted(made.checkpoints, 'checkpoint')}"
        session.screen.text(printable(f"{path}  {human_bytes(len(data))}: {what}"))


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that is either whole or as it was before.

    Raises:
        ConfigurationError: it is a folder.
        DestinationError: it cannot be written there.
    """
    if path.is_dir():
        raise ConfigurationError(f"{path} is a folder", hint=f"name the file too, for example {path / 'report.html'}")
    temporary: str | None = None
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            os.fchmod(file.fileno(), 0o666 & ~_umask())
        Path(temporary).replace(path)
    except OSError as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        raise DestinationError(
            f"cannot write {path}: {error.strerror}",
            hint="choose a folder that is there and can be written",
            url=str(path),
        ) from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
