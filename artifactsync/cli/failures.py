"""How a failure leaves the program: two lines for a person, one JSON document for a program, and an exit code.

Owns: the wording around errors, and the codes of what is not an ``ArtifactSyncError`` (usage 2, interrupted 130,
unexpected 1). Does not own: the errors' own messages, hints and codes (``errors``).

Invariant: no traceback reaches a user who has not set ``ARTIFACTSYNC_DEBUG=1``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from artifactsync.cli.terminal import printable
from artifactsync.errors import ArtifactSyncError, redact

if TYPE_CHECKING:
    from collections.abc import Mapping

DEBUG_VARIABLE = "ARTIFACTSYNC_DEBUG"
USAGE_EXIT_CODE = 2
INTERRUPTED_EXIT_CODE = 130
OUTPUT_CLOSED_EXIT_CODE = 141
"""What a shell reports of any filter whose reader went away: 128 + SIGPIPE."""


class OutputClosedError(Exception):
    """Whoever read our output has gone (``| head``). Nothing is wrong, and nobody is left to be told."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """One failure, ready to be shown."""

    kind: str
    """The stable word of CONTRACT §5."""
    message: str
    """What happened, one line."""
    hint: str = ""
    """What to do about it; may be empty."""
    url: str | None = None
    """Where it happened, without secrets."""
    exit_code: int = 1
    """What the process returns."""
    label: str = "error"
    """The word before the message, for people."""

    def document(self) -> dict[str, Any]:
        """The JSON form."""
        return {"error": {"kind": self.kind, "message": self.message, "hint": self.hint, "url": self.url}}

    def lines(self) -> list[str]:
        """The lines for a person, harmless for a terminal."""
        is_placed = not self.url or self.url in self.message or "://" in self.message
        place = "" if is_placed else f" ({self.url})"
        lines = [f"{self.label}: {_one_line(self.message)}{_one_line(place)}" if self.label else self.message]
        if self.hint:
            lines.append(f"hint: {_one_line(self.hint)}")
        return lines


def describe(error: BaseException) -> Failure:
    """Say what an exception that ended a command means."""
    if isinstance(error, ArtifactSyncError):
        return Failure(
            kind=error.kind, message=error.message, hint=error.hint, url=error.url, exit_code=error.exit_code
        )
    if isinstance(error, click.ClickException):
        context = getattr(error, "ctx", None)
        path = context.command_path if context else "artifactsync"
        return Failure(
            kind="usage", message=error.format_message(), hint=f"see {path} --help", exit_code=USAGE_EXIT_CODE
        )
    if isinstance(error, KeyboardInterrupt | click.Abort):
        return Failure(kind="interrupted", message="interrupted", exit_code=INTERRUPTED_EXIT_CODE, label="")
    return Failure(
        kind="unexpected",
        message=redact(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__),
        hint=f"set {DEBUG_VARIABLE}=1 to see the traceback, and please report it",
        label="unexpected error",
    )


def wants_json(arguments: list[str]) -> bool:
    """Whether ``--json`` was typed, for errors that come before the arguments are understood."""
    before_end = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return "--json" in before_end


def wants_traceback(environ: Mapping[str, str]) -> bool:
    """Whether the user asked for tracebacks."""
    return environ.get(DEBUG_VARIABLE, "") not in {"", "0"}


def _one_line(text: str) -> str:
    return printable(" ".join(text.split("\n")))
