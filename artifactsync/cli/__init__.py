"""The command line: one command per module, on top of the same calls that a Python user has.

Owns: arguments, the configuration file, what a terminal or a pipe gets to see, exit codes. Does not own: anything
that happens to a run (``run``), or the wording of what went wrong there (``errors``).

Invariant: starting the command loads click and nothing heavier: no torch, no cloud library, no rich, no fsspec.
Commands import what they need when they run.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

__all__ = ["main"]

_INTERRUPTED_EXIT_CODE = 130


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and end the process with its exit code.

    Args:
        arguments: What follows the program's name; those of this process if None.
    """
    try:
        _open_closed_streams()
        from artifactsync.cli import application  # here, so that Ctrl-C while Python still reads it is no traceback

        application.main(arguments)
    except KeyboardInterrupt:  # before application can answer it
        if sys.stderr:
            sys.stderr.write("interrupted\n")
            sys.stderr.flush()
        os._exit(_INTERRUPTED_EXIT_CODE)


def _open_closed_streams() -> None:
    """Give each stream that the caller closed (``>&-``) a place: else a file of ours would get its number."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115 (as long as we live)
