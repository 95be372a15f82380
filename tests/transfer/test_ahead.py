"""Many small requests under way on one thread: uploads and pulls, over a line that fails and one that is far away."""

from __future__ import annotations

import bisect
import hashlib
import os
import threading
import time

import pytest

from artifactsync.errors import DestinationError, MissingBytesError, PermissionDeniedError, TransientStoreError
from artifactsync.stores import RetryPolicy, open_store
from artifactsync.stores.ahead import AHEAD_BYTES, NotYetError, begin_get, begin_put, can_begin
from artifactsync.testing import Fault, FaultyStore
from artifactsync.transfer.ahead import MOST, work_ahead
from artifactsync.transfer.pull import PullItem, pull_files
from artifactsync.transfer.queue import UploadQueue
from tests.crash.test_wire_faults import spoil, wishes_of
from tests.fault_proxy import Answer, BlackHole, Hold, LoseAnswer, ResetDownload

from .conftest import DEADLINE_S

_PATIENT = RetryPolicy(max_attempts=1000, deadline_s=300, base_delay_s=0.01, max_delay_s=0.1, unanswered_deadline_s=300)
_LATENCY_S = 0.05
_WRITES = {"PUT", "POST"}


class Line:
    """As many requests under way as there are lanes."""

    def __init__(self, lanes):
        self.lanes = lanes
        self.under_way = self.most = 0
        self.ended = []

    def begin(self, item, is_alone):
        if self.under_way >= self.lanes:
            assert not is_alone or not self.lanes
            return (lambda: self.ended.append(item)) if is_alone else None
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        return lambda: self.end(item)

    def end(self, item):
        self.under_way -= 1
        self.ended.append(item)


@pytest.mark.parametrize("lanes", [0, 1, 3, 1000])
def test_every_item_is_ended_once_and_in_order(lanes):
    line = Line(lanes)
    work_ahead(iter(range(500)), line.begin)
    assert line.ended == list(range(500))
    assert line.most == min(lanes, MOST)


def test_where_there_is_nothing_to_begin_answers_are_read():
    line = Line(10)
    ended = []

    def items():
        yield from range(3)
        for _ in range(3):
            ended.append(len(line.ended))
            yield None
        ended.append(len(line.ended))
        yield 3
        yield None
        yield None

    work_ahead(items(), line.begin)
    assert ended == [0, 1, 2, 3]
    assert line.ended == [0, 1, 2, 3]


def test_what_is_under_way_is_ended_when_the_items_break_off():
    line = Line(10)

    def items():
        yield from range(5)
        raise KeyError

    with pytest.raises(KeyError):
        work_ahead(items(), line.begin)
    assert line.ended == list(range(5))


def test_more_lanes_are_found_soon():
    line = Line(1)

    def items():
        for number in range(200):
            line.lanes = 1 if number < 100 else 40
            yield number

    work_ahead(items(), line.begin)
    assert line.most == 40


def test_fewer_are_under_way_where_answers_are_late():
    line, late, under_way = Line(1000), set(), []

    def begin(item, is_alone):
        if len(late) == 3:
            under_way.append(line.under_way)
        end = line.begin(item, is_alone)

        def end_late():
            if item < 3 and item not in late:
                late.add(item)
                raise NotYetError
            end()

        return end_late

    work_ahead(iter(range(300)), begin)
    assert sorted(line.ended) == list(range(300))
    assert late == {0, 1, 2}
    assert under_way[0] <= MOST // 8 + 3  # halved three times, and the late ones beside
    assert line.ended[0] == 3  # the late ones do not hold the others up


