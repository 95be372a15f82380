"""The process beside training: what it sends, how it ends, and what happens to uploads when it does."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from artifactsync.errors import AlreadyExistsError, CredentialsError, FileChangedError, TransientStoreError, UploadError
from artifactsync.stores import open_store
from artifactsync.stores.origin import origin_of
from artifactsync.stores.prefix import PrefixStore
from artifactsync.testing import FaultyStore
from artifactsync.transfer.being_written import FileBeingWritten
from artifactsync.transfer.cores import allow_cores, keep_off_training
from artifactsync.transfer.courier import Courier
from artifactsync.transfer.courier import courier as courier_module
from artifactsync.transfer.delivery import COURIER_BYTES
from artifactsync.transfer.patience import Patience
from artifactsync.transfer.queue import UploadQueue

DATA = os.urandom(20 * 2**20 + 17)
SHA256 = hashlib.sha256(DATA).hexdigest()
SOON_S = 20  # only a broken test waits so long


@pytest.fixture
def courier(monkeypatch):
    """The process's courier, a fresh one."""
    fresh = Courier()
    monkeypatch.setattr(courier_module, "_the_courier", fresh)
    yield fresh
    fresh.end()


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "x.pt"
    path.write_bytes(DATA)
    os.utime(path, (1, 1))  # old enough to be read at once
    return path


@pytest.fixture(params=["local", "s3", "gcs"])
def remote(request, tmp_path):
    if request.param == "local":
        return open_store(tmp_path / "remote")
    cloud = request.getfixturevalue(request.param)
    return PrefixStore(open_store(cloud.fresh_url(), cloud.storage_options), "below")


def begin(courier, store):
    thread = courier.begin(origin_of(store), polite=False)
    assert thread is not None
    thread.join(SOON_S)
    assert courier.is_ready


def sends(courier, monkeypatch):
    """What is handed over to the courier from now on."""
    keys, put = [], courier.put
    monkeypatch.setattr(
        courier, "put", lambda origin, key, *args, **kw: keys.append(key) or put(origin, key, *args, **kw)
    )
    return keys


def test_a_large_file_is_sent_by_it_and_a_small_one_is_not(courier, remote, file, tmp_path, monkeypatch):
    begin(courier, remote)
    keys = sends(courier, monkeypatch)
    small = tmp_path / "small"
    small.write_bytes(DATA[: COURIER_BYTES - 1])
    with UploadQueue(remote) as queue:
        sent = queue.submit("a/x.pt", file).result(SOON_S)
        queue.submit("a/small", small).result(SOON_S)
        assert queue.status().uploaded_bytes == len(DATA) + COURIER_BYTES - 1
    assert keys == ["a/x.pt"]
    assert (sent.size_bytes, sent.sha256) == (len(DATA), SHA256)
    assert remote.get("a/x.pt") == DATA
    assert remote.head("a/x.pt").etag == sent.etag


def test_nothing_waits_for_it_to_start(courier, file, tmp_path):
    store = open_store(tmp_path / "remote")
    queue = UploadQueue(store)
    queue.submit("first", file).result(SOON_S)  # sent from here: there was none yet
    queue.close()
    assert store.get("first") == DATA


def test_a_stores_own_refusal_is_raised_here(courier, remote, file):
    begin(courier, remote)
    remote.put("taken", b"other bytes")
    queue = UploadQueue(remote)
    with pytest.raises(AlreadyExistsError, match="taken exists already"):
        queue.submit("taken", file, overwrite=False).result(SOON_S)
    remote.put("same", DATA)
    assert queue.submit("same", file, overwrite=False).result(SOON_S).sha256 == SHA256
    queue.close()


def test_a_file_that_is_still_being_written(courier, remote, tmp_path, monkeypatch):
    begin(courier, remote)
    keys = sends(courier, monkeypatch)
    fd = os.open(tmp_path / "hidden", os.O_RDWR | os.O_CREAT)
    source = FileBeingWritten(fd, str(tmp_path / "x.pt"), len(DATA))
    with UploadQueue(remote) as queue:
        upload = queue.submit("x.pt", tmp_path / "x.pt", writing=source)
        for at in range(0, len(DATA), 5_000_000):
            source.advance(os.write(fd, DATA[at : at + 5_000_000]))
            assert not list(remote.list("x.pt"))
        (tmp_path / "hidden").rename(tmp_path / "x.pt")
        source.finish(SHA256)
        assert upload.result(SOON_S).sha256 == SHA256
    os.close(fd)
    assert keys == ["x.pt"]
    assert remote.get("x.pt") == DATA


