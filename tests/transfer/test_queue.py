from __future__ import annotations

import logging
import os
import random
import threading
import weakref
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from artifactsync.errors import (
    AlreadyExistsError,
    ConfigurationError,
    CredentialsError,
    FileChangedError,
    ObjectNotFoundError,
    PermissionDeniedError,
    RemoteUnreachableError,
    UnfencedStoreError,
    UploadError,
    WaitTimeoutError,
)
from artifactsync.stores import open_store, runtime
from artifactsync.testing import FakeClock, Fault, FaultyStore
from artifactsync.transfer import queue as queue_module
from artifactsync.transfer.hashing import hash_file
from artifactsync.transfer.patience import Patience
from artifactsync.transfer.queue import UploadQueue

from .conftest import DEADLINE_S

HOUR_S = 3600.0
_FDS = Path("/proc/self/fd")


def _puts(*kinds, **options):
    return [Fault(kind=kind, operations={"put", "put_if_absent"}, **options) for kind in kinds]


def test_a_file_becomes_durable(store, make_file):
    path = make_file("model.pt", 300_000)
    with UploadQueue(store) as queue:
        uploaded = queue.submit("run/model.pt", path).result(DEADLINE_S)
    digest = hash_file(path)
    assert (uploaded.key, uploaded.size_bytes, uploaded.sha256) == ("run/model.pt", 300_000, digest.sha256)
    assert uploaded.etag == store.head("run/model.pt").etag
    assert store.get("run/model.pt") == path.read_bytes()


def test_an_empty_file_becomes_durable(store, make_file):
    with UploadQueue(store) as queue:
        assert queue.submit("empty", make_file("empty", b"")).result(DEADLINE_S).size_bytes == 0
    assert store.get("empty") == b""


def test_what_is_no_file_is_refused_at_once(store, tmp_path):
    with UploadQueue(store) as queue:
        with pytest.raises(ObjectNotFoundError, match="there is no file at"):
            queue.submit("k", tmp_path / "no")
        with pytest.raises(ObjectNotFoundError, match="is a folder"):
            queue.submit("k", tmp_path)
        assert queue.status().pending_files == 0


@pytest.mark.parametrize("change", ["deleted", "replaced"])
def test_a_file_deleted_or_replaced_after_submit_is_sent_as_it_was(gated, gate, store, make_file, change):
    path = make_file("f", 5000)
    before = path.read_bytes()
    with UploadQueue(gated, max_concurrency=1) as queue:
        queue.submit("first", make_file("g"))
        gate.wait_for("first")
        waiting = queue.submit("f", path)
        if change == "deleted":
            path.unlink()
        else:
            make_file("new", 700).rename(path)
        gate.open()
        waiting.result(DEADLINE_S)
    assert store.get("f") == before


def test_beyond_the_budget_of_descriptors_the_path_is_opened_later(gated, gate, store, make_file, monkeypatch):
    monkeypatch.setattr(queue_module, "MAX_HELD_FDS", 2)
    paths = [make_file(f"f{n}") for n in range(5)]
    with UploadQueue(gated, max_concurrency=1) as queue:
        uploads = [queue.submit(path.name, path) for path in paths]
        gate.wait_for("f0")
        open_paths = {os.path.realpath(fd) for fd in _FDS.iterdir()}
        assert {str(path) for path in paths} & open_paths == {str(paths[0]), str(paths[1])}
        paths[4].unlink()
        gate.open()
        for upload in uploads[:4]:
            upload.result(DEADLINE_S)
        with pytest.raises(UploadError, match=r"upload of f4 failed after 1 attempt: there is no file at"):
            uploads[4].result(DEADLINE_S)
    assert sorted(info.key for info in store.list()) == ["f0", "f1", "f2", "f3"]


def test_no_descriptor_is_left_open(store, make_file):
    paths = [make_file(f"f{n}") for n in range(20)]
    before = sum(1 for _ in _FDS.iterdir())
    with UploadQueue(store, max_concurrency=2) as queue:
        for path in paths * 3:
            queue.submit(path.name, path)
    assert sum(1 for _ in _FDS.iterdir()) == before


