"""How fast bytes move, and how fast they may.

Owns: ``Meter`` (a recent rate) and ``Throttle`` (a bandwidth limit). Neither knows files or stores.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from artifactsync.transfer.clock import Clock

WINDOW_S = 30.0
"""The rate is that of the last so many seconds."""

_SAMPLE_S = 0.25
_SLICE_S = 0.25  # a throttled reader looks this often whether it should stop


class Meter:
    """Counts bytes and knows their recent rate. Thread-safe.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._samples: deque[list[float]] = deque()  # [time, bytes]
        self._began_s: float | None = None
        self.last_moved_s = clock.monotonic()
        """When a byte last moved."""

    def add(self, count_bytes: int) -> None:
        """Count bytes that moved now."""
        now = self._clock.monotonic()
        with self._lock:
            self.last_moved_s = now
            self._began_s = now if self._began_s is None else self._began_s
            if self._samples and now - self._samples[-1][0] < _SAMPLE_S:
                self._samples[-1][1] += count_bytes
            else:
                self._samples.append([now, float(count_bytes)])
            self._forget(now)

    def bytes_per_s(self) -> float:
        """The recent rate; 0 if nothing moved lately."""
        now = self._clock.monotonic()
        with self._lock:
            self._forget(now)
            if not self._samples or self._began_s is None:
                return 0.0
            window_s = min(WINDOW_S, max(now - self._began_s, _SAMPLE_S))
            return sum(count for _, count in self._samples) / window_s

    def _forget(self, now: float) -> None:
        while self._samples and self._samples[0][0] < now - WINDOW_S:
            self._samples.popleft()
        if not self._samples:
            self._began_s = None


class Throttle:
    """A token bucket of one second's depth, shared by all who read through it. Thread-safe.

    Args:
        bytes_per_s: The limit.
        clock: What passes the time.
    """

    def __init__(self, bytes_per_s: float, clock: Clock) -> None:
        self._bytes_per_s = bytes_per_s
        self._clock = clock
        self._lock = threading.Lock()
        self._free_at_s = clock.monotonic()  # when the bytes taken so far have been paid for

    def take(self, count_bytes: int, check: Callable[[], None]) -> None:
        """Wait until ``count_bytes`` may move; ``check`` is called meanwhile and may raise."""
        with self._lock:
            now = self._clock.monotonic()
            begin_s = max(self._free_at_s, now - 1.0)
            self._free_at_s = begin_s + count_bytes / self._bytes_per_s
            wake_s = self._free_at_s
        while (left_s := wake_s - self._clock.monotonic()) > 0:
            check()
            self._clock.sleep(min(left_s, _SLICE_S))
