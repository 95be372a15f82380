"""Which batches are profiled.

Invariant: it depends on the batch within the epoch alone, as Composer's does, so a resumed run profiles what the
uninterrupted one would have.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from artifactsync.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from artifactsync.training.state import State


class ProfilerAction(str, enum.Enum):
    """What is done with a batch."""

    SKIP = "skip"
    """Nothing is recorded."""
    WARMUP = "warmup"
    """Recording runs, so that its start is not in the traces, and is thrown away."""
    ACTIVE = "active"
    """It is recorded."""
    ACTIVE_AND_SAVE = "active_and_save"
    """It is recorded, and the trace is written after it."""


def cyclic_schedule(
    skip_first: int = 0, wait: int = 0, warmup: int = 1, active: int = 4, repeat: int = 1
) -> Callable[[State], ProfilerAction]:
    """Skip the first batches of an epoch, then repeat: wait, warm up, record.

    Args:
        skip_first: Batches skipped at the start of each epoch.
        wait: Batches skipped in each cycle.
        warmup: Batches that are recorded and thrown away in each cycle.
        active: Batches that are recorded in each cycle; a trace is written after the last.
        repeat: Cycles in an epoch; 0 goes on until its end.

    Raises:
        ConfigurationError: a number is negative, or nothing would be recorded.
    """
    numbers = {"skip_first": skip_first, "wait": wait, "warmup": warmup, "active": active, "repeat": repeat}
    for name, number in numbers.items():
        if number < 0 or (name == "active" and number == 0):
            raise ConfigurationError(
                f"cyclic_schedule({name}={number}) makes no sense", hint=f"{name} counts batches or cycles"
            )
    cycle = wait + warmup + active

    def action(state: State) -> ProfilerAction:
        batch = state.timestamp.batch_in_epoch - skip_first
        place = batch % cycle
        if batch < 0 or (repeat and batch >= repeat * cycle) or place < wait:
            return ProfilerAction.SKIP
        if place < wait + warmup:
            return ProfilerAction.WARMUP
        return ProfilerAction.ACTIVE_AND_SAVE if place == cycle - 1 else ProfilerAction.ACTIVE

    return action