def test_100_uploads_with_30_percent_transient_failures_are_all_durable(store, make_file):
    faulty = FaultyStore(store, _puts("transient", "lost-response", probability=0.165), seed=7)
    paths = [make_file(f"f{n}", 200 + n) for n in range(100)]
    queue = UploadQueue(faulty, clock=FakeClock())
    uploads = [queue.submit(path.name, path, overwrite=bool(n % 3)) for n, path in enumerate(paths)]
    queue.close(DEADLINE_S)
    assert faulty.faults_hit > 30
    assert all(upload.exception() is None for upload in uploads)
    assert {info.key: store.get(info.key) for info in store.list()} == {path.name: path.read_bytes() for path in paths}
    status = queue.status()
    assert (status.uploaded_files, status.pending_files, status.failed_files) == (100, 0, 0)
    assert status.last_error is None


def test_retry_after_is_honoured(store, make_file):
    clock = FakeClock(start_s=0.0)
    faulty = FaultyStore(store, _puts("transient", times=2, retry_after_s=300.0))
    with UploadQueue(faulty, clock=clock) as queue:
        upload = queue.submit("k", make_file("k"))
        upload.result(DEADLINE_S)
    assert upload.attempts == 3
    assert clock.monotonic() >= 600.0


def test_an_unreachable_remote_is_tried_for_hours_while_nobody_waits(store, make_file):
    clock = FakeClock(start_s=0.0)
    unreachable = threading.Event()

    def after_three_hours(call):
        if clock.monotonic() < 3 * HOUR_S:
            unreachable.set()
            raise RemoteUnreachableError("no route")

    queue = UploadQueue(FaultyStore(store, on_call=after_three_hours), clock=clock)
    upload = queue.submit("k", make_file("k"))
    assert unreachable.wait(DEADLINE_S)
    upload.future.result(DEADLINE_S)  # not upload.result(): nobody waits as far as the queue knows
    queue.close(DEADLINE_S)
    assert store.head("k").size_bytes == 1000


def test_a_remote_that_never_answered_is_given_up_soon_when_someone_waits(store, make_file):
    clock = FakeClock(start_s=0.0)
    queue = UploadQueue(FaultyStore(store, _puts("unreachable")), clock=clock)
    queue.submit("k", make_file("k"))
    with pytest.raises(UploadError, match=r"upload of k failed after \d+ attempts: .*unreachable") as caught:
        queue.close(DEADLINE_S)
    assert isinstance(caught.value.__cause__, RemoteUnreachableError)


def test_patience_ends_at_the_deadline(store, make_file):
    clock = FakeClock(start_s=0.0)
    queue = UploadQueue(FaultyStore(store, _puts("transient")), clock=clock, patience=Patience(deadline_s=600))
    with pytest.raises(UploadError, match="attempts"):
        queue.submit("k", make_file("k")).result(DEADLINE_S)
    assert clock.monotonic() >= 600.0
    queue.close(DEADLINE_S)  # raised before, so not again


def test_a_permission_error_fails_at_once_and_is_raised_once(store, make_file):
    queue = UploadQueue(FaultyStore(store, _puts("permission")), clock=FakeClock())
    upload = queue.submit("dir/k", make_file("k"))
    with pytest.raises(UploadError, match=r"upload of dir/k failed after 1 attempt: .*permission") as caught:
        queue.wait(DEADLINE_S)
    assert isinstance(caught.value.__cause__, PermissionDeniedError)
    assert caught.value.url == f"{store.url.rstrip('/')}/dir/k"
    assert upload.attempts == 1
    assert "permission" in queue.status().last_error
    queue.wait(DEADLINE_S)
    queue.close(DEADLINE_S)


def test_refused_credentials_are_tried_a_few_times(store, make_file):
    queue = UploadQueue(FaultyStore(store, _puts("credentials")), clock=FakeClock())
    error = queue.submit("k", make_file("k")).exception(DEADLINE_S)
    assert "after 5 attempts" in str(error)
    assert isinstance(error.__cause__, CredentialsError)
    queue.close(DEADLINE_S)


def test_several_failures_are_raised_together(store, make_file):
    queue = UploadQueue(FaultyStore(store, _puts("permission")), clock=FakeClock())
    for name in "abc":
        queue.submit(name, make_file(name))
    with pytest.raises(UploadError, match="3 uploads failed: ") as caught:
        queue.close(DEADLINE_S)
    assert all(f"upload of {name} failed" in str(caught.value) for name in "abc")