@pytest.fixture(params=["s3", "gcs"])
def cloud(request):
    """SeaweedFS, and fake-gcs-server."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def far(cloud, fault_proxy):
    """A server on a line with latency."""
    line = fault_proxy(cloud)
    store = open_store(line.fresh_url(), line.storage_options)
    store.put("first", b"contact")
    line.proxy.latency_s = _LATENCY_S
    yield store, line.proxy
    store.close()


def _at_a_time(requests):
    """Each is under way for the latency at least: those that arrive within it are at the same time."""
    at_s = sorted(request.at_s for request in requests)
    return max(bisect.bisect_left(at_s, at + _LATENCY_S) - number for number, at in enumerate(at_s))


def test_small_files_share_the_latency_of_a_far_store(far, tmp_path):
    store, line = far
    files = {f"f{n}": os.urandom(n) for n in range(400)}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    with UploadQueue(store) as queue:
        for name in files:
            queue.submit(f"run/{name}", tmp_path / name)
    assert _at_a_time([request for request in line.seen() if request.method in _WRITES]) > 24
    items = [PullItem(key=f"run/{name}", path=name, size_bytes=len(data)) for name, data in files.items()]
    line.forget()
    pull_files(store, items, tmp_path / "back")
    assert {path.name: path.read_bytes() for path in (tmp_path / "back").iterdir()} == files
    assert _at_a_time(line.seen(method="GET")) > 24
    assert len(line.seen(method="GET")) == len(files)


def test_one_at_a_time_if_asked(far, tmp_path):
    store, line = far
    (tmp_path / "f").write_bytes(b"f")
    with UploadQueue(store, max_concurrency=1) as queue:
        for number in range(10):
            queue.submit(f"run/{number}", tmp_path / "f")
    assert _at_a_time([request for request in line.seen() if request.method in _WRITES][1:]) == 1


@pytest.mark.parametrize("seed", [1, 2])
def test_a_line_that_fails_a_third_of_all_requests_loses_nothing(cloud, fault_proxy, tmp_path, seed):
    line = fault_proxy(cloud, seed=seed)
    store = open_store(line.fresh_url(), line.storage_options, retry=_PATIENT)
    files = {f"f{n}": os.urandom(n * 37) for n in range(300)}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    store.put("first", b"contact")
    spoil(line.proxy)
    with UploadQueue(store) as queue:
        sent = {name: queue.submit(f"run/{name}", tmp_path / name) for name in files}
        queue.wait(120)
    assert {name: upload.result().sha256 for name, upload in sent.items()} == {
        name: hashlib.sha256(data).hexdigest() for name, data in files.items()
    }
    wishes, early, _, _ = wishes_of(line.proxy, [])
    assert wishes > 5
    assert early == 0 or cloud.server.scheme == "gs"  # whose requests do not say which object they write
    line.proxy.forget()
    items = [
        PullItem(key=f"run/{name}", path=name, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
        for name, data in files.items()
    ]
    pull_files(store, items, tmp_path / "back")
    assert {path.name: path.read_bytes() for path in (tmp_path / "back").iterdir()} == files
    wishes, early, _, _ = wishes_of(line.proxy, [])
    assert wishes > 5
    assert early == 0
    store.close()


def test_an_answer_that_never_comes_holds_no_other_up(cloud, fault_proxy, tmp_path):
    line = fault_proxy(cloud)
    store = open_store(line.fresh_url(), line.storage_options)
    store.put("first", b"contact")
    release = threading.Event()
    for number in range(60):
        (tmp_path / f"f{number}").write_bytes(os.urandom(10))
    with UploadQueue(store) as queue:
        queue.submit("run/0", tmp_path / "f0").result(DEADLINE_S)
        line.proxy.add(Hold(release), when=lambda request: request.method in _WRITES, skip=10, times=1)
        sent = [queue.submit(f"run/{number}", tmp_path / f"f{number}") for number in range(60)]
        end_s = time.monotonic() + DEADLINE_S
        while sum(upload.done() for upload in sent) < 59:
            assert time.monotonic() < end_s
            time.sleep(0.01)
        assert len(line.proxy.seen(when=lambda request: request.method in _WRITES)) == 62
        release.set()
        queue.wait(60)
    assert len(list(store.list("run/"))) == 60
    store.close()


def test_an_answer_that_never_comes_is_waited_for_no_longer_than_others(s3, fault_proxy, tmp_path, monkeypatch):
    monkeypatch.setattr("artifactsync.stores.s3_wire.SHORT_TIMEOUT_S", 1.5)
    line = fault_proxy(s3)
    store = open_store(line.fresh_url(), line.storage_options)
    store.put("first", b"contact")
    line.proxy.add(BlackHole(), contains="f20", times=1)
    for number in range(60):
        (tmp_path / f"f{number}").write_bytes(os.urandom(10))
    with UploadQueue(store) as queue:
        for number in range(60):
            queue.submit(f"run/f{number}", tmp_path / f"f{number}")
        queue.wait(60)
    assert len(list(store.list("run/"))) == 60
    assert len(line.proxy.seen(method="PUT", contains="run/f20")) == 2
    store.close()


def test_a_refusal_for_good_is_told_after_one_try(store, make_file):
    faulty = FaultyStore(store, [Fault(kind="permission", operations={"put"}, keys="b")])
    with UploadQueue(faulty) as queue:
        sent = [queue.submit(name, make_file(name)) for name in "abc"]
        assert isinstance(sent[1].exception(DEADLINE_S).__cause__, PermissionDeniedError)
        assert (sent[0].exception(DEADLINE_S), sent[2].exception(DEADLINE_S)) == (None, None)
        assert sent[1].attempts == 1


def test_one_failing_request_is_no_news_and_shows_while_it_lasts(store, make_file, caplog):
    seen = []

    class Failing(FaultyStore):
        def begin_put(self, key, data, *, sha256):
            def answer():
                raise TransientStoreError("503")

            return answer

        def put(self, key, body):
            seen.append(queue.status().last_error)
            return super().put(key, body)

    with UploadQueue(Failing(store)) as queue:
        queue.submit("k", make_file("k")).result(DEADLINE_S)
    assert seen == ["503"]
    assert queue.status().last_error is None
    assert not caplog.records


def test_a_file_that_grew_beyond_what_is_small_goes_the_usual_way(gated, gate, store, make_file):
    log = make_file("log", 100)
    with UploadQueue(gated, max_concurrency=2) as queue:
        for name in ("first", "second"):  # each keeps one worker
            queue.submit(name, make_file(name))
            gate.wait_for(name)
        upload = queue.submit("log", log, growing=True)
        log.write_bytes(log.read_bytes() + bytes(AHEAD_BYTES))
        gate.open()
        assert upload.result(DEADLINE_S).size_bytes == 100 + AHEAD_BYTES
    assert store.get("log") == log.read_bytes()


def test_a_newer_file_replaces_what_waits_behind_a_failed_try(store, make_file):
    is_there, go = threading.Event(), threading.Event()

    class Failing(FaultyStore):
        def begin_put(self, key, data, *, sha256):
            def answer():
                is_there.set()
                assert go.wait(DEADLINE_S)
                raise TransientStoreError("503")

            return answer

    with UploadQueue(Failing(store)) as queue:
        older = queue.submit("k", make_file("older", b"older"))
        assert is_there.wait(DEADLINE_S)
        newer = queue.submit("k", make_file("newer", b"newer"))
        go.set()
        assert newer.result(DEADLINE_S) == older.result(DEADLINE_S)
    assert store.get("k") == b"newer"


def test_stores_that_cannot_say_so(store):
    assert not can_begin(store)
    assert begin_put(store, "k", b"", sha256=hashlib.sha256(b"").hexdigest()) is None
    assert begin_get(store, "k", start=0, end=1) is None


def _items(store, count):
    items = []
    for number in range(count):
        data = os.urandom(10 * number)
        store.put(f"run/{number}", data)
        items.append(
            PullItem(
                key=f"run/{number}",
                path=f"d{number % 40}/{number}",
                size_bytes=len(data),
                sha256=hashlib.sha256(data).hexdigest(),
            )
        )
    return items


@pytest.mark.parametrize("is_slow", [False, True])
def test_a_pull_into_more_folders_than_are_held_open(store, tmp_path, monkeypatch, is_slow):
    monkeypatch.setattr("artifactsync.transfer.quick_pull._SLOW_S", 0.0 if is_slow else 1e9)
    items = _items(store, 200)
    totals = pull_files(FaultyStore(store), items, tmp_path / "back")
    assert (totals.files, totals.bytes, totals.skipped_files) == (200, sum(item.size_bytes for item in items), 0)
    for item in items:
        assert (tmp_path / "back" / item.path).read_bytes() == store.get(item.key)
    assert not [path for path in (tmp_path / "back").rglob("*") if path.name.startswith(".")]
    assert pull_files(FaultyStore(store), items, tmp_path / "back").skipped_files == 200


def test_a_small_object_that_is_gone_stops_the_pull(store, tmp_path):
    items = _items(store, 50)
    store.delete([items[20].key])
    with pytest.raises(MissingBytesError):
        pull_files(FaultyStore(store), items, tmp_path / "back")


@pytest.mark.parametrize("kind", ["truncated", "flipped-bit"])
def test_a_small_object_that_comes_wrong_once_is_asked_for_again(store, tmp_path, kind):
    items = _items(store, 50)
    faulty = FaultyStore(store, [Fault(kind=kind, operations={"get"}, keys="run/7", times=1)])
    pull_files(faulty, items, tmp_path / "back")
    assert faulty.faults_hit == 1
    assert (tmp_path / "back" / items[7].path).read_bytes() == store.get("run/7")


@pytest.mark.parametrize("is_slow", [False, True])
def test_a_small_file_that_cannot_get_its_name_stops_the_pull(store, tmp_path, monkeypatch, is_slow):
    monkeypatch.setattr("artifactsync.transfer.quick_pull._SLOW_S", 0.0 if is_slow else 1e9)
    items = _items(store, 120)
    faulty = FaultyStore(store, on_answer=lambda call: _make_folder(tmp_path / "back" / items[60].path, call))
    with pytest.raises(DestinationError):
        pull_files(faulty, items, tmp_path / "back")


def _make_folder(path, call):
    if call.operation == "get" and call.key == "run/60":
        path.mkdir(parents=True)  # after it was looked at


def test_a_wish_that_nobody_waits_for_ends_the_pull(store, tmp_path):
    items = _items(store, 20)
    faults = [Fault(kind="transient", operations={"get"}, keys="run/5", retry_after_s=3600)]
    with pytest.raises(TransientStoreError):
        pull_files(FaultyStore(store, faults), items, tmp_path / "back")


def test_a_lost_answer_is_read_by_nobody_else(cloud, fault_proxy, tmp_path):
    line = fault_proxy(cloud)
    store = open_store(line.fresh_url(), line.storage_options)
    store.put("first", b"contact")
    items = _items(store, 200)
    for fault in (LoseAnswer(), ResetDownload(0), Answer(500)):
        line.proxy.add(fault, method="GET", probability=0.1)
    pull_files(store, items, tmp_path / "back")
    line.proxy.heal()
    for item in items:
        assert (tmp_path / "back" / item.path).read_bytes() == store.get(item.key)
    store.close()
