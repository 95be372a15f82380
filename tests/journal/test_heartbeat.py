from __future__ import annotations

import json
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from artifactsync.errors import RemoteUnreachableError
from artifactsync.journal.heartbeat import Heart, is_alive, read_heartbeat
from artifactsync.journal.writer import WriterIdentity
from artifactsync.naming.layout import RunLayout
from artifactsync.testing import FakeClock, Fault, FaultyStore

if TYPE_CHECKING:
    from artifactsync.stores.protocol import Store

LAYOUT = RunLayout("demo")
ME = WriterIdentity.of_this_process()
ELSEWHERE = replace(ME, host="other", pid_space="another-machine")


def heart(store: Store, attempt: int = 1, interval_s: float = 10.0) -> Heart:
    return Heart(
        store, LAYOUT, attempt=attempt, writer=ELSEWHERE, gauge=lambda: {"local_step": 7}, interval_s=interval_s
    )


def test_what_is_written_is_read(store: Store) -> None:
    assert read_heartbeat(store, LAYOUT) is None
    beating = heart(store)
    beating.beat()
    beating.beat()
    beat = read_heartbeat(store, LAYOUT)
    assert beat
    assert (beat.attempt, beat.count, beat.writer, beat.gauge) == (1, 2, ELSEWHERE, {"local_step": 7})


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b"\xff", b'{"attempt": 1, "count": "x"}'])
def test_a_heartbeat_that_cannot_be_read_is_none(store: Store, data: bytes) -> None:
    store.put(LAYOUT.heartbeat, data)
    assert read_heartbeat(store, LAYOUT) is None


def test_a_store_that_fails_does_not_hurt_the_writer(store: Store) -> None:
    heart(FaultyStore(store, [Fault(kind="unreachable")])).beat()
    assert read_heartbeat(store, LAYOUT) is None


@pytest.mark.parametrize("wall_jump_s", [0.0, 3.2e8, -3.2e8])
@pytest.mark.parametrize("beats", [True, False])
def test_a_writer_elsewhere_is_watched_on_the_observers_own_clock(
    store: Store, beats: bool, wall_jump_s: float
) -> None:
    writer = heart(store)
    writer.beat()
    clock = FakeClock()
    clock.jump_wall(wall_jump_s)

    def sleep(seconds: float) -> None:
        clock.sleep(seconds)
        if beats and clock.monotonic() > 1009.0:
            writer.beat()

    alive = is_alive(store, LAYOUT, attempt=1, writer=ELSEWHERE, monotonic_s=clock.monotonic, sleep=sleep)
    assert alive is beats
    assert (clock.monotonic() - 1000.0 >= 25.0) is not beats


def test_a_heartbeat_of_another_attempt_says_nothing(store: Store) -> None:
    heart(store, attempt=1).beat()
    assert not is_alive(store, LAYOUT, attempt=2, writer=ELSEWHERE, sleep=lambda _: pytest.fail("waited"))


def test_a_lying_interval_does_not_hold_an_observer_for_ever(store: Store) -> None:
    heart(store, interval_s=1e9).beat()
    clock = FakeClock()
    assert not is_alive(store, LAYOUT, attempt=1, writer=ELSEWHERE, monotonic_s=clock.monotonic, sleep=clock.sleep)
    assert clock.monotonic() - 1000.0 < 200.0


def test_neighbours_are_looked_up(store: Store) -> None:
    def wait(_: float) -> None:
        pytest.fail("waited for a neighbour")

    assert is_alive(store, LAYOUT, attempt=1, writer=ME, sleep=wait)
    assert not is_alive(store, LAYOUT, attempt=1, writer=replace(ME, pid=2**22 - 1), sleep=wait)


def test_the_thread_beats_until_stopped(store: Store) -> None:
    beating = heart(store, interval_s=0.01)
    beating.start()
    while (beat := read_heartbeat(store, LAYOUT)) is None or beat.count < 3:
        pass
    beating.stop()
    last = store.get(LAYOUT.heartbeat)
    assert json.loads(last)["count"] >= 3
    assert store.get(LAYOUT.heartbeat) == last


def test_it_stops_when_a_later_attempt_is_alive_and_says_so_once(store: Store) -> None:
    told = threading.Event()
    old = heart(store, interval_s=0.01)
    heart(store, attempt=1).beat()  # its own
    old.start(told.set)
    assert not told.wait(0.1)
    later = heart(store, attempt=2)
    while not told.wait(0.01):
        later.beat()
    later.beat()
    old.stop()
    beat = read_heartbeat(store, LAYOUT)
    assert beat
    assert beat.attempt == 2


def test_what_the_journal_cannot_tell_does_not_hurt(store: Store) -> None:
    asked = threading.Event()

    def fail() -> None:
        asked.set()
        raise RemoteUnreachableError("no route", url=store.url)

    heart(store, attempt=2).beat()
    old = heart(store, interval_s=0.01)
    old.start(fail)
    while not asked.wait(0.01):
        heart(store, attempt=2).beat()
    old.stop()