def test_a_newer_success_makes_an_older_failure_good(store, make_file):
    queue = UploadQueue(FaultyStore(store, _puts("permission", times=1)), clock=FakeClock())
    path = make_file("k")
    assert queue.submit("k", path).future.exception(DEADLINE_S) is not None
    assert queue.status().failed_files == 1
    queue.submit("k", path)
    queue.close(DEADLINE_S)
    assert queue.status().last_error is None


def test_an_error_shows_in_status_while_it_is_retried_and_not_afterwards(store, make_file):
    seen = []

    def fail_twice(call):
        seen.append(queue.status().last_error)
        if call.total <= 2:
            raise RemoteUnreachableError("the wire is cut")

    with UploadQueue(FaultyStore(store, on_call=fail_twice), clock=FakeClock()) as queue:
        queue.submit("k", make_file("k")).result(DEADLINE_S)
        assert queue.status().last_error is None
    assert seen == [None, "the wire is cut", "the wire is cut"]


def test_a_bug_in_a_store_fails_the_upload_and_hangs_nobody(store, make_file):
    def fail(call):
        raise ZeroDivisionError("oops")

    queue = UploadQueue(FaultyStore(store, on_call=fail))
    with pytest.raises(UploadError, match="upload of k failed after 1 attempt: oops"):
        queue.submit("k", make_file("k")).result(DEADLINE_S)
    queue.close(DEADLINE_S)


def test_a_full_queue_refuses_and_does_not_block(gated, gate, make_file):
    path = make_file("f")
    queue = UploadQueue(gated, max_concurrency=1, max_pending_files=3)
    accepted = [queue.submit(f"k{n}", path) for n in range(3)]
    refused = queue.submit("k3", path)
    assert refused.done()
    assert "refused: 3 uploads are waiting already" in queue.status().last_error
    gate.open()
    with pytest.raises(UploadError, match="upload of k3 refused"):
        queue.wait(DEADLINE_S)
    assert all(upload.exception() is None for upload in accepted)
    queue.close(DEADLINE_S)


def test_a_queue_full_of_logs_takes_a_checkpoint_and_sends_it_first(gated, gate, store, make_file):
    path = make_file("f")
    queue = UploadQueue(gated, max_concurrency=2, max_pending_files=3, keeps_room=True)
    for number in range(3):
        queue.submit(f"log{number}", path)
    assert queue.submit("log3", path).done()  # refused
    checkpoint = queue.submit("model.pt", path, is_urgent=True)
    gate.wait_for("model.pt")  # though nobody has opened the gate for a log
    assert "model.pt" in gate.puts[:2]
    gate.open()
    assert checkpoint.result(DEADLINE_S).key == "model.pt"
    with pytest.raises(UploadError, match="upload of log3 refused: 3 uploads"):
        queue.close(DEADLINE_S)


def test_a_newer_upload_replaces_the_one_that_waits(gated, gate, store, make_file):
    with UploadQueue(gated, max_concurrency=2) as queue:
        uploads = [queue.submit("log", make_file(f"v{n}", f"version {n}".encode())) for n in range(1)]
        gate.wait_for("log")  # the first is under way; of the others only the last is sent
        uploads += [queue.submit("log", make_file(f"v{n}", f"version {n}".encode())) for n in range(1, 6)]
        assert queue.status().pending_files == 2
        gate.open()
        results = [upload.result(DEADLINE_S) for upload in uploads]
    assert gate.puts == ["log", "log"]
    assert store.get("log") == b"version 5"
    assert len(set(results[1:])) == 1
    assert results[0] != results[1]


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(keys=st.lists(st.integers(0, 3), min_size=1, max_size=40), workers=st.integers(1, 4), seed=st.integers(0, 99))
def test_uploads_of_a_key_never_overtake_each_other(store, make_file, keys, workers, seed):
    lock = threading.Lock()
    seen, running = {}, set()

    def begin(call):
        with lock:
            assert call.key not in running, "two uploads of one key at once"
            running.add(call.key)

    def end(call):
        with lock:
            running.discard(call.key)
            seen.setdefault(call.key, []).append(int(store.get(call.key)))

    class Counting(FaultyStore):
        def put(self, key, body):
            begin_call = type("Call", (), {"key": key})
            begin(begin_call)
            try:
                return super().put(key, body)
            finally:
                with lock:
                    running.discard(key)

    counting = Counting(store, _puts("transient", probability=0.2), seed=seed, on_answer=end)
    last = {}
    queue = UploadQueue(counting, max_concurrency=workers, clock=FakeClock())
    for number, key in enumerate(keys):
        queue.submit(f"k{key}", make_file(f"n{number}", str(number).encode()))
        last[f"k{key}"] = number
    queue.close(DEADLINE_S)
    assert all(numbers == sorted(numbers) for numbers in seen.values())
    assert {key: int(store.get(key)) for key in last} == last


