"""Resume from what a killed process left on this disk: newer than every commit, of the same lineage, verified."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import textwrap

import pytest
import torch

from artifactsync import Run
from artifactsync.checkpoint.state_io import wait_written
from artifactsync.errors import ArtifactSyncError
from artifactsync.journal.local_checkpoints import LocalCheckpoint
from artifactsync.stores import open_store
from artifactsync.testing import Fault, FaultyStore

_RECORDS = ".artifactsync/local"


@pytest.fixture
def remote(tmp_path):
    return open_store(tmp_path / "remote")


def state_of(step):
    return {"w": torch.full((500,), float(step)), "step": step}


def open_run(remote, tmp_path, host="a", **more):
    return Run("r", remote=remote, local_root=tmp_path / host, **more)


def save(run, step):
    return run.save(state_of(step), step=step, metrics={"loss": 1 / step})


def die(run):
    """End a run as SIGKILL would, as far as the remote and the disk can tell."""
    run._writing.heart.stop()
    run._writing.publisher.close()
    run._is_closed = True
    with contextlib.suppress(ArtifactSyncError):
        run._queue.close(0)


def leave_behind(remote, tmp_path, *, committed=(1,), local=(2,), host="a"):
    """An attempt that committed some steps, wrote some more to the disk alone, and is gone."""
    deaf = FaultyStore(remote)
    run = open_run(deaf, tmp_path, host, takeover=True)
    for step in committed:
        save(run, step).result(30)
    deaf._plan.faults = (Fault(kind="transient", keys="r/checkpoints/*"),)
    pending = [save(run, step) for step in local]
    wait_written(run)
    assert not any(one.done() for one in pending)
    die(run)
    return run.local_dir


def test_a_newer_local_checkpoint_is_taken_and_published(remote, tmp_path):
    leave_behind(remote, tmp_path)
    with open_run(remote, tmp_path, takeover=True) as run:
        state = state_of(0)
        resumed = run.resume(state)
        assert (resumed.step, state["step"], resumed.checkpoint.attempt) == (2, 2, 1)
        assert torch.equal(state["w"], state_of(2)["w"])
        committed = resumed.publishing.result(30)
        assert (committed.step, committed.name, committed.attempt) == (2, "ep0-ba2", 2)
        assert dict(committed.metrics) == {"loss": 0.5}
        assert run.latest() == committed
        assert run.verify(deep=True).ok
    with open_run(remote, tmp_path, "elsewhere") as run:
        assert (run.resume().step, run.resume().publishing) == (2, None)


def test_the_newest_of_several_is_taken(remote, tmp_path):
    leave_behind(remote, tmp_path, local=(2, 3))
    with open_run(remote, tmp_path, takeover=True) as run:
        assert run.resume().step == 3


def test_on_another_machine_the_commit_is_taken(remote, tmp_path):
    leave_behind(remote, tmp_path)
    with open_run(remote, tmp_path, "b", takeover=True) as run:
        assert (run.resume().step, run.resume().publishing) == (1, None)


def test_a_stale_one_is_never_taken(remote, tmp_path):
    """Machine a went on to step 9 alone; machine b resumed from step 1 and committed step 2: a's step 9 is history."""
    leave_behind(remote, tmp_path, local=(9,))
    with open_run(remote, tmp_path, "b", takeover=True) as run:
        save(run, 2).result(30)
    with open_run(remote, tmp_path, "a") as run:
        assert (run.resume().step, run.resume().publishing) == (2, None)


def test_a_later_attempt_without_a_commit_makes_nothing_stale(remote, tmp_path):
    leave_behind(remote, tmp_path, local=(9,))
    open_run(remote, tmp_path, "b", takeover=True).close(state="failed")
    with open_run(remote, tmp_path, "a") as run:
        assert run.resume().step == 9


def test_one_of_another_run_with_this_name_is_never_taken(remote, tmp_path):
    leave_behind(remote, tmp_path, committed=(), local=(9,))
    other = open_store(tmp_path / "other")
    with open_run(other, tmp_path, "b") as run:  # its attempt has number 1, too
        save(run, 1).result(30)
    with open_run(other, tmp_path, "a") as run:
        assert run.resume().step == 1


