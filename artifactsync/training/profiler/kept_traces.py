"""How many traces stay on this disk; on the remote all of them do.

Invariant: a trace that is not durable on the remote is not removed here.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from artifactsync.errors import ArtifactSyncError, ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path

    from artifactsync.run import Pushed


class KeptTraces:
    """The traces that this process wrote, oldest first.

    Args:
        limit: How many of them stay; -1 keeps all.

    Raises:
        ConfigurationError: another negative number.
    """

    def __init__(self, limit: int) -> None:
        if limit < -1:
            raise ConfigurationError(f"num_traces_to_keep is {limit}", hint="-1 keeps all, 0 none, 3 the newest three")
        self._limit = limit
        self._traces: list[tuple[Path, Pushed | None]] = []

    def add(self, path: Path, pushed: Pushed | None) -> None:
        """A trace was written; its way to the remote is ``pushed``, or None where there is no remote."""
        self._traces = [trace for trace in self._traces if trace[0] != path]
        self._traces.append((path, pushed))
        self.remove_surplus()

    def remove_surplus(self) -> None:
        """Remove what is too many, of that what is durable by now; waits for nothing."""
        if self._limit < 0:
            return
        surplus = self._traces[: max(0, len(self._traces) - self._limit)]
        for trace in surplus:
            path, pushed = trace
            if pushed is None or _is_durable(pushed):
                with suppress(OSError):
                    path.unlink(missing_ok=True)
                self._traces.remove(trace)


def _is_durable(pushed: Pushed) -> bool:
    if not pushed.done():
        return False
    try:
        pushed.result(0)
    except ArtifactSyncError:
        return False
    return True