def test_different_keys_are_uploaded_at_the_same_time(store, make_file):
    together = threading.Barrier(4, timeout=DEADLINE_S)
    path = make_file("f")
    with UploadQueue(FaultyStore(store, on_call=lambda _: together.wait()), max_concurrency=4) as queue:
        for upload in [queue.submit(f"k{n}", path) for n in range(4)]:
            upload.result(DEADLINE_S)


def test_create_only_refuses_other_bytes(store, make_file):
    store.put("k", b"somebody's")
    with UploadQueue(store) as queue, pytest.raises(AlreadyExistsError, match="k exists already"):
        queue.submit("k", make_file("k"), overwrite=False).result(DEADLINE_S)
    assert store.get("k") == b"somebody's"


def test_create_only_takes_the_same_bytes_for_success(store, make_file):
    path = make_file("k")
    store.put("k", path.read_bytes())
    with UploadQueue(store) as queue:
        assert queue.submit("k", path, overwrite=False).result(DEADLINE_S).sha256 == hash_file(path).sha256


def test_create_only_reads_back_after_a_lost_answer(store, make_file):
    faulty = FaultyStore(store, [Fault(kind="lost-response", operations={"put_if_absent"})])
    with UploadQueue(faulty, clock=FakeClock()) as queue:
        upload = queue.submit("k", make_file("k"), overwrite=False)
        assert upload.result(DEADLINE_S).size_bytes == 1000
        assert upload.attempts == 1


def test_of_many_create_only_writers_one_wins(store, make_file):
    queues = [UploadQueue(store) for _ in range(4)]
    uploads = [queue.submit("k", make_file(f"w{n}"), overwrite=False) for n, queue in enumerate(queues)]
    errors = [upload.exception(DEADLINE_S) for upload in uploads]
    assert sorted(type(error).__name__ for error in errors) == ["AlreadyExistsError"] * 3 + ["NoneType"]
    winner = errors.index(None)
    assert store.get("k") == make_file(f"w{winner}").read_bytes()
    for queue in queues:
        queue.close(DEADLINE_S)


def test_a_large_create_only_upload_asks_nothing_that_the_store_asks_itself(store, make_file):
    calls = []
    watched = FaultyStore(store, on_call=lambda call: calls.append(call.operation))
    with UploadQueue(watched) as queue:
        queue.submit("k", make_file("k", 9_000_000), overwrite=False).result(DEADLINE_S)
    assert calls == ["put_if_absent"]


def test_too_large_to_create_in_one_request_is_looked_up_first(store, make_file):
    class Small(FaultyStore):
        def put_if_absent(self, key, body):
            raise UnfencedStoreError(f"{key} is too large for one request")

    path = make_file("k", 9_000_000)
    with UploadQueue(Small(store)) as queue:
        queue.submit("k", path, overwrite=False).result(DEADLINE_S)
        queue.submit("k", path, overwrite=False).result(DEADLINE_S)
        with pytest.raises(AlreadyExistsError):
            queue.submit("k", make_file("other", 9_000_001), overwrite=False).result(DEADLINE_S)
    assert store.get("k") == path.read_bytes()


def test_a_file_that_changes_under_the_upload_is_sent_again_whole(store, make_file):
    path = make_file("f", 3000)

    class Changing(FaultyStore):
        can_begin = False  # or all of the file was read before

        def put(self, key, body):
            if self.calls["put"] < 2:
                next(body.chunks(1000))
                path.write_bytes(random.Random(self.calls["put"]).randbytes(3000))
            return super().put(key, body)

    with UploadQueue(Changing(store), clock=FakeClock()) as queue:
        upload = queue.submit("f", path)
        assert upload.result(DEADLINE_S).sha256 == hash_file(path).sha256
    assert upload.attempts == 3
    assert store.get("f") == path.read_bytes()


