"""The one line at the end: what is durable, and what is not; and the exit code that goes with it.

Owns: the words. Does not own: the facts (``supervise``).

Invariant: what is called durable was committed, as this process has read or written it in the journal; of what is not
known it says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from artifactsync.errors import NotDurableError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from artifactsync.run import Checkpoint
    from artifactsync.supervisor.units import Unit

NOT_DURABLE_EXIT_CODE = NotDurableError.exit_code


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a supervised command ended."""

    run_name: str
    """The run."""
    attempt: int
    """Which attempt this was."""
    exit_code: int
    """What the supervisor returns: the command's own, or 7."""
    command_exit_code: int
    """As a shell has it."""
    state: str
    """``completed``, ``preempted`` or ``failed``, as the journal says."""
    durable: str | None
    """Name of the newest durable checkpoint."""
    durable_step: int | None
    """Its step."""
    missing: tuple[str, ...]
    """Paths of checkpoints that are whole and not durable, the newest last."""
    missing_files: int
    """Other files whose newest version is not durable."""
    line: str
    """All that in words."""


def words(durable: Checkpoint | None, missing: Sequence[Unit], *, missing_files: int, mirrored_files: int) -> str:
    """The line, without the reason for the end."""
    there = f"checkpoint {durable.name} (step {durable.step:,})" if durable else "no checkpoint"
    others = f" and {mirrored_files:,} other file{'' if mirrored_files == 1 else 's'}" if mirrored_files else ""
    absent = []
    if missing:
        newest = missing[-1]
        absent.append(f"checkpoint {newest.path} ({newest.size_bytes:,} bytes)")
    if len(missing) > 1:
        absent.append(f"{len(missing) - 1:,} older checkpoint{'' if len(missing) == 2 else 's'}")  # noqa: PLR2004
    if missing_files:
        absent.append(f"{missing_files:,} other file{'' if missing_files == 1 else 's'}")
    return f"durable: {there}{others}; " + ("NOT durable: " + " and ".join(absent) if absent else "nothing is missing")
