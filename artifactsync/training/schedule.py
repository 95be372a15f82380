"""When something is due that happens every so much training time.

Invariant: what is due depends on the timestamps alone, so a resumed run does it at the same batches.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from artifactsync.errors import ConfigurationError
from artifactsync.training.event import Event
from artifactsync.training.time import Time, TimeUnit

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import timedelta

    from artifactsync.training.state import State


class IntervalSchedule:
    """True at the batch or epoch end that completes another interval, and at the end of training.

    Args:
        interval: ``"1ep"``, ``"100ba"``, ``"0.25dur"``, ``"10min"`` …; a bare number counts epochs.
        at_end: Whether the end of training is due whatever the interval.

    Raises:
        ConfigurationError: not a positive training time.
    """

    def __init__(self, interval: Time | str | float | timedelta, *, at_end: bool = True) -> None:
        self.interval = Time.of(interval)
        if self.interval.value <= 0:
            raise ConfigurationError(f"the interval {interval!r} is not positive", hint='for example "1ep" or "100ba"')
        self._at_end = at_end
        self._done: int | None = None

    def start(self, state: State) -> None:
        """Training begins, or goes on after a resume: intervals completed before are not due again."""
        self._done = self._completed(state)

    def is_due(self, state: State, event: Event) -> bool:
        """Whether it is due at ``event``, which is ``BATCH_CHECKPOINT``, ``BATCH_END`` or their epoch twins."""
        is_epoch_event = event in (Event.EPOCH_CHECKPOINT, Event.EPOCH_END)
        if self._at_end and state.is_done and (is_epoch_event or not state.is_epoch_over):
            return True
        if self._at_end and not is_epoch_event and state.is_last_epoch_over:
            return False  # the end of this epoch follows at once, is the end of training, and is due
        if is_epoch_event != (self.interval.unit is TimeUnit.EPOCH):
            return False
        completed = self._completed(state)
        before, self._done = self._done, completed
        return completed > (before or 0)

    def _completed(self, state: State) -> int:
        """How many whole intervals are done."""
        if self.interval.unit is TimeUnit.DURATION:
            return int(state.progress / self.interval.value + 1e-9)
        return int(state.timestamp.count(self.interval.unit) / self.interval.value)


class CustomSchedule:
    """A schedule given as ``function(state, event) -> bool``.

    Args:
        function: The user's own.
    """

    def __init__(self, function: Callable[[State, Event], bool]) -> None:
        self._function = function

    def start(self, state: State) -> None:
        """Nothing to prepare."""

    def is_due(self, state: State, event: Event) -> bool:
        """What the function says."""
        return bool(self._function(state, event))


def schedule_of(interval: Any, *, at_end: bool = True) -> IntervalSchedule | CustomSchedule:
    """The schedule for an interval or a function."""
    if callable(interval):
        return CustomSchedule(interval)
    return IntervalSchedule(interval, at_end=at_end)
