"""Each fault does what it says, when the plan says so, and the same again with the same seed."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from artifactsync import errors
from artifactsync.stores import create_once
from artifactsync.testing import FakeClock, Fault, FaultyStore
from artifactsync.testing.fault_plan import OPERATIONS
from tests.testing.dict_store import DictStore


def all_calls(store):
    return {
        "get": lambda: store.get("there"),
        "put": lambda: store.put("new", b"new"),
        "put_if_absent": lambda: store.put_if_absent("new", b"new"),
        "head": lambda: store.head("there"),
        "list": lambda: list(store.list()),
        "list_folders": store.list_folders,
        "delete": lambda: store.delete(["there"]),
        "copy": lambda: store.copy("there", "new"),
    }


@pytest.fixture
def below():
    store = DictStore()
    store.put("there", b"0123456789")
    return store


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("transient", errors.TransientStoreError),
        ("unreachable", errors.RemoteUnreachableError),
        ("permission", errors.PermissionDeniedError),
        ("credentials", errors.CredentialsError),
        ("disk-full", errors.DiskFullError),
    ],
)
def test_faults_before_change_nothing(below, operation, kind, error):
    store = FaultyStore(below, [Fault(kind=kind, retry_after_s=7.0)])
    before = dict(below.objects)
    with pytest.raises(error, match=f"injected: {operation} ") as caught:
        all_calls(store)[operation]()
    assert type(caught.value) is error
    assert caught.value.url.startswith("dict://root")
    assert below.objects == before
    if kind == "transient":
        assert caught.value.retry_after_s == 7.0


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_lost_response_comes_after_the_change(below, operation):
    store = FaultyStore(below, [Fault(kind="lost-response")])
    expected = errors.UnknownOutcomeError if operation == "put_if_absent" else errors.TransientStoreError
    with pytest.raises(expected):
        all_calls(store)[operation]()
    assert ("new" in below.objects) == (operation in {"put", "put_if_absent", "copy"})
    assert ("there" in below.objects) == (operation != "delete")


def test_a_listing_breaks_off_after_its_first_entry(below):
    below.put("and another", b"")
    listing = FaultyStore(below, [Fault(kind="lost-response")]).list()
    assert next(listing).key == "and another"
    with pytest.raises(errors.TransientStoreError):
        next(listing)


def test_latency_passes_on_the_clock(below):
    clock = FakeClock()
    store = FaultyStore(below, [Fault(kind="latency", latency_s=90.0, operations={"get"})], clock=clock)
    assert store.get("there") == b"0123456789"
    store.head("there")
    assert clock.sleeps_s == [90.0]


def test_truncation_is_silent(below):
    store = FaultyStore(below, [Fault(kind="truncated", times=1)])
    store.put("new", b"whole")
    assert store.get("there") == b"01234"
    assert store.get("there") == b"0123456789"
    assert below.objects["new"] == b"whole"


@pytest.mark.parametrize("operation", ["get", "put", "put_if_absent"])
def test_exactly_one_bit_is_flipped(below, operation):
    store = FaultyStore(below, [Fault(kind="flipped-bit", operations={operation})])
    data = bytes(5000)
    getattr(store, "put" if operation == "get" else operation)("new", data)
    assert (below.objects["new"] == data) == (operation == "get")
    seen = store.get("new")
    assert len(seen) == 5000
    assert sum(byte.bit_count() for byte in seen) == 1


def test_an_empty_object_has_no_bit_to_flip(below):
    store = FaultyStore(below, [Fault(kind="flipped-bit")])
    store.put("empty", b"")
    assert store.get("empty") == b""


def test_schedule_keys_operations_and_times(below):
    store = FaultyStore(
        below,
        [
            Fault(kind="transient", operations={"get"}, calls={2, 4}),
            Fault(kind="permission", keys="logs/*"),
            Fault(kind="credentials", operations={"head"}, times=2),
        ],
    )
    outcomes = []
    for _ in range(5):
        try:
            outcomes.append(len(store.get("there")))
        except errors.TransientStoreError:  # noqa: PERF203 each call may fail
            outcomes.append("x")
    assert outcomes == [10, "x", 10, "x", 10]
    with pytest.raises(errors.PermissionDeniedError):
        store.put("logs/a", b"")
    store.put("log", b"")
    for _ in range(2):
        with pytest.raises(errors.CredentialsError):
            store.head("there")
    assert store.head("there").size_bytes == 10
    assert store.calls == {"get": 5, "put": 2, "head": 3}
    assert store.faults_hit == 5


def faulty_calls(seed, order):
    """Which of 20 keys fail on which of their calls."""
    store = FaultyStore(DictStore(), [Fault(kind="transient", probability=0.3)], seed=seed)
    failed = set()
    for key, number in order:
        try:
            store.put(key, b"")
        except errors.TransientStoreError:  # noqa: PERF203 each call may fail
            failed.add((key, number))
    return failed


def test_the_same_seed_fails_the_same_calls_in_any_order():
    order = [(f"key{k}", n) for n in range(10) for k in range(20)]
    shuffled = sorted(order, key=lambda item: (random.Random(item[0]).random(), item[1]))
    first = faulty_calls(1, order)
    assert faulty_calls(1, shuffled) == first
    assert faulty_calls(2, order) != first
    assert 30 <= len(first) <= 90  # of 200


def test_hooks_see_every_call_before_and_after(below):
    seen = []
    store = FaultyStore(
        below,
        on_call=lambda call: seen.append(("before", call.operation, call.key, call.number, call.total)),
        on_answer=lambda call: seen.append(("after", call.operation, "new" in below.objects)),
    )
    store.head("there")
    store.put("new", b"1")
    assert seen == [
        ("before", "head", "there", 1, 1),
        ("after", "head", False),
        ("before", "put", "new", 1, 2),
        ("after", "put", True),
    ]


@pytest.mark.parametrize("hook", ["on_call", "on_answer"])
def test_killed_at_the_nth_call(below, hook):
    def kill(call):
        if call.total == 3:
            raise SystemExit

    store = FaultyStore(below, **{hook: kill})
    store.put("1", b"")
    store.put("2", b"")
    with pytest.raises(SystemExit):
        store.put("3", b"")
    assert ("3" in below.objects) == (hook == "on_answer")


def test_create_once_over_lost_and_failing_answers():
    faults = [
        Fault(kind="lost-response", probability=0.3),
        Fault(kind="transient", probability=0.3),
    ]
    clock = FakeClock()
    for seed in range(20):
        below = DictStore()
        store = FaultyStore(below, faults, seed=seed)
        create_once(store, "record", b"ours", sleep=clock.sleep, clock=clock.monotonic)
        assert below.objects == {"record": b"ours"}


def test_counting_from_many_threads(below):
    store = FaultyStore(below, [Fault(kind="transient", calls=range(1, 101))])

    def call(_):
        try:
            store.get("there")
        except errors.TransientStoreError:
            return 1
        return 0

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(call, range(400))) == 100
    assert store.calls["get"] == 400
