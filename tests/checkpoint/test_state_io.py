from __future__ import annotations

import threading

import pytest
import torch

from artifactsync import Run
from artifactsync.checkpoint import state_io, write
from artifactsync.checkpoint.local_run import LocalRun
from artifactsync.errors import CheckpointNotFoundError, ConfigurationError, DamagedError, WaitTimeoutError
from artifactsync.run import LocalFile


def _open(tmp_path, host="a", **more):
    return Run("r", remote=tmp_path / "remote", local_root=tmp_path / host, **more)


def test_save_and_resume_by_name_elsewhere(tmp_path):
    model = torch.nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with _open(tmp_path) as run:
        pending = run.save(
            {"model": model, "optimizer": optimizer, "note": "x"}, step=7, epoch=1, metrics={"loss": 0.5}
        )
        with torch.no_grad():
            expected = model.weight.clone()
            model.weight.zero_()
        checkpoint = pending.result(30)
        assert [file.path for file in checkpoint.files] == ["checkpoints/ep1-ba7-rank0.pt"]
        local = run.local_dir / "checkpoints" / "ep1-ba7-rank0.pt"
        assert (local.parent / "latest-rank0.pt").resolve() == local.resolve()
    with _open(tmp_path, "b") as run:
        resumed = run.resume({"model": model, "optimizer": optimizer})
        assert (resumed.step, resumed.checkpoint.epoch, resumed.state["note"]) == (7, 1, "x")
        assert torch.equal(model.weight, expected)
        assert run.resume().state["note"] == "x"


def test_a_loss_with_its_graph_is_a_metric(tmp_path):
    loss = (torch.ones(1, requires_grad=True) * 2).sum()
    with _open(tmp_path) as run:
        committed = run.save({"a": 1}, step=torch.tensor(3), metrics={"loss": loss, "one": torch.ones(1)}).result(30)
        assert (committed.step, committed.metrics) == (3, {"loss": 2.0, "one": 1.0})
        with pytest.raises(ConfigurationError, match="'loss' is no number"):
            run.save({"a": 1}, step=4, metrics={"loss": torch.ones(2)})


def test_a_new_run_has_nothing_to_resume(tmp_path):
    with _open(tmp_path) as run:
        assert run.resume({"a": 1}) is None


def test_a_damaged_checkpoint_is_passed_over_loudly(tmp_path):
    with _open(tmp_path) as run:
        for step in (1, 2):
            run.save({"step": step, "w": torch.full((1000,), float(step))}, step=step).result(30)
    newest = tmp_path / "remote" / "r" / "checkpoints" / "ep0-ba2-rank0.pt"
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    with _open(tmp_path, "b") as run:
        with pytest.warns(RuntimeWarning, match="'ep0-ba2' of run 'r' is damaged"):
            resumed = run.resume()
        assert resumed.step == resumed.state["step"] == 1
        (newest.parent / "ep0-ba1-rank0.pt").write_bytes(b"")
        (run.local_dir / "checkpoints" / "ep0-ba1-rank0.pt").unlink()
        with pytest.warns(RuntimeWarning), pytest.raises(DamagedError, match="none of the 2 checkpoints"):
            run.resume()


def test_what_cannot_be_saved_is_refused_before_anything_happens(tmp_path):
    with _open(tmp_path) as run:
        with pytest.raises(ConfigurationError, match=r"\['x'\]"):
            run.save({"x": object()}, step=1)
        run.save({"x": 1}, step=1).result(30)
        assert len(run.checkpoints()) == 1


def _save_files(run, step, *names):
    for name in names:
        (run.local_dir / name).parent.mkdir(parents=True, exist_ok=True)
        torch.save({"step": step}, run.local_dir / name)
    return run.save_files([run.local_dir / name for name in names], step=step).result(30)


def test_files_that_are_no_state_are_named(tmp_path):
    with _open(tmp_path) as run:
        _save_files(run, 1, "weights.bin")
        with pytest.raises(
            CheckpointNotFoundError, match=r"no checkpoint of run 'r' holds a state.*'ep0-ba1'"
        ) as raised:
            run.resume()
        assert "Run.pull" in raised.value.hint


def test_a_single_file_that_torch_can_load_is_a_state(tmp_path):
    with _open(tmp_path) as run:
        run.save({"step": 1}, step=1).result(30)
        _save_files(run, 2, "best.pt", "notes.txt")
        resumed = run.resume()
        assert (resumed.step, resumed.state, resumed.passed_over) == (2, {"step": 2}, ())


def test_files_without_a_state_are_passed_over_loudly(tmp_path):
    with _open(tmp_path) as run:
        _save_files(run, 1, "old.safetensors")
        run.save({"step": 2}, step=2).result(30)
        _save_files(run, 3, "export/weights.safetensors")
        newest = _save_files(run, 4, "export/more.safetensors")
    with _open(tmp_path, "b") as run:
        with pytest.warns(RuntimeWarning, match=r"'ep0-ba4' \(step 4\).*going on from 'ep0-ba2' \(step 2\)") as told:
            resumed = run.resume()
        assert (resumed.step, resumed.state) == (2, {"step": 2})
        assert resumed.passed_over == ("ep0-ba4", "ep0-ba3")
        assert [warning.filename for warning in told] == [__file__]  # it points at the caller's line
        assert not (run.local_dir / newest.files[0].path).exists()  # and what is of no use was not fetched


