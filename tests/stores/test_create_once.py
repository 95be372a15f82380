from __future__ import annotations

import pytest

from artifactsync.errors import (
    AlreadyExistsError,
    PermissionDeniedError,
    RemoteUnreachableError,
    TransientStoreError,
    UnknownOutcomeError,
)
from artifactsync.stores import RetryPolicy, create_once, open_store
from artifactsync.stores.local import LocalStore
from artifactsync.testing import FakeClock, Fault, FaultyStore
from tests.fault_proxy import LoseAnswer, ResetUpload


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def inner(tmp_path):
    return LocalStore(tmp_path)


def create(store, clock, data=b"mine", **policy):
    return create_once(store, "record", data, policy=RetryPolicy(**policy), sleep=clock.sleep, clock=clock.monotonic)


def test_a_plain_success_is_one_request(inner, clock):
    store = FaultyStore(inner, [])
    assert create(store, clock).size_bytes == 4
    assert store.calls.total() == 1


def test_a_lost_answer_is_read_back(inner, clock):
    store = FaultyStore(inner, [Fault(kind="lost-response", operations=("put_if_absent",))])
    assert create(store, clock).size_bytes == 4
    assert inner.get("record") == b"mine"
    assert store.calls == {"put_if_absent": 1, "get": 1}


@pytest.mark.parametrize("kind", ["transient", "unreachable"])
def test_what_was_not_written_is_tried_again(inner, clock, kind):
    store = FaultyStore(inner, [Fault(kind=kind, operations=("put_if_absent",), times=3)])
    create(store, clock)
    assert store.calls["put_if_absent"] == 4


def test_a_failing_read_back_is_tried_again(inner, clock):
    faults = [
        Fault(kind="lost-response", operations=("put_if_absent",), times=1),
        Fault(kind="transient", operations=("get",), times=2),
    ]
    create(FaultyStore(inner, faults), clock)
    assert inner.get("record") == b"mine"


@pytest.mark.parametrize("other", [b"other", b"mine and more", b"", b"min"])
def test_somebody_elses_record_is_left_alone(inner, clock, other):
    inner.put("record", other)
    with pytest.raises(AlreadyExistsError, match="other bytes"):
        create(inner, clock)
    assert inner.get("record") == other


def test_losing_a_race_with_a_lost_answer(inner, clock):
    faults = [Fault(kind="lost-response", operations=("put_if_absent",))]
    inner.put("record", b"other")
    with pytest.raises(AlreadyExistsError):
        create(FaultyStore(inner, faults), clock)


def test_a_remote_that_stays_silent_leaves_it_unknown(inner, clock):
    faults = [
        Fault(kind="lost-response", operations=("put_if_absent",), times=1),
        Fault(kind="unreachable", operations=("get",)),
        Fault(kind="unreachable", operations=("put_if_absent",), calls=range(2, 99)),
    ]
    with pytest.raises(UnknownOutcomeError):
        create(FaultyStore(inner, faults), clock, max_attempts=5)


def test_a_remote_that_was_never_reached_is_given_up_soon(inner, clock):
    store = FaultyStore(inner, [Fault(kind="latency", latency_s=5), Fault(kind="unreachable")], clock=clock)
    began = clock.monotonic()
    with pytest.raises(RemoteUnreachableError):
        create(store, clock)
    assert clock.monotonic() - began <= 15


def test_patience_ends_with_the_attempts(inner, clock):
    store = FaultyStore(inner, [Fault(kind="transient", operations=("put_if_absent",))])
    with pytest.raises(TransientStoreError):
        create(store, clock, max_attempts=3)
    assert store.calls["put_if_absent"] == 3
    assert list(inner.list()) == []


def test_definite_refusals_are_raised_at_once(inner, clock):
    store = FaultyStore(inner, [Fault(kind="permission")])
    with pytest.raises(PermissionDeniedError):
        create(store, clock)
    assert store.calls.total() == 1


@pytest.mark.parametrize("fault", [LoseAnswer(), ResetUpload(0)])
def test_on_a_real_server_behind_a_bad_line(s3, fault_proxy, fault):
    line = fault_proxy(s3)
    store = open_store(line.fresh_url(), line.storage_options)
    line.proxy.add(fault, method="PUT", times=1)
    create_once(store, "record", b"mine")
    assert store.get("record") == b"mine"
    with pytest.raises(AlreadyExistsError):
        create_once(store, "record", b"other")
    assert store.get("record") == b"mine"
