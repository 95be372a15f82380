from __future__ import annotations

import gc
import resource
import signal
import threading
import time
import weakref

import pytest
import torch

from artifactsync import Run
from artifactsync.checkpoint import write
from artifactsync.checkpoint.load import load_file
from artifactsync.checkpoint.local_run import LocalRun
from artifactsync.checkpoint.saving import SkippedError
from artifactsync.checkpoint.state_io import save_state, wait_written
from artifactsync.errors import (
    ArtifactSyncError,
    ConfigurationError,
    DamagedError,
    DestinationError,
    DiskFullError,
    NotDurableError,
)
from artifactsync.stores import open_store
from artifactsync.testing import FaultyStore

WEIGHT = 300_000


def _state(value):
    return {"w": torch.full((WEIGHT,), float(value)), "step": value}


@pytest.fixture
def gate(monkeypatch):
    """Files are written but for their end; set it, and they become whole."""
    may_end, real = threading.Event(), write.FileWriting._write

    def hold(self):
        real(self)
        while not may_end.wait(0.01):
            self._check()

    monkeypatch.setattr(write.FileWriting, "_write", hold)
    yield may_end
    may_end.set()


def test_the_upload_begins_before_the_file_is_whole_and_the_commit_comes_after(tmp_path, gate):
    began, remote = threading.Event(), open_store(f"file://{tmp_path}/remote")
    watched = FaultyStore(remote, on_call=lambda c: began.set() if c.operation == "put" and ".pt" in c.key else None)
    with Run("r", remote=watched, local_root=tmp_path / "runs") as run:
        pending = run.save(_state(1), step=1)
        assert began.wait(30)
        assert not pending.done()
        assert not list(run.local_dir.rglob("ep*.pt"))
        assert run.latest() is None
        gate.set()
        committed = pending.result(30)
        local = run.local_dir / committed.files[0].path
        assert local.read_bytes() == remote.get(committed.files[0].key)
        assert run.verify(deep=True).ok


def test_a_full_disk_in_the_middle_leaves_nothing_anywhere_and_the_next_save_is_fine(tmp_path, s3):
    with Run("r", remote=s3.fresh_url(), storage_options=s3.storage_options, local_root=tmp_path) as run:
        run.save({"w": torch.zeros(10)}, step=1).result(30)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000_000, hard))
        try:
            pending = run.save({"w": torch.randn(5_000_000)}, step=2)
            error = pending.exception(30)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            signal.signal(signal.SIGXFSZ, handler)
        assert isinstance(error, (DiskFullError, DestinationError))  # the disk's own error, not one of the remote
        assert [c.step for c in run.checkpoints()] == [1]
        assert not [name for name in run.fs.find("") if "ba2" in name]
        run.save(_state(3), step=3).result(30)
        with pytest.raises((DiskFullError, DestinationError)):
            run.wait()


def test_a_save_in_between_is_skipped_and_says_so(tmp_path, gate):
    with Run("r", remote=f"file://{tmp_path}/remote", local_root=tmp_path) as run:
        first = save_state(run, _state(1), step=1, backpressure="skip")
        second = save_state(run, _state(2), step=2, backpressure="skip")
        assert second.done()
        with pytest.raises(NotDurableError, match="'ep0-ba2' was skipped: the one before it was still being written"):
            second.result()
        assert not second.cancel()
        gate.set()
        assert first.result(30).step == 1
        save_state(run, _state(3), step=3, backpressure="skip").result(30)
        run.wait()  # a skipped one is no failure
        assert [c.step for c in run.checkpoints()] == [1, 3]


@pytest.mark.parametrize("where", ["remote", "local"])
def test_the_newest_takes_the_place_of_the_one_in_flight_but_not_twice_running(tmp_path, gate, where):
    run = (
        Run("r", remote=f"file://{tmp_path}/remote", local_root=tmp_path)
        if where == "remote"
        else LocalRun("r", local_root=tmp_path)
    )
    first = save_state(run, _state(1), step=1, backpressure="newest")
    give_up_at = time.monotonic() + 30
    while where == "remote" and not list(tmp_path.glob("remote/r/.artifactsync/intents/*")):
        assert time.monotonic() < give_up_at  # else the line lets the second go first, which the gate holds
    second = save_state(run, _state(2), step=2, backpressure="newest")
    with pytest.raises(SkippedError, match="'ep0-ba1' was given up for a newer one"):
        first.result(30)
    third = []
    saver = threading.Thread(target=lambda: third.append(save_state(run, _state(3), step=3, backpressure="newest")))
    saver.start()
    saver.join(0.2)
    assert saver.is_alive()  # or a loop that saves without a break would never get one through
    gate.set()
    saver.join(30)
    assert [second.result(30).step, third[0].result(30).step] == [2, 3]
    run.wait()
    run.close()
    assert not list(tmp_path.rglob("*.tmp"))
    assert load_file(tmp_path / "r" / "checkpoints" / "ep0-ba2-rank0.pt")["step"] == 2


