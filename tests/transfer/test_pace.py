from __future__ import annotations

import threading
import time

import pytest

from artifactsync.stores import open_store
from artifactsync.testing import Call, FaultyStore
from artifactsync.transfer.pace import SMALL_BYTES, Pace
from artifactsync.transfer.queue import UploadQueue


def after(pace: Pace, times: int, wall_s: float, cpu_s: float) -> int:
    for _ in range(times):
        pace.note(wall_s, cpu_s)
    return pace.limit


def test_where_an_answer_takes_no_longer_than_the_work_one_at_a_time_is_enough():
    assert after(Pace(8), 16, 0.0002, 0.00015) == 1


@pytest.mark.parametrize(("wall_s", "limit"), [(0.0005, 3), (0.0012, 8), (0.02, 8), (10.0, 8)])
def test_the_longer_an_answer_takes_the_more_at_a_time(wall_s, limit):
    assert after(Pace(8), 16, wall_s, 0.00015) == limit


def test_until_enough_were_seen_as_many_as_may():
    assert after(Pace(8), 15, 0.0002, 0.0002) == 8


def test_one_that_waited_for_a_core_says_nothing_of_the_network():
    pace = Pace(8)
    assert after(pace, 15, 0.003, 0.0002) == 8
    assert after(pace, 1, 0.0002, 0.0002) == 1


def test_a_network_that_becomes_slow_is_seen_after_a_few():
    pace = Pace(8)
    after(pace, 16, 0.0002, 0.0002)
    assert after(pace, 3, 0.02, 0.0002) == 1
    assert pace.note(0.02, 0.0002)
    assert pace.limit == 8


def test_no_measured_work_is_no_error():
    assert after(Pace(4), 16, 0.0, 0.0) == 1


class Quick(Pace):
    """It has seen quick uploads, and judges no more of them."""

    def __init__(self, most: int, *, opens: bool = True) -> None:
        super().__init__(most)
        self.limit, self.opens = 1, opens

    def note(self, wall_s: float, cpu_s: float) -> bool:
        return False

    def open_up(self) -> None:
        if self.opens:
            super().open_up()


class Waiting(FaultyStore):
    can_begin = False  # each worker waits for its answer


def quick_queue(on_call, *, opens=True):
    queue = UploadQueue(Waiting(open_store("memory://pace"), on_call=on_call), max_concurrency=4)
    queue._workers._pace = Quick(4, opens=opens)
    return queue


def test_small_ones_run_one_at_a_time_while_they_are_quick(make_file):
    running: list[str] = []

    def count(call: Call) -> None:
        running.append(call.key)
        assert len(running) == 1
        time.sleep(0.001)  # others would come, if they did
        running.clear()

    path = make_file("x")
    with quick_queue(count, opens=False) as queue:
        for number in range(100):
            queue.submit(f"k{number}", path)
        queue.wait(60)


def test_one_that_hangs_holds_no_other_up(make_file):
    first, others = threading.Event(), threading.Semaphore(0)

    def hang(call: Call) -> None:
        if call.key == "first":
            assert first.wait(60)
        else:
            others.release()

    path = make_file("x")
    with quick_queue(hang) as queue:
        queue.submit("first", path)
        for number in range(10):
            queue.submit(f"k{number}", path)
        for _ in range(10):
            assert others.acquire(timeout=60)
        first.set()
        queue.wait(60)


def test_a_large_one_holds_no_small_one_up(make_file):
    large, small = threading.Event(), threading.Event()

    def hold(call: Call) -> None:
        if call.key == "large":
            assert large.wait(60)
        else:
            small.set()

    with quick_queue(hold, opens=False) as queue:
        queue.submit("large", make_file("large", SMALL_BYTES + 1))
        queue.submit("small", make_file("small"))
        assert small.wait(60)
        large.set()
        queue.wait(60)
