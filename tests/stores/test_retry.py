from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from artifactsync.errors import (
    ObjectNotFoundError,
    PermissionDeniedError,
    RemoteUnreachableError,
    TransientStoreError,
    UnknownOutcomeError,
)
from artifactsync.stores import BytesBody, LimitStore, PrefixStore, RetryPolicy, RetryStore, open_store
from artifactsync.stores.local import LocalStore
from artifactsync.testing import FakeClock, Fault, FaultyStore


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def inner(tmp_path):
    return LocalStore(tmp_path / "remote")


def retrying(store, clock, **policy):
    return RetryStore(store, RetryPolicy(**policy), sleep=clock.sleep, clock=clock.monotonic)


OPERATIONS = {
    "get": lambda s: s.get("a"),
    "put": lambda s: s.put("b", BytesBody(b"bytes")),
    "head": lambda s: s.head("a"),
    "list": lambda s: [i.key for i in s.list()],
    "list_folders": lambda s: s.list_folders(),
    "delete": lambda s: s.delete(iter(["a"])),
    "copy": lambda s: s.copy("a", "c"),
}


@pytest.mark.parametrize("kind", ["transient", "unreachable", "lost-response"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_idempotent_requests_are_sent_until_they_are_through(inner, clock, operation, kind):
    inner.put("a", b"1")
    inner.put("d/e", b"1")
    expected = OPERATIONS[operation](LocalStore(inner.root))
    inner.put("a", b"1")
    faulty = FaultyStore(inner, [Fault(kind=kind, calls=(1, 2))])
    result = OPERATIONS[operation](retrying(faulty, clock))
    assert faulty.calls[operation] == 3
    assert len(clock.sleeps_s) == 2
    if operation in {"get", "list", "list_folders"}:
        assert result == expected


@pytest.mark.parametrize("kind", ["transient", "lost-response", "unreachable"])
def test_create_only_writes_are_sent_once(inner, clock, kind):
    faulty = FaultyStore(inner, [Fault(kind=kind)])
    with pytest.raises((TransientStoreError, UnknownOutcomeError)):
        retrying(faulty, clock).put_if_absent("a", b"1")
    assert faulty.calls["put_if_absent"] == 1
    assert clock.sleeps_s == []


def test_definite_errors_are_raised_at_once(inner, clock):
    faulty = FaultyStore(inner, [Fault(kind="permission")])
    with pytest.raises(PermissionDeniedError):
        retrying(faulty, clock).head("a")
    with pytest.raises(ObjectNotFoundError):
        retrying(inner, clock).head("a")
    assert clock.sleeps_s == []


def test_the_server_says_how_long_to_wait(inner, clock):
    inner.put("a", b"1")
    faulty = FaultyStore(inner, [Fault(kind="transient", retry_after_s=7.5, times=2)])
    retrying(faulty, clock, base_delay_s=0.1).head("a")
    assert clock.sleeps_s == [7.5, 7.5]


def test_a_server_that_asks_for_more_than_the_deadline_is_given_up_at_once(inner, clock):
    faulty = FaultyStore(inner, [Fault(kind="transient", retry_after_s=3600)])
    with pytest.raises(TransientStoreError):
        retrying(faulty, clock).head("a")
    assert clock.sleeps_s == []


def test_pauses_grow_are_jittered_and_bounded():
    policy = RetryPolicy(base_delay_s=0.5, max_delay_s=4)
    error = TransientStoreError("busy")
    longest = [policy.pause_s(n, error, jitter=lambda: 1.0) for n in range(1, 7)]
    assert longest == [0.5, 1, 2, 4, 4, 4]
    assert policy.pause_s(10**6, error, jitter=lambda: 1.0) == 4
    assert policy.pause_s(3, error, jitter=lambda: 0.25) == 0.5
    drawn = {policy.pause_s(5, error) for _ in range(20)}
    assert len(drawn) > 1
    assert all(0 <= pause <= 4 for pause in drawn)


def test_the_last_error_is_raised_after_the_last_attempt(inner, clock):
    faulty = FaultyStore(inner, [Fault(kind="transient")])
    with pytest.raises(TransientStoreError):
        retrying(faulty, clock, max_attempts=4).head("a")
    assert faulty.calls["head"] == 4


def test_no_attempt_begins_after_the_deadline(inner, clock):
    faulty = FaultyStore(inner, [Fault(kind="transient", retry_after_s=4)])
    began = clock.monotonic()
    with pytest.raises(TransientStoreError):
        retrying(faulty, clock, max_attempts=100, deadline_s=10).head("a")
    assert clock.monotonic() - began <= 10
    assert faulty.calls["head"] == 3


def test_a_remote_that_never_answered_is_given_up_soon_and_one_that_did_is_not(inner, clock):
    inner.put("a", b"1")
    slow_death = [Fault(kind="latency", latency_s=5), Fault(kind="unreachable")]
    faulty = FaultyStore(inner, slow_death, clock=clock)
    began = clock.monotonic()
    with pytest.raises(RemoteUnreachableError):
        retrying(faulty, clock).head("a")
    assert clock.monotonic() - began <= 15

    dying = FaultyStore(inner, [Fault(kind="unreachable", calls=range(2, 6))])
    store = retrying(dying, clock, base_delay_s=8, max_delay_s=8, deadline_s=600)
    store.head("a")
    store.head("a")
    assert dying.calls["head"] == 6


def test_a_broken_listing_goes_on_without_doubles(inner, clock):
    keys = [f"k{n:02d}" for n in range(12)]
    for key in keys:
        inner.put(key, b"")
    for is_ordered in (True, False):
        faulty = FaultyStore(inner, [Fault(kind="lost-response", operations=("list",), times=5)])
        store = retrying(faulty, clock)
        store.ordered_listing = is_ordered
        assert [info.key for info in store.list()] == keys
        assert faulty.calls["list"] == 6


def test_close_ends_a_pause(inner):
    faulty = FaultyStore(inner, [Fault(kind="transient", retry_after_s=300)])
    store = RetryStore(faulty, RetryPolicy(deadline_s=1000))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(store.head, "a")
        while not faulty.calls["head"]:
            pass
        store.close()
        with pytest.raises(TransientStoreError):
            waiting.result(20)


def test_a_hundred_uploads_with_thirty_percent_failing_are_all_there(inner, clock):
    kinds = ("transient", "lost-response", "unreachable")
    faulty = FaultyStore(inner, [Fault(kind=kind, probability=0.12) for kind in kinds], seed=7)
    store = retrying(faulty, clock, deadline_s=1e9, unanswered_deadline_s=1e9, max_attempts=20)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: store.put(f"f{n}", b"%d" % n), range(100)))
    assert faulty.faults_hit >= 20
    assert {info.key: inner.get(info.key) for info in inner.list()} == {f"f{n}": b"%d" % n for n in range(100)}


def test_the_default_stack_says_what_it_is(tmp_path):
    store = open_store(tmp_path, bandwidth_limit_bytes_per_s=1e9)
    assert isinstance(store, RetryStore)
    assert isinstance(store.store, LimitStore)
    assert isinstance(open_store("memory://retry/prefix"), PrefixStore)