def test_a_file_whose_writing_fails_becomes_no_object(courier, remote, tmp_path):
    begin(courier, remote)
    fd = os.open(tmp_path / "hidden", os.O_RDWR | os.O_CREAT)
    source = FileBeingWritten(fd, str(tmp_path / "x.pt"), len(DATA))
    queue = UploadQueue(remote)
    upload = queue.submit("x.pt", tmp_path / "x.pt", writing=source)
    source.advance(os.write(fd, DATA[: 17 * 2**20]))
    source.fail(UploadError("the disk is full"))
    error = upload.exception(SOON_S)
    assert "could not be written: the disk is full" in str(error)
    os.close(fd)
    queue.close()
    assert not list(remote.list())
    assert courier.is_ready  # it is none of its faults


def test_a_file_that_was_changed_after_it_was_whole_is_not_sent(courier, tmp_path):
    store = open_store(tmp_path / "remote")
    begin(courier, store)
    path = tmp_path / "x.pt"
    path.write_bytes(DATA)
    with path.open("rb") as opened:
        source = FileBeingWritten(opened.fileno(), str(path), len(DATA))
    source.advance(len(DATA))
    source.finish(SHA256)
    with path.open("r+b") as again:
        again.write(b"changed")
    with pytest.raises((FileChangedError, UploadError)):
        courier.put(
            origin_of(store), "x.pt", source, name="x.pt", overwrite=True, growing=False, on_read=lambda _: None
        )
    assert not list(store.list())


def test_its_hash_of_a_file_being_written(courier, tmp_path):
    begin(courier, open_store(tmp_path / "remote"))
    fd = os.open(tmp_path / "hidden", os.O_RDWR | os.O_CREAT)
    hashing = courier.hash(fd, len(DATA))
    for at in range(0, len(DATA), 3_000_000):
        os.write(fd, DATA[at : at + 3_000_000])
        hashing.advance(min(at + 3_000_000, len(DATA)))
    assert hashing.hexdigest(lambda: None) == SHA256
    os.close(fd)


def test_more_progress_than_its_socket_holds_while_it_stands_still(courier, tmp_path):
    begin(courier, open_store(tmp_path / "remote"))
    os.kill(courier.pid, signal.SIGSTOP)
    fd = os.open(tmp_path / "hidden", os.O_RDWR | os.O_CREAT)
    os.write(fd, DATA)
    hashing = courier.hash(fd, len(DATA))
    for at in range(10_000):  # returns at once, each time
        hashing.advance(at)
    hashing.advance(len(DATA))
    os.kill(courier.pid, signal.SIGCONT)
    assert hashing.hexdigest(lambda: None) == SHA256
    os.close(fd)


def test_an_upload_survives_its_death(courier, s3, file):
    """SIGKILL in the middle: the upload is tried again, and another process is there for the next one."""
    store = open_store(s3.fresh_url(), s3.storage_options)
    begin(courier, store)
    first = courier.pid
    os.kill(first, signal.SIGSTOP)  # it has the job, and does nothing
    with UploadQueue(store, patience=Patience(base_delay_s=0.01)) as queue:
        upload = queue.submit("x.pt", file)
        while upload.attempts < 1:
            time.sleep(0.01)
        os.kill(first, signal.SIGKILL)
        assert upload.result(SOON_S).sha256 == SHA256
        assert upload.attempts == 2
        until_s = time.monotonic() + SOON_S
        while courier.pid in {None, first}:
            assert time.monotonic() < until_s, "no other one was started"
            again = queue.submit("again", file)
            while not again.done():  # without waiting for it: who waits does not train
                time.sleep(0.01)
    assert store.get("x.pt") == DATA


def test_one_that_always_dies_is_not_started_for_ever(courier, tmp_path, file):
    store = open_store(tmp_path / "remote")
    for _ in range(3):
        begin(courier, store)
        os.kill(courier.pid, signal.SIGKILL)
        with file.open("rb") as opened, pytest.raises(TransientStoreError, match="has ended"):
            courier.hash(opened.fileno(), 1).hexdigest(lambda: None)
        assert courier.pid is None
    assert courier.begin(origin_of(store), polite=False) is None
    with UploadQueue(store) as queue:
        queue.submit("x.pt", file).result(SOON_S)
    assert store.get("x.pt") == DATA