def test_an_unknown_policy_is_named(tmp_path):
    with (
        Run("r", remote=f"file://{tmp_path}/remote", local_root=tmp_path) as run,
        pytest.raises(ConfigurationError, match="no back-pressure policy 'drop'"),
    ):
        save_state(run, _state(1), step=1, backpressure="drop")


def test_saves_from_many_threads_are_each_what_they_were(tmp_path):
    with Run("r", remote=f"file://{tmp_path}/remote", local_root=tmp_path / "runs") as run:
        pending = {}

        def save(number):
            pending[number] = run.save(_state(number), step=number)

        threads = [threading.Thread(target=save, args=(number,)) for number in range(1, 9)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for number, each in pending.items():
            (file,) = run.ensure_local(each.result(60)).values()
            saved = load_file(file)
            assert saved["step"] == number
            assert saved["w"].unique().tolist() == [float(number)]
        assert run.verify(deep=True).ok


def test_the_same_state_twice_is_sent_once(tmp_path):
    puts = []
    remote = open_store(f"file://{tmp_path}/remote")
    watched = FaultyStore(remote, on_call=lambda c: puts.append(c.key) if c.operation == "put" else None)
    with Run("r", remote=watched, local_root=tmp_path / "runs") as run:
        state = _state(1)
        run.save(state, step=1).result(30)
        best = save_state(run, state, step=2, path="checkpoints/best-rank0.pt").result(30)
        assert best.files[0].key == "r/checkpoints/best-rank0.pt"
        assert [key for key in puts if key.endswith("rank0.pt")] == ["r/checkpoints/ep0-ba1-rank0.pt"]
        assert remote.get(best.files[0].key) == remote.get("r/checkpoints/ep0-ba1-rank0.pt")


def test_a_remote_that_is_down_leaves_the_local_file(tmp_path, s3, fault_proxy):
    cloud = fault_proxy(s3)
    with Run("r", remote=s3.fresh_url(), local_root=tmp_path, storage_options=cloud.storage_options) as run:
        cloud.proxy.cut()
        pending = run.save(_state(1), step=1)
        local = run.local_dir / "checkpoints" / "ep0-ba1-rank0.pt"
        while not local.exists():
            assert pending.exception is not None
        assert load_file(local)["step"] == 1
        cloud.proxy.heal()
        pending.result(60)


def test_an_error_before_the_file_is_the_checkpoints_own(tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("torch cannot save this")

    monkeypatch.setattr("artifactsync.checkpoint.saving.FileImage", fail)
    run = Run("r", remote=f"file://{tmp_path}/remote", local_root=tmp_path)
    with pytest.raises(RuntimeError, match="torch cannot"):
        run.save(_state(1), step=1).result(30)
    with pytest.raises(RuntimeError, match="torch cannot"):
        run.close()
    assert issubclass(SkippedError, ArtifactSyncError)


def test_two_saves_to_one_path_are_each_what_they_were(tmp_path):
    """The first is sent when the second has taken its name on the disk."""
    remote, reached, go_on = open_store(f"file://{tmp_path}/remote"), threading.Event(), threading.Event()

    def on_call(call):
        if "/intents/" in call.key:
            reached.set()
            assert go_on.wait(30)

    with Run("r", remote=FaultyStore(remote, on_call=on_call), local_root=tmp_path / "runs") as run:
        pending = [run.save(_state(1), step=1)]
        assert reached.wait(30)
        pending.append(run.save(_state(2), step=1))
        wait_written(run)
        go_on.set()
        for value, each in enumerate(pending, start=1):
            (file,) = each.result(30).files
            (tmp_path / "copy.pt").write_bytes(remote.get(file.key))
            assert load_file(tmp_path / "copy.pt")["step"] == value


def test_a_run_that_is_gone_leaves_neither_memory_nor_descriptors(tmp_path):
    run = Run("r", remote=f"file://{tmp_path}/remote", local_root=tmp_path)
    run.save(_state(1), step=1).result(30)
    run.close()
    gone = weakref.ref(run)
    del run
    gc.collect()
    assert gone() is None


def test_a_checkpoint_that_fails_is_told_at_once(tmp_path, caplog):
    remote = open_store(f"file://{tmp_path}/remote")
    with Run("r", remote=remote, local_root=tmp_path) as run:
        for step in range(3):
            run.save(_state(step), step=step).result(30)
    remote.put(f"r/.artifactsync/journal/{2:020d}.json", b"garbage")  # noticed by whoever reads it all: the first save
    run = Run("r", remote=remote, local_root=tmp_path)
    assert run.save(_state(5), step=5).exception(30) is not None
    assert "checkpoint 'ep0-ba5' of run 'r' is not durable: a journal record cannot be read" in caplog.text
    with pytest.raises(DamagedError):
        run.close()
