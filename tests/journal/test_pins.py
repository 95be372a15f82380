from __future__ import annotations

import json
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from artifactsync.journal.pins import PinKeeper, living_pins, read_pins
from artifactsync.journal.writer import WriterIdentity
from artifactsync.naming.layout import RunLayout
from artifactsync.testing import FakeClock, Fault, FaultyStore

if TYPE_CHECKING:
    from artifactsync.stores.protocol import Store

LAYOUT = RunLayout("demo")
ME = WriterIdentity.of_this_process()
DEAD = replace(ME, started="1")
ELSEWHERE = replace(ME, host="other", pid_space="another-machine")


def living(store: Store, clock: FakeClock | None = None, **more: object) -> list[int]:
    clock = clock or FakeClock()
    found = living_pins(store, LAYOUT, {1, 2}, monotonic_s=clock.monotonic, sleep=clock.sleep, **more)  # type: ignore[arg-type]
    return [pin.commit for pin in found]


def test_a_pin_comes_moves_and_goes(store: Store) -> None:
    keeper = PinKeeper(store, LAYOUT)
    assert keeper.pin(1)
    assert keeper.pin(2)
    assert [pin.commit for pin in read_pins(store, LAYOUT)] == [2]
    assert living(store) == [2]  # a neighbour is looked up at once
    keeper.release()
    keeper.refresh()
    assert read_pins(store, LAYOUT) == []


def test_a_role_that_may_not_write_goes_without(store: Store) -> None:
    keeper = PinKeeper(FaultyStore(store, [Fault(kind="permission", operations={"put", "delete"})]), LAYOUT)
    assert not keeper.pin(1)
    keeper.release()
    assert read_pins(store, LAYOUT) == []


def test_a_pin_is_kept_fresh(store: Store) -> None:
    keeper = PinKeeper(store, LAYOUT, interval_s=0.01)
    keeper.pin(1)
    first = read_pins(store, LAYOUT)[0].count
    for _ in range(10_000):
        if read_pins(store, LAYOUT)[0].count > first + 2:
            break
    else:
        pytest.fail("the pin does not move")
    keeper.release()


def test_what_is_over_soon_is_not_pinned(store: Store) -> None:
    counting = FaultyStore(store)
    keeper = PinKeeper(counting, LAYOUT)
    keeper.pin_unless_over(1, after_s=3600)
    keeper.release()
    assert counting.calls.total() == 0


def test_what_takes_long_is_pinned_and_kept_fresh(store: Store) -> None:
    written = threading.Semaphore(0)
    keeper = PinKeeper(FaultyStore(store, on_answer=lambda _: written.release()), LAYOUT, interval_s=0.01)
    keeper.pin_unless_over(1, after_s=0.01)
    for _ in range(3):
        assert written.acquire(timeout=30)
    assert [pin.commit for pin in read_pins(store, LAYOUT)] == [1]
    keeper.release()
    assert read_pins(store, LAYOUT) == []


def test_the_pin_of_a_dead_neighbour_holds_nothing(store: Store) -> None:
    PinKeeper(store, LAYOUT, writer=DEAD).pin(1)
    assert living(store) == []


def test_a_reader_elsewhere_is_watched_on_the_observers_own_clock(store: Store) -> None:
    class Moving(FakeClock):
        def sleep(self, seconds: float, /) -> None:
            super().sleep(seconds)
            alive.refresh()

    alive = PinKeeper(store, LAYOUT, writer=ELSEWHERE)
    alive.pin(1)
    PinKeeper(store, LAYOUT, writer=ELSEWHERE).pin(2)  # nobody refreshes it
    clock = Moving()
    began = clock.monotonic()
    assert living(store, clock) == [1]
    assert 25 <= clock.monotonic() - began < 27
    assert sorted(living(store, is_patient=False)) == [1, 2]
    alive.release()


def test_a_pin_that_is_taken_away_is_waited_for_no_longer(store: Store) -> None:
    keeper = PinKeeper(store, LAYOUT, writer=ELSEWHERE)
    keeper.pin(1)

    class Leaving(FakeClock):
        def sleep(self, seconds: float, /) -> None:
            super().sleep(seconds)
            keeper.release()

    clock = Leaving()
    began = clock.monotonic()
    assert living(store, clock) == []
    assert clock.monotonic() - began <= 1


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b'{"commit": "x", "count": 1, "interval_s": 1, "writer": {}}',
        b'{"commit": 1, "count": 1, "interval_s": 1, "writer": 7}',
        b'{"commit": Infinity, "count": 1, "interval_s": 1, "writer": {}}',
    ],
)
def test_what_is_no_pin_is_not_heeded(store: Store, data: bytes) -> None:
    store.put(LAYOUT.pin("x"), data)
    assert read_pins(store, LAYOUT) == []


def test_a_hostile_pin_holds_a_prune_up_for_minutes_at_most(store: Store) -> None:
    pin = {"commit": 1, "count": 1, "interval_s": 1e300, "writer": {}}
    store.put(LAYOUT.pin("x"), json.dumps(pin).encode())
    clock = FakeClock()
    began = clock.monotonic()
    assert living(store, clock) == []
    assert clock.monotonic() - began <= 160