def test_giving_up_does_not_wait_for_it(courier, tmp_path, file):
    store = open_store(tmp_path / "remote")
    begin(courier, store)
    os.kill(courier.pid, signal.SIGSTOP)
    queue = UploadQueue(store)
    upload = queue.submit("x.pt", file)
    while upload.attempts < 1:
        time.sleep(0.01)
    queue.abort()
    assert isinstance(upload.exception(SOON_S), UploadError)
    os.kill(courier.pid, signal.SIGCONT)
    deadline_s = time.monotonic() + SOON_S
    while len(psutil.Process(courier.pid).threads()) > 1:  # it has seen that nobody wants it any more
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    assert not list(store.list())


@pytest.mark.parametrize("forks", [False, True])
def test_it_ends_with_the_training_that_is_killed(tmp_path, forks):
    """Also while a forked child, a data loader's worker say, lives on and holds every socket that its parent had."""
    command = [sys.executable, "-m", "tests.transfer.courier_parent", str(tmp_path / "remote"), *["fork"] * forks]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as parent:
        pids = [int(parent.stdout.readline()) for _ in range(1 + forks)]
        process = psutil.Process(pids[-1])
        parent.kill()
        parent.stdout.close()
        try:
            process.wait(SOON_S)
        finally:
            for pid in pids[:-1]:
                os.kill(pid, signal.SIGKILL)


