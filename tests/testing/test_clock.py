"""The clock that waits to be told."""

from __future__ import annotations

import threading

import pytest

from artifactsync.testing import FakeClock


def test_time_stands_still_until_it_is_moved():
    clock = FakeClock(start_s=10.0, wall_s=100.0)
    assert (clock.monotonic(), clock.time(), clock.wall()) == (10.0, 100.0, 100.0)
    clock.advance(2.5)
    assert (clock.monotonic(), clock.time()) == (12.5, 102.5)


def test_sleep_returns_at_once_and_moves_time():
    clock = FakeClock()
    began = clock.monotonic()
    clock.sleep(3600)
    clock.sleep(0)
    assert clock.monotonic() - began == 3600
    assert clock.sleeps_s == [3600, 0]


def test_the_wall_clock_may_jump_and_the_other_does_not():
    clock = FakeClock(start_s=10.0, wall_s=100.0)
    clock.jump_wall(-50)
    assert (clock.monotonic(), clock.time()) == (10.0, 50.0)


def test_time_does_not_go_back():
    clock = FakeClock()
    for move in (clock.advance, clock.sleep):
        with pytest.raises(ValueError, match=r"non-negative|does not go back"):
            move(-1)
    assert clock.sleeps_s == []


def test_threads_lose_no_time():
    clock = FakeClock(start_s=0)
    threads = [threading.Thread(target=lambda: [clock.sleep(1) for _ in range(1000)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert clock.monotonic() == len(clock.sleeps_s) == 4000
