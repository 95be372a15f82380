"""A clock that moves only when it is told to.

Owns: ``FakeClock``. Does not own: real time; its methods carry the names of the ``time`` module, so that the module
itself is the real clock of every component that takes a ``clock``.

Invariant: ``monotonic()`` never goes back, whatever happens to the wall clock.
"""

from __future__ import annotations

import threading


class FakeClock:
    """A stand-in for the ``time`` module: ``monotonic()``, ``time()``, ``sleep()``. Thread-safe.

    ``sleep`` returns at once and moves the clock, so a test of an hour's back-off takes no time.

    Args:
        start_s: What ``monotonic()`` says first, in seconds.
        wall_s: What ``time()`` says first, in seconds since 1970.
    """

    def __init__(self, *, start_s: float = 1_000.0, wall_s: float = 1_700_000_000.0) -> None:
        self._lock = threading.Lock()
        self._monotonic_s = start_s
        self._wall_s = wall_s
        self.sleeps_s: list[float] = []
        """Every sleep that was asked for, in order, in seconds."""

    def monotonic(self) -> float:
        """Seconds that only grow."""
        with self._lock:
            return self._monotonic_s

    def time(self) -> float:
        """Seconds since 1970 as the wall clock has it."""
        with self._lock:
            return self._wall_s

    def wall(self) -> float:
        """The same as :meth:`time`."""
        return self.time()

    def sleep(self, seconds: float) -> None:
        """Note the wish and move both clocks on by it."""
        if seconds < 0:
            raise ValueError("sleep length must be non-negative")  # the words of time.sleep
        with self._lock:
            self.sleeps_s.append(seconds)
        self.advance(seconds)

    def advance(self, seconds: float) -> None:
        """Move both clocks on.

        Raises:
            ValueError: ``seconds`` is negative.
        """
        if seconds < 0:
            raise ValueError("a monotonic clock does not go back; use jump_wall")
        with self._lock:
            self._monotonic_s += seconds
            self._wall_s += seconds

    def jump_wall(self, seconds: float) -> None:
        """Set the wall clock alone on (or back, if negative), as an operator or NTP would."""
        with self._lock:
            self._wall_s += seconds
