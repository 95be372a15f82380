"""How much time is left after the notice, and what it is for.

Owns: when the command must have ended, when this process must. Does not own: signals (``supervise``).

Invariant: the command's share ends early enough that its newest checkpoint can be sent at the rate that was measured.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from artifactsync.transfer.clock import Clock

_MARGIN_SHARE, _MIN_MARGIN_S, _MAX_MARGIN_S = 0.06, 0.5, 3.0  # for the last record, and for exiting
_CHILD_SHARE = 0.5  # of the grace is the command's where no rate is known
_MIN_CHILD_SHARE = 0.1
_SAFETY = 1.25  # rates vary
_REQUESTS_S = 1.0  # the commit, and what goes before it
_IDLE_S = 3600.0


class Deadline:
    """The time after a notice.

    Args:
        grace_s: Seconds from the notice to the end of this process; None where nobody said.
        usual_grace_s: What is taken then.
        clock: Monotonic seconds.
    """

    def __init__(self, grace_s: float | None, *, usual_grace_s: float, clock: Clock = time) -> None:
        self._grace_s = usual_grace_s if grace_s is None else grace_s
        self._clock = clock
        self._noticed_at: float | None = None
        self._reserve_s = self._grace_s * _CHILD_SHARE
        self._has_killed = False
        self.reason = ""
        """Why the end comes; empty while it does not."""

    def notice(self, reason: str, grace_s: float | None = None) -> bool:
        """The end comes; says whether that is news."""
        if self._noticed_at is not None:
            return False
        self._noticed_at = self._clock.monotonic()
        if grace_s is not None:
            self._grace_s = grace_s
        self.reason = reason
        return True

    def reserve(self, size_bytes: int, bytes_per_s: float) -> None:
        """Keep time for a checkpoint of that size at that rate."""
        if bytes_per_s > 0:
            self._reserve_s = _SAFETY * size_bytes / bytes_per_s + _REQUESTS_S

    def is_child_late(self) -> bool:
        """Whether the command must be killed now; true once."""
        if self._noticed_at is None or self._has_killed or self._clock.monotonic() < self._child_ends_at():
            return False
        self._has_killed = True
        return True

    def is_over(self) -> bool:
        """Whether there is time for nothing more than the last record."""
        return self._noticed_at is not None and self._clock.monotonic() >= self._ends_at()

    def next_s(self) -> float:
        """Seconds until one of these may change its answer."""
        if self._noticed_at is None:
            return _IDLE_S
        now = self._clock.monotonic()
        ends = [self._ends_at()] if self._has_killed else [self._child_ends_at(), self._ends_at()]
        return max(0.01, min(min(ends) - now, 1.0))

    def end_s(self) -> float:
        """Seconds that the last record may take."""
        if self._noticed_at is None:
            return 10.0
        return min(10.0, max(0.2, self._noticed_at + self._grace_s - self._clock.monotonic() - 0.2))

    def _ends_at(self) -> float:
        assert self._noticed_at is not None, "asked before"
        margin_s = min(_MAX_MARGIN_S, max(_MIN_MARGIN_S, _MARGIN_SHARE * self._grace_s))
        return self._noticed_at + max(0.0, self._grace_s - margin_s)

    def _child_ends_at(self) -> float:
        assert self._noticed_at is not None, "asked before"
        earliest = self._noticed_at + _MIN_CHILD_SHARE * self._grace_s
        return max(earliest, self._ends_at() - self._reserve_s)
