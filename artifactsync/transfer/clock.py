"""Time as an argument, so that tests of an hour's back-off take no time.

Owns: the ``Clock`` that every part of ``transfer`` takes, and waiting on a condition by it. The real clock is the
``time`` module itself; the other one is ``artifactsync.testing.FakeClock``.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import threading

_FAKE_WAIT_S = 0.001  # real time given to other threads for each wait on a fake clock


class Clock(Protocol):
    """What ``transfer`` asks of a clock: the ``time`` module has it."""

    def monotonic(self) -> float:
        """Seconds that only grow."""

    def sleep(self, seconds: float, /) -> None:
        """Let time pass."""


def wait_on(condition: threading.Condition, timeout_s: float, clock: Clock) -> None:
    """Wait until the held ``condition`` is notified, at most ``timeout_s`` by ``clock``."""
    if clock is time:
        condition.wait(timeout_s)
    else:
        clock.sleep(timeout_s)
        condition.wait(_FAKE_WAIT_S)