def test_a_file_that_never_stands_still_is_given_up(store, make_file):
    path = make_file("f", 3000)

    class Changing(FaultyStore):
        can_begin = False  # or all of the file was read before

        def put(self, key, body):
            path.write_bytes(os.urandom(3000 + self.calls["put"]))
            return super().put(key, body)

    queue = UploadQueue(Changing(store), clock=FakeClock())
    error = queue.submit("f", path).exception(DEADLINE_S)
    assert isinstance(error.__cause__, FileChangedError)
    assert "after 8 attempts" in str(error)
    assert list(store.list()) == []
    queue.close(DEADLINE_S)


def test_a_growing_log_is_sent_as_it_was_when_read(store, make_file):
    path = make_file("log", b"line 1\n")

    class Appending(FaultyStore):
        def put(self, key, body):
            with path.open("ab") as log:
                log.write(b"line 2\n")
            return super().put(key, body)

    with UploadQueue(Appending(store)) as queue:
        assert queue.submit("log", path, growing=True).result(DEADLINE_S).size_bytes == 7
    assert store.get("log") == b"line 1\n"


def test_cancel_gives_up_what_waits_and_not_what_runs(gated, gate, store, make_file):
    with UploadQueue(gated, max_concurrency=1) as queue:
        running, waiting = (queue.submit(name, make_file(name)) for name in ("running", "waiting"))
        gate.wait_for("running")
        assert waiting.cancel()
        assert not waiting.cancel()
        assert not running.cancel()
        gate.open()
        with pytest.raises(UploadError, match="cancelled"):
            waiting.result(DEADLINE_S)
        running.result(DEADLINE_S)
    assert [info.key for info in store.list()] == ["running"]


def test_wait_says_what_is_not_durable_in_time(gated, gate, make_file):
    with UploadQueue(gated, max_concurrency=1) as queue:
        upload = queue.submit("a", make_file("a", 5000))
        queue.submit("b", make_file("b", 700))
        with pytest.raises(WaitTimeoutError, match=r"not durable: 2 files \(5700 bytes\)"):
            queue.wait(0.01)
        with pytest.raises(WaitTimeoutError, match="a is not durable"):
            upload.result(0.01)
        gate.open()
        queue.wait(DEADLINE_S)
        assert upload.done()


def test_wait_waits_for_what_was_submitted_before_it(store, make_file):
    blocker = threading.Event()
    faulty = FaultyStore(store, on_call=lambda call: call.key == "later" and blocker.wait(DEADLINE_S))
    with UploadQueue(faulty, max_concurrency=2) as queue:
        queue.submit("before", make_file("before"))
        waiter = threading.Thread(target=queue.wait)
        waiter.start()
        waiter.join(DEADLINE_S)
        queue.submit("later", make_file("later"))
        assert not waiter.is_alive()
        blocker.set()


def test_close_gives_up_at_its_timeout_and_refuses_more(gated, gate, store, make_file, caplog):
    queue = UploadQueue(gated, max_concurrency=1)
    running, waiting = (queue.submit(name, make_file(name)) for name in ("running", "waiting"))
    gate.wait_for("running")
    with caplog.at_level(logging.CRITICAL, "artifactsync.transfer"), pytest.raises(WaitTimeoutError, match="2 files"):
        queue.close(0.01)
    with pytest.raises(UploadError, match="closed before waiting was durable"):
        waiting.result(DEADLINE_S)
    gate.open()
    with pytest.raises(UploadError, match="closed before running was durable"):
        running.result(DEADLINE_S)
    with pytest.raises(ConfigurationError, match="closed"):
        queue.submit("more", make_file("more"))
    assert list(store.list()) == []


def test_an_exception_in_the_block_is_not_masked_and_all_is_sent(store, make_file):
    faulty = FaultyStore(store, _puts("permission", keys="bad"))
    with pytest.raises(KeyError, match="mine"), UploadQueue(faulty) as queue:  # noqa: PT012
        queue.submit("bad", make_file("bad"))
        queue.submit("good", make_file("good"))
        raise KeyError("mine")
    assert [info.key for info in store.list()] == ["good"]


def test_a_bandwidth_limit_is_kept(store, make_file):
    clock = FakeClock(start_s=0.0)
    with UploadQueue(store, bandwidth_limit_bytes_per_s=1000.0, clock=clock) as queue:
        for name in "ab":
            queue.submit(name, make_file(name, 30_000)).result(DEADLINE_S)
    assert clock.monotonic() >= 59.0