def test_signals_of_a_scheduler_are_not_for_it_and_it_shows_no_secret():
    command = [sys.executable, "-m", "tests.transfer.courier_parent", "s3://bucket/prefix"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as parent:
        process = psutil.Process(int(parent.stdout.readline()))
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            process.send_signal(number)
        with pytest.raises(psutil.TimeoutExpired):
            process.wait(1)
        assert os.getpgid(process.pid) != os.getpgid(parent.pid)
        assert "only-in-memory" not in str(process.cmdline()) + str(process.environ())
        parent.kill()
        process.wait(SOON_S)


def test_a_module_in_the_working_folder_takes_no_librarys_name(tmp_path, monkeypatch, courier):
    for name in ("hashlib", "socket", "select", "artifactsync"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('not this one')")
    monkeypatch.chdir(tmp_path)
    begin(courier, open_store(tmp_path / "remote"))


def test_it_sees_the_clouds_variables_as_they_were_when_the_store_was_opened(courier, s3, file, tmp_path, monkeypatch):
    begin(courier, open_store(tmp_path / "remote"))  # long before anybody says where the bucket is
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    store = open_store(s3.fresh_url())
    for name in s3.environment:
        monkeypatch.delenv(name)
    sent = courier.put(
        origin_of(store), "x.pt", str(file), name="x.pt", overwrite=True, growing=False, on_read=lambda _: None
    )
    assert sent.sha256 == SHA256
    assert store.get("x.pt") == DATA


def test_credentials_that_this_process_alone_has(courier, s3, file, monkeypatch):
    """The courier is refused, and the upload goes from here, as do those after it."""
    store = open_store(s3.fresh_url(), s3.storage_options)
    stranger = replace(origin_of(store), options={**origin_of(store).options, "secret": "not this one"})
    store.origin = stranger
    thread = courier.begin(stranger, polite=False)
    thread.join(SOON_S)
    keys = sends(courier, monkeypatch)
    with UploadQueue(store) as queue:
        assert queue.submit("x.pt", file).result(SOON_S).sha256 == SHA256
        queue.submit("y.pt", file).result(SOON_S)
        assert queue.status().uploaded_bytes == 2 * len(DATA)
    assert keys == ["x.pt"]
    assert store.get("y.pt") == DATA


def test_a_refusal_that_passes_is_no_reason_to_do_without(courier, s3, file, monkeypatch):
    """A token that has expired, for both processes, and is renewed."""
    store = open_store(s3.fresh_url(), s3.storage_options)
    begin(courier, store)
    put, refusals = courier.put, []

    def refuse(*args, **options):
        if not refusals:
            refusals.append(1)
            raise CredentialsError("expired")
        return put(*args, **options)

    monkeypatch.setattr(courier, "put", refuse)
    gone = FaultyStore(store, on_call=lambda call: _expired(call, refusals))
    gone.origin = store.origin
    with UploadQueue(gone, patience=Patience(base_delay_s=0.01)) as queue:
        assert queue.submit("x.pt", file).result(SOON_S).sha256 == SHA256
    assert refusals == [1, 2], "the second try went to the courier again"


def _expired(call, refusals):
    if call.operation == "put":
        refusals.append(2)
        raise CredentialsError("expired")


def test_what_no_other_process_could_open_has_no_origin(tmp_path):
    assert origin_of(open_store("memory://x")) is None
    assert origin_of(FaultyStore(open_store(tmp_path))) is None
    assert origin_of(open_store(tmp_path, bandwidth_limit_bytes_per_s=1e6)) is None
    options = {"key": "k", "secret": "s", "config_kwargs": {"user_agent": object()}}
    assert origin_of(open_store("s3://b/p", options)) is None
    below = origin_of(PrefixStore(PrefixStore(open_store("s3://b/p", {"key": "k", "secret": "hidden"}), "q"), "r"))
    assert (below.url, below.prefix) == ("s3://b/p", "q/r")
    assert "hidden" not in repr(below)


def test_a_bandwidth_limit_holds(courier, tmp_path, file, monkeypatch):
    store = open_store(tmp_path / "remote")
    begin(courier, store)
    keys = sends(courier, monkeypatch)
    with UploadQueue(store, bandwidth_limit_bytes_per_s=1e9) as queue:
        queue.submit("x.pt", file).result(SOON_S)
    assert keys == []  # the limit is one for all that this process sends


def test_many_at_a_time(courier, remote, tmp_path, monkeypatch):
    begin(courier, remote)
    keys = sends(courier, monkeypatch)
    files = []
    for number in range(8):
        files.append(tmp_path / f"{number}.bin")
        files[-1].write_bytes(bytes([number]) * (COURIER_BYTES + number))
    with UploadQueue(remote) as queue:
        sent = [queue.submit(path.name, path) for path in files]
        assert [each.result(SOON_S).size_bytes for each in sent] == [COURIER_BYTES + n for n in range(8)]
    assert sorted(keys) == [path.name for path in files]
    for path in files:
        assert hashlib.sha256(remote.get(path.name)).digest() == hashlib.sha256(path.read_bytes()).digest()


def test_it_gives_way_and_does_not_while_somebody_waits(courier, tmp_path):
    begin(courier, open_store(tmp_path / "remote"))

    def threads(ask):
        return {ask(int(task.name)) for task in Path(f"/proc/{courier.pid}/task").iterdir()}

    def cores():
        return set().union(*threads(lambda thread: frozenset(os.sched_getaffinity(thread))))

    allowed = os.sched_getaffinity(0)
    assert len(allowed) > 1, "one core cannot show it"
    courier.set_polite(polite=True, lowers=True)
    assert threads(os.sched_getscheduler) == {os.SCHED_IDLE}
    assert len(cores()) == len(allowed) - 1, "the core of this thread is left alone"
    with courier.hurried():
        assert threads(os.sched_getscheduler) == {os.SCHED_OTHER}
        assert cores() == allowed
        courier.set_polite(polite=True, lowers=True)  # another uploader of this process does not know who waits
        assert threads(os.sched_getscheduler) == {os.SCHED_OTHER}
    assert threads(os.sched_getscheduler) == {os.SCHED_IDLE}
    assert len(cores()) == len(allowed) - 1
    courier.set_polite(polite=False, lowers=True)
    assert cores() == allowed
    courier.set_polite(polite=True, lowers=False)  # a container without CAP_SYS_NICE
    assert threads(os.sched_getscheduler) == {os.SCHED_OTHER}
    assert len(cores()) == len(allowed) - 1
    with courier.hurried():
        assert cores() == allowed
    assert len(cores()) == len(allowed) - 1


def test_threads_of_this_process_may_use_it_at_once(courier, tmp_path):
    begin(courier, open_store(tmp_path / "remote"))
    path = tmp_path / "x"
    path.write_bytes(DATA)
    found = []

    def work():
        with path.open("rb") as opened:
            hashing = courier.hash(opened.fileno(), len(DATA))
        hashing.advance(len(DATA))
        found.append(hashing.hexdigest(lambda: None))

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON_S)
    assert found == [SHA256] * 6


def test_a_thread_that_is_kept_off_the_trainings_core():
    seen = []

    def work():
        keep_off_training()
        seen.append(os.sched_getaffinity(0))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(SOON_S)
    allowed = os.sched_getaffinity(0)
    keep_off_training()
    assert os.sched_getaffinity(0) == allowed, "the main thread is the training's own"
    assert len(seen[0]) == len(allowed) - 1
    assert seen[0] < allowed
    os.sched_setaffinity(0, {min(allowed)})
    try:
        allow_cores([threading.get_native_id()], but=min(allowed))
        assert os.sched_getaffinity(0) == {min(allowed)}, "the only one there is"
    finally:
        os.sched_setaffinity(0, allowed)