def test_a_retired_commit_of_a_later_attempt_still_makes_it_stale(remote, tmp_path):
    leave_behind(remote, tmp_path, committed=(), local=(9,))
    with open_run(remote, tmp_path, "b", takeover=True) as run:
        first = save(run, 1).result(30)
        save(run, 2).result(30)
        run._attempt.retire(lambda _: {"commits": [first.seq + 1, first.seq], "names": [], "keys": []})
        assert run.checkpoints() == []
    with open_run(remote, tmp_path, "a") as run:
        assert run.resume() is None


@pytest.mark.parametrize("damage", ["flipped", "short", "gone"])
def test_a_damaged_one_is_passed_over_loudly(remote, tmp_path, damage):
    local_dir = leave_behind(remote, tmp_path, local=(2, 3))
    file = local_dir / "checkpoints/ep0-ba3-rank0.pt"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data if damage == "flipped" else data[:-1])
    if damage == "gone":
        file.unlink()
    with open_run(remote, tmp_path, takeover=True) as run:
        with pytest.warns(RuntimeWarning, match="local checkpoint 'ep0-ba3' of run 'r' is damaged"):
            resumed = run.resume()
        assert resumed.step == 2


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[]", "null", '{"format": 2}', "\0", '{"format": 1, "name": 1}'],
)
def test_a_damaged_record_counts_for_nothing(remote, tmp_path, text):
    local_dir = leave_behind(remote, tmp_path)
    (local_dir / _RECORDS / "ep0-ba2.json").write_text(text)
    with open_run(remote, tmp_path, takeover=True) as run:
        assert run.resume().step == 1


def test_a_record_that_points_out_of_the_folder_counts_for_nothing(remote, tmp_path):
    local_dir = leave_behind(remote, tmp_path)
    record = local_dir / _RECORDS / "ep0-ba2.json"
    fields = json.loads(record.read_text())
    fields["files"][0]["path"] = "../../stolen.pt"
    record.write_text(json.dumps(fields))
    with open_run(remote, tmp_path, takeover=True) as run:
        assert run.resume().step == 1


def test_a_reader_takes_commits_alone(remote, tmp_path):
    leave_behind(remote, tmp_path)
    with open_run(remote, tmp_path, read_only=True) as run:
        assert run.resume().step == 1


def test_odd_names_and_many_records(remote, tmp_path):
    with open_run(remote, tmp_path) as run:
        name = "../" + "ü/" * 100
        for step in range(20):
            run.record_local([], step=step, name=f"{step}{name}", epoch=0, batch=0, metrics={"loss": float("nan")})
        assert len(list((run.local_dir / _RECORDS).iterdir())) == 16
        assert all(isinstance(local, LocalCheckpoint) for local in run.local_checkpoints())
    assert {path.name for path in tmp_path.iterdir()} == {"remote", "a"}


def test_sigkill_between_the_disk_and_the_commit(tmp_path):
    program = textwrap.dedent(f"""
        import os, signal, torch
        from artifactsync import Run
        from artifactsync.checkpoint.state_io import wait_written
        from artifactsync.stores import open_store
        from artifactsync.testing import Fault, FaultyStore
        store = FaultyStore(open_store({str(tmp_path / "remote")!r}))
        run = Run("r", remote=store, local_root={str(tmp_path / "a")!r})
        run.save({{"step": 1}}, step=1).result(30)
        store._plan.faults = (Fault(kind="transient", keys="r/checkpoints/*"),)
        run.save({{"step": 2}}, step=2)
        wait_written(run)
        os.kill(os.getpid(), signal.SIGKILL)
        """)
    done = subprocess.run([sys.executable, "-c", program], check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    with Run("r", remote=tmp_path / "remote", local_root=tmp_path / "a") as run:
        assert run.resume().state == {"step": 2}
        run.wait(30)
        assert run.latest().step == 2