def test_status_counts(gated, gate, make_file):
    with UploadQueue(gated, max_concurrency=1) as queue:
        assert queue.status().eta_s == 0.0
        queue.submit("a", make_file("a", 5000))
        queue.submit("b", make_file("b", 700))
        gate.wait_for("a")
        status = queue.status()
        assert (status.pending_files, status.pending_bytes, status.uploaded_files) == (2, 5700, 0)
        assert status.eta_s is None
        gate.open()
        queue.wait(DEADLINE_S)
        status = queue.status()
        assert (status.pending_files, status.pending_bytes, status.uploaded_bytes) == (0, 0, 5700)
        assert status.bytes_per_s > 0
        assert status.eta_s == 0.0


@pytest.mark.parametrize(
    "options", [{"max_concurrency": 0}, {"max_pending_files": 0}, {"bandwidth_limit_bytes_per_s": 0.0}]
)
def test_limits_that_make_no_sense_are_refused(store, options):
    with pytest.raises(ConfigurationError):
        UploadQueue(store, **options)


@pytest.mark.parametrize("cloud", ["s3", "gcs"])
def test_real_servers_hold_what_was_sent(request, cloud, make_file):
    server = request.getfixturevalue(cloud)
    store = open_store(server.fresh_url(), server.storage_options)
    sizes = [0, 1, 1000, 5_000_000, 20_000_000]
    paths = {f"dir/f{size}": make_file(f"f{size}", size) for size in sizes}
    with UploadQueue(store) as queue:
        uploads = {
            key: queue.submit(key, path, overwrite=size % 2 == 0)
            for size, (key, path) in zip(sizes, paths.items(), strict=True)
        }
        for key, upload in uploads.items():
            assert upload.result(60).sha256 == hash_file(paths[key]).sha256
        with pytest.raises(AlreadyExistsError):
            queue.submit("dir/f1", make_file("other", 1), overwrite=False).result(60)
    assert {info.key: info.size_bytes for info in store.list()} == {f"dir/f{size}": size for size in sizes}
    assert store.get("dir/f20000000") == paths["dir/f20000000"].read_bytes()
    store.close()


@pytest.fixture
def wishes(monkeypatch):
    """What the stores' own threads are asked to be: polite or not, in order, without repetitions."""
    wishes = []

    def note(*, polite):
        if wishes[-1:] != [polite]:
            wishes.append(polite)
        return True

    monkeypatch.setattr(runtime, "set_runtime_priority", note)
    return wishes


def test_the_stores_threads_are_polite_until_someone_waits(gated, gate, make_file, wishes):
    queue = UploadQueue(gated)
    upload = queue.submit("k", make_file("k"))
    gate.wait_for("k")
    waiter = threading.Thread(target=upload.result)  # a background thread that waits is no training that stands still
    waiter.start()
    gate.open()
    waiter.join(DEADLINE_S)
    assert wishes == [True]
    queue.close(DEADLINE_S)
    assert wishes[:2] == [True, False]


def test_the_stores_threads_are_left_alone_if_asked(store, make_file, wishes):
    with UploadQueue(store, polite=False) as queue:
        queue.submit("k", make_file("k")).result(DEADLINE_S)
    assert wishes == []


def test_an_upload_that_is_starved_gets_its_share(gated, gate, make_file, wishes, monkeypatch):
    starved = threading.Event()
    note = runtime.set_runtime_priority
    monkeypatch.setattr(
        runtime,
        "set_runtime_priority",
        lambda *, polite: (note(polite=polite) and polite) or starved.set(),
    )
    queue = UploadQueue(gated, clock=FakeClock())  # its seconds pass in milliseconds while the upload stands still
    upload = queue.submit("k", make_file("k"))
    gate.wait_for("k")
    assert starved.wait(DEADLINE_S)
    assert wishes == [True, False]
    gate.open()
    assert upload.future.exception(DEADLINE_S) is None
    queue.close(DEADLINE_S)