def test_states_of_another_shape_are_never_passed_over(tmp_path):
    with _open(tmp_path) as run:
        run.save({"step": 1}, step=1).result(30)
        _save_files(run, 2, "model.pt", "optimizer.pt")
        with pytest.raises(CheckpointNotFoundError, match=r"'ep0-ba2' \(step 2\) has no state of rank 0 among its 2"):
            run.resume()


def _hold_writes(monkeypatch):
    """No file becomes whole before the event that is returned."""
    may_write, real = threading.Event(), write.FileWriting._write

    def slow(self):
        real(self)
        may_write.wait(30)

    monkeypatch.setattr(write.FileWriting, "_write", slow)
    return may_write


def test_one_snapshot_in_flight_then_wait(tmp_path, monkeypatch):
    may_write = _hold_writes(monkeypatch)
    weight = torch.zeros(10)
    with _open(tmp_path) as run:
        run.save({"w": weight}, step=1)
        weight.fill_(1)
        second_done = threading.Event()
        second = threading.Thread(target=lambda: (run.save({"w": weight}, step=2), second_done.set()))
        second.start()
        assert not second_done.wait(0.2)  # the first one's memory is still being read
        may_write.set()
        assert second_done.wait(30)
        second.join()
    with _open(tmp_path, "b") as run:
        for step, checkpoint in enumerate(run.checkpoints()):
            (file,) = run.ensure_local(checkpoint).values()
            assert torch.load(file, weights_only=True)["w"].tolist() == [float(step)] * 10


def test_an_outage_delays_commits_and_no_save(tmp_path, s3, fault_proxy):
    cloud = fault_proxy(s3)
    with Run("r", remote=s3.fresh_url(), local_root=tmp_path, storage_options=cloud.storage_options) as run:
        cloud.proxy.cut()
        pending = [run.save({"w": torch.full((1000,), float(step))}, step=step) for step in range(5)]
        state_io.wait_written(run)
        assert len(list((run.local_dir / "checkpoints").glob("ep*.pt"))) == 5
        assert not any(each.done() for each in pending)
        cloud.proxy.heal()
        assert [each.result(60).step for each in pending] == [0, 1, 2, 3, 4]


def test_a_failed_write_is_in_its_own_pending_checkpoint(tmp_path):
    with _open(tmp_path) as run:
        (run.local_dir / "checkpoints").write_text("in the way")
        pending = run.save({"x": 1}, step=1)
        assert "cannot write" in str(pending.exception(30))
        (run.local_dir / "checkpoints").unlink()
        run.save({"x": 1}, step=2).result(30)
        with pytest.raises(Exception, match="cannot write"):
            run.wait()


def test_without_a_remote_the_folder_is_the_run(tmp_path):
    first = LocalRun("r", local_root=tmp_path)
    assert first.attempt == 1
    assert first.latest() is None
    state_io.save_state(first, {"x": 1}, step=1)
    state_io.save_state(first, {"x": 2}, step=2)
    first.close()
    second = LocalRun("r", local_root=tmp_path)
    assert second.attempt == 2
    assert state_io.resume_state(second).state == {"x": 2}
    newest = tmp_path / "r" / "checkpoints" / "ep0-ba2-rank0.pt"
    newest.write_bytes(newest.read_bytes()[:-100])
    with pytest.warns(RuntimeWarning, match="damaged"):
        assert state_io.resume_state(second).state == {"x": 1}
    with (tmp_path / "r" / ".artifactsync" / "local.jsonl").open("a") as file:
        file.write('{"name": "torn')  # a crash in mid-line
    assert [c.step for c in LocalRun("r", local_root=tmp_path).checkpoints()] == [1, 2]


def _prepared(run, name):
    def prepare():
        file = run.local_dir / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"1")
        return [LocalFile(path=name, local=file, size_bytes=1)]

    return prepare


def test_a_line_that_a_crash_tore_takes_no_later_one_with_it(tmp_path):
    run = LocalRun("r", local_root=tmp_path)
    run.save_prepared(_prepared(run, "a.pt"), step=1).result(20)
    with run._list.open("a") as torn:
        torn.write('{"name": "ep0-b')
    again = LocalRun("r", local_root=tmp_path)
    saved = again.save_prepared(_prepared(again, "b.pt"), step=2).result(20)
    found = LocalRun("r", local_root=tmp_path).checkpoints()
    assert [c.step for c in found] == [1, 2]
    assert found[-1] == saved


def test_waiting_for_the_local_disk_ends_in_time(tmp_path):
    go_on = threading.Event()
    run = LocalRun("r", local_root=tmp_path)
    run.save_prepared(lambda: go_on.wait(20) and _prepared(run, "a.pt")(), step=1)
    with pytest.raises(WaitTimeoutError, match="1 checkpoint"):
        run.wait(0.05)
    go_on.set()
    run.wait(20)
    assert [c.step for c in run.checkpoints()] == [1]
