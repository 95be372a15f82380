from __future__ import annotations

import hashlib
import os
import random
import resource
import signal
import threading
import zipfile

import pytest
import torch

from artifactsync.checkpoint.image import FileImage
from artifactsync.checkpoint.load import load_file
from artifactsync.checkpoint.snapshot import SnapshotBuffers, take_snapshot
from artifactsync.checkpoint.write import FileWriting, point_latest, write_snapshot
from artifactsync.errors import DestinationError, DiskFullError, UploadError
from artifactsync.stores import open_store
from artifactsync.transfer.courier import Courier, begin_courier
from artifactsync.transfer.courier import courier as courier_module


def _snapshot(state):
    return take_snapshot(state, SnapshotBuffers())


def test_the_file_is_an_ordinary_one_and_its_hash_is_right(tmp_path):
    state = {"w": torch.randn(1000, 1000), "n": 3}
    written = write_snapshot(_snapshot(state), tmp_path / "a" / "b.pt")
    data = written.path.read_bytes()
    assert written.size_bytes == len(data)
    assert written.sha256 == hashlib.sha256(data).hexdigest()
    assert zipfile.ZipFile(written.path).testzip() is None
    loaded = torch.load(written.path, weights_only=True)
    assert torch.equal(loaded["w"], state["w"])
    assert [path.name for path in written.path.parent.iterdir()] == ["b.pt"]


def test_a_file_loaded_earlier_is_untouched_by_its_replacement(tmp_path):
    path = tmp_path / "x.pt"
    write_snapshot(_snapshot(torch.zeros(10_000)), path)
    mapped = load_file(path)
    write_snapshot(_snapshot(torch.ones(10_000)), path)
    assert mapped.sum() == 0
    assert load_file(path).sum() == 10_000


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "x.pt"
    before = write_snapshot(_snapshot(torch.zeros(10)), path)
    # A file size limit makes write(2) fail in the middle, as a full disk or a quota does.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises((DiskFullError, DestinationError)) as caught:
            write_snapshot(_snapshot(torch.zeros(1_000_000)), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert "x.pt" in str(caught.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.pt"]
    assert path.stat().st_size == before.size_bytes


def test_no_space_is_its_own_error(tmp_path, monkeypatch):
    def full(fd, buffers):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("artifactsync.checkpoint.write.os.writev", full)
    with pytest.raises(DiskFullError, match="no space left"):
        write_snapshot(_snapshot(torch.zeros(10)), tmp_path / "x.pt")
    assert list(tmp_path.iterdir()) == []


def test_a_file_where_the_folder_must_be(tmp_path):
    (tmp_path / "checkpoints").write_text("in the way")
    with pytest.raises(DestinationError, match="cannot write"):
        write_snapshot(_snapshot(1), tmp_path / "checkpoints" / "x.pt")


def test_latest_follows_and_never_replaces_a_real_file(tmp_path):
    for name in ("one.pt", "two.pt"):
        (tmp_path / name).write_text(name)
        point_latest(tmp_path / "latest-rank0.pt", tmp_path / name)
        assert str((tmp_path / "latest-rank0.pt").readlink()) == name
    (tmp_path / "real").write_text("precious")
    point_latest(tmp_path / "real", tmp_path / "one.pt")
    assert (tmp_path / "real").read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest-rank0.pt", "one.pt", "real", "two.pt"]


def test_a_system_that_writes_less_than_it_is_given(tmp_path, monkeypatch):
    writev, chance = os.writev, random.Random(3)

    def short(fd, buffers):
        first = buffers[0][: chance.randint(1, 3_000_000)]
        is_whole = len(first) == len(buffers[0])
        return writev(fd, [first, *buffers[1:2]] if is_whole else [first])

    monkeypatch.setattr("artifactsync.checkpoint.write.os.writev", short)
    state = {str(number): torch.rand(700_001) for number in range(20)}
    written = write_snapshot(_snapshot(state), tmp_path / "x.pt")
    assert hashlib.sha256((tmp_path / "x.pt").read_bytes()).hexdigest() == written.sha256
    loaded = torch.load(tmp_path / "x.pt", weights_only=True)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())


@pytest.fixture
def courier(monkeypatch, tmp_path):
    fresh = Courier()
    monkeypatch.setattr(courier_module, "_the_courier", fresh)
    thread = begin_courier(open_store(tmp_path / "remote"))
    assert thread is not None
    thread.join(20)
    assert fresh.is_ready
    yield fresh
    fresh.end()


def write_beside(tmp_path):
    image = FileImage({"weights": torch.rand(6_000_000)})
    writing = FileWriting(image, tmp_path / "x.pt", hashes_beside=True)
    try:
        return writing.run()
    finally:
        writing.source.close()


@pytest.mark.parametrize("waits_s", [0.0, 0.005])
def test_who_is_kept_waiting_after_each_call_makes_fewer(tmp_path, monkeypatch, waits_s):
    writev, now_s, calls = os.writev, 0.0, []

    def waiting(fd, buffers):
        nonlocal now_s
        now_s += waits_s  # without a core: another thread has the interpreter lock
        calls.append(writev(fd, buffers))
        return calls[-1]

    monkeypatch.setattr("artifactsync.checkpoint.write.os.writev", waiting)
    monkeypatch.setattr("artifactsync.checkpoint.write.time.perf_counter", lambda: now_s)
    monkeypatch.setattr("artifactsync.checkpoint.write.time.thread_time", lambda: 0.0)
    state = {f"layer{number}": torch.arange(size) for number, size in enumerate([3, 6 << 20, 100_001, 2 << 20])}
    written = FileWriting(FileImage(state), tmp_path / "a.pt").run()
    assert sum(calls) == written.size_bytes
    assert hashlib.sha256((tmp_path / "a.pt").read_bytes()).hexdigest() == written.sha256
    assert len(calls) >= 16, "short ones at first"
    if waits_s:
        assert max(calls) >= 16 << 20
        assert len(calls) < 30
    else:
        assert max(calls) == 1 << 20


@pytest.mark.usefixtures("courier")
def test_the_process_beside_this_one_hashes_what_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(FileWriting, "_hash_into", lambda *_: pytest.fail("this process hashes too"))
    written = write_beside(tmp_path)
    assert hashlib.sha256((tmp_path / "x.pt").read_bytes()).hexdigest() == written.sha256


@pytest.mark.parametrize("when", ["before", "while"])
def test_it_is_killed_while_it_hashes(tmp_path, courier, when):
    os.kill(courier.pid, signal.SIGKILL if when == "before" else signal.SIGSTOP)
    thread = threading.Timer(0.5, os.kill, (courier.pid, signal.SIGKILL))
    if when == "while":
        thread.start()
    written = write_beside(tmp_path)
    assert hashlib.sha256((tmp_path / "x.pt").read_bytes()).hexdigest() == written.sha256


def test_a_file_that_is_given_up_waits_for_no_hash(tmp_path, courier):
    os.kill(courier.pid, signal.SIGSTOP)
    writing = FileWriting(FileImage({"weights": torch.rand(6_000_000)}), tmp_path / "x.pt", hashes_beside=True)
    threading.Timer(0.3, writing.give_up, (UploadError("a newer one goes first"),)).start()
    with pytest.raises(UploadError, match="a newer one"):
        writing.run()
    writing.source.close()
    assert not (tmp_path / "x.pt").exists()
