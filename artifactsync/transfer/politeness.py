"""When the stores' threads give way to training, and when not.

Owns: ``Politeness``: who waits for uploads, and whether they are starved. Does not own: how a thread is made to give
way (``stores.runtime``), or how starvation is measured (``starvation``).

The stores' own threads, and the process beside this one (``courier``), which send the bytes, are ``SCHED_IDLE`` (Linux)
while there are cores to spare and nobody waits for the uploads. On a saturated machine they are ordinary ones
(``starvation`` says why). The queue's worker threads always are: they take the interpreter lock, and an idle thread
that gets no core while it holds that lock stops the training (docs/benchmarks.md). A process without ``CAP_SYS_NICE``
cannot raise its threads again, so there nothing is lowered in the first place.

Invariant: nothing here is called under the queue's lock: asking the system about each thread takes milliseconds.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from artifactsync.stores import runtime
from artifactsync.transfer.starvation import ProcessShare, RunDelay, can_be_raised

if TYPE_CHECKING:
    from artifactsync.transfer.clock import Clock
    from artifactsync.transfer.courier import Courier
    from artifactsync.transfer.meter import Meter

_STALLED_S = 20.0  # no byte moved for this long: do not be polite
_STARVED_SHARE = 0.2  # a polite thread waited for a core for this share of the time: do not be polite
_TOO_LITTLE = 0.1  # the process beside this one wanted to run for longer than this share, and ran for less
_LOOK_S = 0.9  # not more often than so
_IMPOLITE_S = 60.0  # for this long, then try again


class Politeness:
    """Sets the scheduling class of the stores' threads. Thread-safe.

    Args:
        is_wanted: False leaves the threads alone.
        meter: Says when a byte last moved.
        clock: Monotonic seconds.
        courier: The process beside this one, which gives way in the same manner.
    """

    def __init__(self, meter: Meter, clock: Clock, courier: Courier | None = None, *, is_wanted: bool) -> None:
        self.is_possible = is_wanted and can_be_raised()
        """Whether anything can be made to give way, and not to."""
        self._courier = courier
        self._meter = meter
        self._clock = clock
        self._counting = threading.Lock()  # held for a count alone
        self._setting = threading.Lock()  # one at a time, so that the last word is the newest
        self._watchers = 0
        self._run_delay = RunDelay()
        self._courier_share = ProcessShare()
        self._was_applied = False
        self._last_look_s = clock.monotonic()
        self._polite_again_s = self._last_look_s

    @property
    def is_watched(self) -> bool:
        """Whether somebody waits for the uploads."""
        return self._watchers > 0

    def watch(self, count: int) -> None:
        """Somebody begins (1) or ends (-1) to wait for the uploads."""
        with self._counting:
            self._watchers += count
        if self._courier is not None:
            self._courier.hurry(count)  # it is one for all queues of the process, and counts who waits
        self._apply()

    def look(self, *, is_running: bool) -> None:
        """Give politeness up for a while on a machine that has no core to spare. Called every second or so.

        Args:
            is_running: Whether any upload runs; else that no byte moves says nothing.
        """
        if not self.is_possible:
            return
        now = self._clock.monotonic()
        if not is_running:
            self._meter.last_moved_s = now
        passed_s = max(now - self._last_look_s, 0.1)
        if passed_s < _LOOK_S and self._was_applied:  # each look takes training's interpreter lock some dozen times
            return
        is_starved = self._run_delay.longest_s() / passed_s > _STARVED_SHARE
        if self._courier is not None:
            is_starved |= self._courier_share.is_too_little(self._courier.pid, _TOO_LITTLE, passed_s)
        self._last_look_s = now
        is_stalled = now - self._meter.last_moved_s > _STALLED_S
        if self._polite_again_s <= now and (is_starved or is_stalled):
            self._polite_again_s = now + _IMPOLITE_S
        self._apply()  # also for threads that came into being with their first request

    def _apply(self) -> None:
        with self._setting:
            self._was_applied = True
            is_starved = self._clock.monotonic() < self._polite_again_s
            if self.is_possible:
                runtime.set_runtime_priority(polite=not self.is_watched and not is_starved)
            if self._courier is not None:
                self._courier.set_polite(polite=not is_starved, lowers=self.is_possible)
