from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from artifactsync.errors import ConfigurationError
from artifactsync.stores import BytesBody, LimitStore
from artifactsync.stores.limit import Pace
from artifactsync.stores.local import LocalStore
from artifactsync.testing import FakeClock, FaultyStore

_MIB = 2**20


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def inner(tmp_path):
    return LocalStore(tmp_path)


def paced(inner, clock, bytes_per_s):
    return LimitStore(inner, pace=Pace(bytes_per_s, sleep=clock.sleep, clock=clock.monotonic))


def test_a_large_body_takes_its_time(inner, clock):
    began = clock.monotonic()
    data = bytes(40 * _MIB)
    paced(inner, clock, 4 * _MIB).put("a", BytesBody(data))
    # The last chunk of 1 MiB leaves when the 39 before it are paid for.
    assert clock.monotonic() - began == pytest.approx(9.75)
    assert inner.get("a") == data


def test_small_objects_share_the_line(inner, clock):
    store = paced(inner, clock, 1000)
    began = clock.monotonic()
    for number in range(5):
        store.put(f"f{number}", bytes(500))
        store.put_if_absent(f"g{number}", bytes(500))
    assert clock.monotonic() - began == pytest.approx(4.5)


def test_downloads_count_too(inner, clock):
    inner.put("a", bytes(2000))
    store = paced(inner, clock, 1000)
    began = clock.monotonic()
    assert len(store.get("a")) == 2000
    store.get("a", end=1)
    assert clock.monotonic() - began == pytest.approx(2.0)


def test_an_idle_line_saves_nothing_up(inner, clock):
    store = paced(inner, clock, 1000)
    store.put("a", bytes(1000))
    clock.advance(3600)
    began = clock.monotonic()
    store.put("b", bytes(1000))
    store.put("c", bytes(1000))
    assert clock.monotonic() - began == pytest.approx(1.0)


def test_no_more_requests_at_a_time_than_allowed(inner):
    running, highest, lock, three = 0, 0, threading.Lock(), threading.Barrier(3)

    def count(_call):
        nonlocal running, highest
        with lock:
            running += 1
            highest = max(highest, running)
        three.wait(20)  # goes on only when three run at the same time: the limit is reached, not only kept
        with lock:
            running -= 1

    store = LimitStore(FaultyStore(inner, on_call=count), max_concurrency=3)
    with ThreadPoolExecutor(9) as pool:
        list(pool.map(lambda n: store.put(f"f{n}", b"x"), range(9)))
    assert highest == 3


def test_reading_a_listing_slowly_blocks_nobody(inner):
    for number in range(3):
        inner.put(f"f{number}", b"")
    store = LimitStore(inner, max_concurrency=1)
    names = []
    for info in store.list():
        names.append(info.key)
        store.head(info.key)
    assert names == ["f0", "f1", "f2"]


@pytest.mark.parametrize("options", [{"bytes_per_s": 0}, {"bytes_per_s": -1}, {"max_concurrency": 0}])
def test_limits_that_let_nothing_pass_are_refused(inner, options):
    with pytest.raises(ConfigurationError):
        LimitStore(inner, **options)
