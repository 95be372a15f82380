"""The command line: one command per module, on top of the same calls that a Python user has.

Owns: arguments, the configuration file, what a terminal or a pipe gets to see, exit codes. Does not own: anything
that happens to a run (``run``), or the wording of what went wrong there (``errors``).

Invariant: importing this package loads click and nothing heavier: no torch, no cloud library, no rich, no fsspec.
Commands import what they need when they run.
"""

from __future__ import annotations

from artifactsync.cli.application import cli, main

__all__ = ["cli", "main"]