def test_threads_of_a_closed_queue_end(store, make_file):
    with UploadQueue(store) as queue:
        for number in range(8):
            queue.submit(f"k{number}", make_file("f"))
        ours = [thread for thread in threading.enumerate() if thread.name == "artifactsync-upload"]
        workers = {thread for thread in ours if thread in queue._workers._threads}
    for thread in workers:
        thread.join(DEADLINE_S)
    assert not queue._workers._threads


def test_a_failure_after_a_thousand_that_were_told_is_told_too(store, make_file):
    path = make_file("f", 1)
    refusing = FaultyStore(store, [Fault(kind="permission", operations={"put"})])
    queue = UploadQueue(refusing, patience=Patience(max_store_attempts=1))
    for upload in [queue.submit(f"k{number}", path) for number in range(1000)]:
        assert upload.exception(DEADLINE_S) is not None
    queue.submit("untold", path)
    with pytest.raises(UploadError, match="upload of untold failed"):
        queue.close(DEADLINE_S)


def test_a_newer_file_does_not_fail_with_the_older_one(store, make_file):
    is_there, go = threading.Event(), threading.Event()

    def refuse_first(call):
        if call.operation == "put" and not is_there.is_set():
            is_there.set()
            assert go.wait(DEADLINE_S)
            raise PermissionDeniedError("not this one", url="file://x")

    with UploadQueue(
        FaultyStore(store, on_call=refuse_first), patience=Patience(max_store_attempts=1, base_delay_s=0.01)
    ) as queue:
        older = queue.submit("k", make_file("older", b"older"))
        assert is_there.wait(DEADLINE_S)
        newer = queue.submit("k", make_file("newer", b"newer"))
        go.set()
        assert newer.result(DEADLINE_S) == older.result(DEADLINE_S)
    assert store.get("k") == b"newer"


def test_a_log_handler_that_asks_the_queue_does_not_hang_it(store, make_file):
    is_logging, has_failed = threading.Event(), threading.Event()
    queue = UploadQueue(
        FaultyStore(store, [Fault(kind="permission", operations={"put"})]), patience=Patience(max_store_attempts=1)
    )

    class Asking(logging.Handler):
        """Under the handler's own lock, as any handler that mirrors its file by the queue."""

        def emit(self, record):
            if record.name == "user":
                is_logging.set()
                assert has_failed.wait(DEADLINE_S)
            queue.status()

    handler = Asking()
    user = logging.getLogger("user")
    ours = logging.getLogger("artifactsync.transfer")
    for logger in (user, ours):
        logger.addHandler(handler)
    try:
        logging_thread = threading.Thread(target=user.error, args=("a line",), daemon=True)
        logging_thread.start()
        assert is_logging.wait(DEADLINE_S)
        upload = queue.submit("k", make_file("f"))
        assert upload.exception(DEADLINE_S) is not None
        has_failed.set()
        logging_thread.join(DEADLINE_S)
        assert not logging_thread.is_alive()
    finally:
        for logger in (user, ours):
            logger.removeHandler(handler)


def test_a_failing_upload_keeps_none_of_its_bytes_in_memory(store, make_file):
    class Part:
        """Stands for the bytes of a part that some frame of the store held."""

    parts = []

    class Down(FaultyStore):
        def put(self, key, body):
            part = Part()
            parts.append(weakref.ref(part))
            raise RemoteUnreachableError(f"down, with {type(part).__name__}", url=key)

    queue = UploadQueue(Down(store), clock=FakeClock(), patience=Patience(deadline_s=60.0))
    upload = queue.submit("k", make_file("f"))
    assert upload.exception(DEADLINE_S) is not None
    assert len(parts) > 1
    assert [part() for part in parts] == [None] * len(parts)


def test_submitting_does_not_wait_while_the_threads_are_looked_at(gated, gate, make_file, monkeypatch):
    is_looking, go_on = threading.Event(), threading.Event()

    def look(*, polite):
        is_looking.set()
        assert go_on.wait(DEADLINE_S)
        return True

    monkeypatch.setattr(runtime, "set_runtime_priority", look)
    queue = UploadQueue(gated)
    queue.submit("k", make_file("k"))
    assert is_looking.wait(DEADLINE_S)
    submitting = threading.Thread(target=queue.submit, args=("l", make_file("l")), daemon=True)
    submitting.start()
    submitting.join(DEADLINE_S / 2)
    was_held_up = submitting.is_alive()
    go_on.set()
    gate.open()
    assert not was_held_up
    queue.close(DEADLINE_S)
