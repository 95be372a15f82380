"""``Run`` as a user meets it, on a local folder, on S3 and on GCS, without torch."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import pytest

from artifactsync import Run, list_runs
from artifactsync.errors import (
    AlreadyExistsError,
    ConfigurationError,
    DamagedError,
    DestinationError,
    MissingPackageError,
    ObjectNotFoundError,
    RemoteUnreachableError,
    RunFencedError,
    RunIsLiveError,
    RunNameError,
    RunNotFoundError,
    UnfencedStoreError,
    UnsafeKeyError,
    UploadError,
    WaitTimeoutError,
)
from artifactsync.stores import open_store
from artifactsync.testing import Call, Fault, FaultyStore
from artifactsync.transfer.patience import Patience
from tests.testing.dict_store import DictStore


@pytest.fixture(params=["local", "s3", "gcs"])
def remote(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """Arguments that open a fresh remote."""
    if request.param == "local":
        return {"remote": str(tmp_path / "remote")}
    cloud = request.getfixturevalue(request.param)
    return {"remote": cloud.fresh_url(), "storage_options": cloud.storage_options}


@pytest.fixture
def local(tmp_path: Path) -> dict[str, Any]:
    return {"remote": str(tmp_path / "remote"), "local_root": tmp_path / "runs"}


def write(run: Run, path: str, data: bytes) -> Path:
    file = run.local_dir / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    return file


def test_the_whole_promise(remote: dict[str, Any], tmp_path: Path) -> None:
    with Run("exp7", local_root=tmp_path / "here", **remote) as run:
        assert run.attempt == 1
        assert run.latest() is None
        for step in (10, 20):
            model = write(run, f"checkpoints/{step}/model.pt", b"m" * step * 1000)
            state = write(run, f"checkpoints/{step}/optim.pt", b"o" * step * 2000)
            pending = run.save_files([model, state], step=step, epoch=1, metrics={"loss": 1 / step})
            checkpoint = pending.result(60)
        assert [file.path for file in checkpoint.files] == ["checkpoints/20/model.pt", "checkpoints/20/optim.pt"]
        run.push(write(run, "logs-rank0.txt", b"a line\n"), growing=True)
        run.wait(60)
        assert run.status().durable_step == 20

    elsewhere = Run("exp7", local_root=tmp_path / "there", read_only=True, **remote)
    latest, best = elsewhere.latest(), elsewhere.best("loss", "max")
    assert latest
    assert best
    assert (latest.name, latest.step, latest.epoch, latest.batch) == ("ep1-ba20", 20, 1, 20)
    assert best.step == 10
    report = elsewhere.pull(tmp_path / "pulled")
    assert report.to_json() == {
        "run_name": "exp7",
        "checkpoint": "ep1-ba20",
        "destination": str(tmp_path / "pulled"),
        "files": 3,
        "bytes": 60_007,
        "seconds": report.to_json()["seconds"],
        "verified": True,
        "skipped_files": 0,
        "fallback_from": None,
        "dry_run": False,
        "paths": ["checkpoints/20/model.pt", "checkpoints/20/optim.pt", "logs-rank0.txt"],
        "refused": [],
    }
    assert (tmp_path / "pulled/checkpoints/20/optim.pt").read_bytes() == b"o" * 40_000
    assert (tmp_path / "pulled/logs-rank0.txt").read_bytes() == b"a line\n"
    assert elsewhere.pull(tmp_path / "pulled").skipped_files == 2
    verified = elsewhere.verify(deep=True)
    assert (verified.ok, verified.checked_files, verified.checked_bytes) == (True, 4, 90_000)
    status = elsewhere.status()
    assert (status.state, status.alive, status.durable_step, status.attempt) == ("completed", False, 20, 1)
    assert [(r.run_name, r.last_step, r.checkpoints, r.bytes, r.state) for r in list_runs(**remote)] == [
        ("exp7", 20, 2, 90_000, "completed")
    ]
    assert elsewhere.fs.cat_file("logs-rank0.txt") == b"a line\n"
    assert sorted(Path(f).name for f in elsewhere.fs.find("checkpoints")) == ["model.pt"] * 2 + ["optim.pt"] * 2

    with Run("exp7", local_root=tmp_path / "there", **remote) as second:
        assert second.attempt == 2
        files = second.ensure_local(latest)
        assert files["checkpoints/20/model.pt"].read_bytes() == b"m" * 20_000


def test_keys_are_plain(local: dict[str, Any], tmp_path: Path) -> None:
    with Run("exp7", **local) as run:
        run.save_files([write(run, "checkpoints/ep0-ba1-rank0.pt", b"x")], step=1).result(10)
        run.push(write(run, "logs-rank0.txt", b"log"))
        outside = tmp_path / "notes"
        (outside / "deep").mkdir(parents=True)
        (outside / "deep/n.md").write_text("n")
        run.push(outside)
        run.push(outside / "deep/n.md")
        run.push(outside, "docs/")
        run.push(outside / "deep/n.md", "docs/renamed.md")
    root = tmp_path / "remote/exp7"
    plain = {p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file() and ".artifactsync" not in p.parts}
    assert plain == {
        "checkpoints/ep0-ba1-rank0.pt",
        "checkpoints/latest-rank0.pt.symlink",
        "docs/deep/n.md",
        "docs/renamed.md",
        "logs-rank0.txt",
        "n.md",
        "notes/deep/n.md",
    }
    assert (root / "checkpoints/latest-rank0.pt.symlink").read_text() == "exp7/checkpoints/ep0-ba1-rank0.pt"
    records = sorted((root / ".artifactsync/journal").iterdir())
    assert [json.loads(p.read_text())["kind"] for p in records] == ["claim", "commit", "finish"]
    assert [p.name for p in records] == [f"{n:020d}.json" for n in (1, 2, 3)]
    assert not list((root / ".artifactsync/intents").glob("*"))


def test_two_jobs_with_one_name(local: dict[str, Any]) -> None:
    first = Run("exp7", **local)
    with pytest.raises(RunIsLiveError, match="exp7"):
        Run("exp7", **local)
    second = Run("exp7", takeover=True, **local)
    with pytest.raises(RunFencedError, match="attempt 2"):
        first.save_files([write(first, "a.pt", b"1")], step=1).result(10)
    with pytest.raises(RunFencedError):
        first.close()
    second.save_files([write(second, "a.pt", b"2")], step=2).result(10)
    assert [c.step for c in second.checkpoints()] == [2]
    second.close()


def test_a_damaged_newest_checkpoint_falls_back_loudly(local: dict[str, Any], tmp_path: Path) -> None:
    with Run("exp7", **local) as run:
        for step in (1, 2):
            run.save_files([write(run, f"checkpoints/{step}.pt", b"x" * 100 * step)], step=step).result(10)
    (tmp_path / "remote/exp7/checkpoints/2.pt").write_bytes(b"y" * 200)
    run = Run("exp7", read_only=True, **local)
    assert run.verify().ok
    deep = run.verify(deep=True)
    assert (deep.ok, deep.damaged, deep.missing) == (False, ("exp7/checkpoints/2.pt",), ())
    heard: list[str] = []
    report = run.pull(
        tmp_path / "out", on_fallback=lambda checkpoint, error: heard.append(f"{checkpoint.name} {error}")
    )
    assert (report.checkpoint, report.fallback_from) == ("ep0-ba1", "ep0-ba2")
    assert heard[0].startswith("ep0-ba2")
    assert [p.name for p in (tmp_path / "out").rglob("*") if p.is_file()] == ["1.pt"]
    with pytest.raises(DamagedError):
        run.pull(tmp_path / "named", checkpoint="ep0-ba2")
    (tmp_path / "remote/exp7/checkpoints/1.pt").unlink()
    assert run.verify().missing == ("exp7/checkpoints/1.pt",)
    with pytest.raises(DamagedError):
        run.pull(tmp_path / "none")
    assert not [p for p in (tmp_path / "none").rglob("*") if p.is_file() and not p.name.startswith(".")]


def test_selections(local: dict[str, Any], tmp_path: Path) -> None:
    with Run("exp7", **local) as run:
        run.save_files([write(run, "checkpoints/1.pt", b"1")], step=1, metrics={"loss": 3}).result(10)
        run.save_files([write(run, "checkpoints/2.pt", b"2")], step=2, metrics={"loss": 4}).result(10)
        run.push(write(run, "logs-rank0.txt", b"log"))
        run.push(write(run, "traces/t.json", b"{}"))
    run = Run("exp7", read_only=True, **local)

    def paths(**choice: Any) -> list[str]:
        return list(run.pull(tmp_path / "dry", dry_run=True, **choice).paths)

    assert paths() == ["checkpoints/2.pt", "logs-rank0.txt", "traces/t.json"]
    assert paths(checkpoint="best", metric="loss") == ["checkpoints/1.pt", "logs-rank0.txt", "traces/t.json"]
    assert paths(checkpoint="ep0-ba1", only="checkpoints") == ["checkpoints/1.pt"]
    assert paths(only="logs") == paths(checkpoint="none") == ["logs-rank0.txt", "traces/t.json"]
    assert paths(include=["*.pt"]) == ["checkpoints/2.pt"]
    assert paths(exclude=["traces/*"]) == ["checkpoints/2.pt", "logs-rank0.txt"]
    assert not (tmp_path / "dry").exists()
    with pytest.raises(ConfigurationError, match="metric"):
        paths(checkpoint="best")
    with pytest.raises(FileNotFoundError, match="nope") as caught:
        paths(checkpoint="nope")
    assert "ep0-ba2" in getattr(caught.value, "hint", "")


def test_files_put_there_by_other_tools(local: dict[str, Any], tmp_path: Path) -> None:
    foreign = tmp_path / "remote/theirs/epoch1"
    foreign.mkdir(parents=True)
    (foreign / "weights.bin").write_bytes(b"w" * 10)
    run = Run("theirs", read_only=True, **local)
    assert [(a.path, a.size) for a in run.artifacts()] == [("epoch1/weights.bin", 10)]
    report = run.pull(tmp_path / "out")
    assert (report.checkpoint, report.files) == (None, 1)
    assert (tmp_path / "out/epoch1/weights.bin").read_bytes() == b"w" * 10
    assert run.status().state == "unknown"
    assert run.verify().ok


def test_bad_input(local: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(RunNameError):
        Run("../up", **local)
    with pytest.raises(ConfigurationError, match="no remote"):
        Run("exp7")
    with pytest.raises(ConfigurationError):
        Run("exp7", remote="nonsense://x")
    with Run("exp7", **local) as run:
        with pytest.raises(ObjectNotFoundError, match="missing"):
            run.push(tmp_path / "missing")
        with pytest.raises(ObjectNotFoundError):
            run.save_files([run.local_dir / "missing.pt"], step=1)
        with pytest.raises(ConfigurationError, match="below"):
            run.save_files([tmp_path / "elsewhere.pt"], step=1)
        file = write(run, "a.pt", b"x")
        for name in ("../b", "/b", "a/../../b", ".artifactsync/journal/x"):
            with pytest.raises(UnsafeKeyError):
                run.push(file, name)
        run.save_files([file], step=1).result(10)
        with pytest.raises(AlreadyExistsError, match=r"a\.pt"):
            run.push(file)
    with pytest.raises(ConfigurationError, match="closed"):
        run.save_files([file], step=2)
    reader = Run("exp7", read_only=True, **local)
    with pytest.raises(ConfigurationError, match="reading only"):
        reader.save_files([file], step=2)
    (tmp_path / "file").touch()
    with pytest.raises(DestinationError):
        reader.pull(tmp_path / "file")
    missing = Run("exp8", read_only=True, **local)
    for look in (missing.verify, missing.status, lambda: missing.pull(tmp_path / "x")):
        with pytest.raises(RunNotFoundError, match="exp8") as caught:
            look()
        assert "exp7" in caught.value.hint
    assert missing.latest() is None
    assert not (tmp_path / "x").exists()


def test_a_forked_child_cannot_save_into_the_run_of_its_parent(local: dict[str, Any]) -> None:
    script = """
        import os, sys
        from artifactsync import Run
        from artifactsync.errors import ConfigurationError
        run = Run("exp7", remote=sys.argv[1], local_root=sys.argv[2])
        (run.local_dir / "a.pt").write_bytes(b"x")
        if (child := os.fork()) == 0:
            try:
                run.save_files([run.local_dir / "a.pt"], step=1)
            except ConfigurationError as error:
                os._exit(0 if "forked" in str(error) else 3)
            os._exit(4)
        run.close()
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    command = [sys.executable, "-c", textwrap.dedent(script), local["remote"], str(local["local_root"])]
    assert subprocess.run(command, check=False, timeout=60).returncode == 0


def test_saving_state_without_torch_says_what_to_install(
    local: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    for name in [name for name in sys.modules if name.startswith("artifactsync.checkpoint")]:
        monkeypatch.delitem(sys.modules, name)
    with Run("exp7", **local) as run, pytest.raises(MissingPackageError, match="need torch") as caught:
        run.save({"a": 1}, step=1)
    assert "artifactsync[torch]" in caught.value.hint


class Broken:
    """A store that ignores the condition of a create, as some S3 look-alikes do."""

    def __init__(self, store: Any) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def put_if_absent(self, key: str, body: Any) -> Any:
        return self._store.put(key, body)


def test_a_store_without_put_if_absent_is_refused(tmp_path: Path) -> None:
    broken: Any = Broken(open_store(tmp_path / "broken"))
    with pytest.raises(UnfencedStoreError, match="put-if-absent") as caught:
        Run("exp7", remote=broken, local_root=tmp_path / "runs")
    assert "allow_unfenced" in caught.value.hint
    with Run("exp7", remote=broken, local_root=tmp_path / "runs", allow_unfenced=True) as run:
        run.save_files([write(run, "a.pt", b"x")], step=1).result(10)
    assert [c.step for c in run.checkpoints()] == [1]


def test_a_store_that_is_down_for_a_while_costs_nothing(tmp_path: Path) -> None:
    faulty = FaultyStore(open_store(tmp_path / "remote"))
    run = Run("exp7", remote=faulty, local_root=tmp_path / "runs")
    faulty._plan.faults = [Fault(kind="unreachable", times=5, operations={"put", "head", "put_if_absent"})]
    pending = run.save_files([write(run, "a.pt", b"x")], step=1)
    run.push(write(run, "log.txt", b"x"))
    assert pending.result(60).step == 1
    run.close(60)
    assert faulty.faults_hit >= 5
    assert run.verify(deep=True).ok


def test_waiting_has_an_end_and_says_what_is_missing(tmp_path: Path) -> None:
    faulty = FaultyStore(open_store(tmp_path / "remote"))
    run = Run("exp7", remote=faulty, local_root=tmp_path / "runs")
    faulty._plan.faults = [Fault(kind="unreachable")]
    run.save_files([write(run, "a.pt", b"x")], step=1)
    with pytest.raises(WaitTimeoutError, match=r"1 checkpoint.*last error: .*unreachable"):
        run.wait(0.5)
    assert "unreachable" in (run.status().last_error or "")  # although no file was sent by now
    with pytest.raises(WaitTimeoutError):
        run.close(0.2)


def test_an_unreachable_remote_fails_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(RemoteUnreachableError):
        Run(
            "exp7",
            remote="s3://bucket/x",
            storage_options={"key": "k", "secret": "s", "endpoint_url": "http://127.0.0.1:9"},
            local_root=tmp_path,
        )


def start(code: str, cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=cwd,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_killed_process_leaves_its_last_commit_and_frees_the_run(local: dict[str, Any], tmp_path: Path) -> None:
    code = """
        from artifactsync import Run
        run = Run("exp7", remote="remote", local_root="runs")
        for step in (1, 2):
            (run.local_dir / f"{step}.pt").write_bytes(b"x" * 100000 * step)
            run.save_files([run.local_dir / f"{step}.pt"], step=step).result(30)
        print("saved", flush=True)
        input()
    """
    with start(code, tmp_path) as child:
        assert child.stdout
        assert child.stdout.readline() == "saved\n"
        watcher = Run("exp7", read_only=True, **local)
        assert watcher.status().alive
        with pytest.raises(RunIsLiveError, match=str(child.pid)):
            Run("exp7", **local)
        os.kill(child.pid, signal.SIGKILL)
        child.wait(10)
    assert not watcher.status().alive
    with Run("exp7", **local) as run:
        latest = run.latest()
        assert latest
        assert (run.attempt, latest.step) == (2, 2)


def test_a_run_that_is_never_closed_is_drained_at_exit(local: dict[str, Any], tmp_path: Path) -> None:
    code = """
        from artifactsync import Run
        run = Run("exp7", remote="remote", local_root="runs")
        (run.local_dir / "a.pt").write_bytes(b"x" * 5000000)
        run.save_files([run.local_dir / "a.pt"], step=1)
        run.push(run.local_dir / "a.pt", "copy.pt")
    """
    with start(code, tmp_path) as child:
        _, stderr = child.communicate(timeout=60)
    assert (child.returncode, stderr) == (0, "")
    run = Run("exp7", read_only=True, **local)
    assert [c.step for c in run.checkpoints()] == [1]
    assert [a.path for a in run.artifacts()] == ["copy.pt"]
    assert run.status().state == "completed"


def test_a_script_that_dies_of_an_exception_says_so(local: dict[str, Any], tmp_path: Path) -> None:
    code = """
        from artifactsync import Run
        run = Run("exp7", remote="remote", local_root="runs")
        (run.local_dir / "a.pt").write_bytes(b"x")
        run.save_files([run.local_dir / "a.pt"], step=1)
        raise RuntimeError("out of memory")
    """
    with start(code, tmp_path) as child:
        _, stderr = child.communicate(timeout=60)
    assert child.returncode == 1
    assert stderr.splitlines()[-1] == "RuntimeError: out of memory"
    run = Run("exp7", read_only=True, **local)
    assert [c.step for c in run.checkpoints()] == [1]
    assert run.status().state == "failed"


def test_what_cannot_be_drained_is_said_in_one_line(tmp_path: Path) -> None:
    code = """
        import os, shutil
        from artifactsync import Run
        os.environ["ARTIFACTSYNC_GRACE_S"] = "0.5"
        run = Run("exp7", remote="remote", local_root="runs")
        (run.local_dir / "a.pt").write_bytes(b"x")
        run._writing.heart.stop()
        shutil.rmtree("remote")
        open("remote", "w").close()
        run.save_files([run.local_dir / "a.pt"], step=1)
    """
    with start(code, tmp_path) as child:
        _, stderr = child.communicate(timeout=60)
    assert child.returncode == 0
    assert "Traceback" not in stderr
    told = [line for line in stderr.splitlines() if line.startswith("artifactsync: ")]
    assert len(told) == 1  # beside what is logged
    assert told[0].startswith("artifactsync: not everything is durable: ")


def test_an_artifact_that_cannot_be_a_file_here_is_left_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = DictStore()
    for key in ("r/ok.txt", "r/a\x1b[31m.txt", "r/../../up.txt", "r/back\\slash.txt"):
        store.put(key, b"x")
    run = Run("r", remote=store, local_root=tmp_path / "runs", read_only=True)
    report = run.pull(tmp_path / "out")
    assert report.paths == ("ok.txt",)
    assert len(report.refused) == 3
    assert "3 artifact(s)" in caplog.text
    assert "\x1b" not in caplog.text
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["ok.txt"]


def test_an_error_in_the_block_is_not_hidden_by_the_end(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARTIFACTSYNC_GRACE_S", "0.2")
    faulty = FaultyStore(open_store(tmp_path / "remote"))

    def fail() -> None:
        with Run("exp7", remote=faulty, local_root=tmp_path / "runs") as run:
            faulty._plan.faults = [Fault(kind="unreachable")]
            run.save_files([write(run, "a.pt", b"x")], step=1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert capfd.readouterr().err.startswith("artifactsync: not everything is durable: ")


def test_uploads_that_are_tried_again_leave_the_random_numbers_of_training_alone(tmp_path: Path) -> None:
    faulty = FaultyStore(open_store(tmp_path / "remote"))
    with Run("exp7", remote=faulty, local_root=tmp_path / "runs") as run:
        faulty._plan.faults = [Fault(kind="transient", times=3, operations={"put"})]
        random.seed(7)
        before = random.getstate()
        run.save_files([write(run, "a.pt", b"x")], step=1).result(30)
        assert random.getstate() == before
    assert faulty.faults_hit == 3


class Line:
    """A remote that can be cut off."""

    def __init__(self, folder: Path) -> None:
        self.is_down = threading.Event()
        self.store = FaultyStore(open_store(folder), on_call=self._check)

    def _check(self, call: object) -> None:
        if self.is_down.is_set():
            raise RemoteUnreachableError(f"no line for {call}", url="file://x")


def test_close_ends_in_time_when_the_remote_goes_down_at_the_very_end(tmp_path: Path) -> None:
    line = Line(tmp_path / "remote")
    run = Run("r", remote=line.store, local_root=tmp_path)
    line.is_down.set()
    with pytest.raises(WaitTimeoutError, match="how run 'r' ended is not written down"):
        run.close(0.2)
    ours = [thread for thread in threading.enumerate() if thread.name == "artifactsync-finish"]
    for thread in ours:
        thread.join(40)
        assert not thread.is_alive()


def test_nothing_goes_on_after_a_close_that_gave_up(tmp_path: Path) -> None:
    line = Line(tmp_path / "remote")
    run = Run("r", remote=line.store, local_root=tmp_path)
    pending = run.save_files([write(run, "a.bin", b"a")], step=1)
    line.is_down.set()
    with pytest.raises(WaitTimeoutError):
        run.close(0.2)
    assert pending.exception(40) is not None
    before = line.store.calls
    line.is_down.clear()
    assert line.store.calls == before
    with Run("r", remote=line.store, local_root=tmp_path, takeover=True) as again:  # the store is its maker's to close
        assert again.attempt == 2


def test_a_push_does_not_touch_a_checkpoint_on_its_way(tmp_path: Path) -> None:
    is_up, go_on = threading.Event(), threading.Event()

    def hold(call: Any) -> None:
        if call.operation == "put" and call.key == "r/a.bin":
            is_up.set()
            assert go_on.wait(20)

    with Run("r", remote=FaultyStore(open_store(tmp_path / "remote"), on_answer=hold), local_root=tmp_path) as run:
        pending = run.save_files([write(run, "a.bin", b"a" * 9)], step=1)
        assert is_up.wait(20)
        with pytest.raises(AlreadyExistsError, match="belongs to a committed checkpoint"):
            run.push(write(run, "b.bin", b"b" * 9), "a.bin")
        go_on.set()
        pending.result(20)
        assert run.verify(deep=True).ok


def test_a_local_root_that_is_a_file_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DestinationError, match="no folder can be made"):
        Run("r", remote=str(tmp_path / "remote"), local_root=tmp_path / "file" / "below")


def test_files_that_are_published_twice_keep_their_hash(tmp_path: Path) -> None:
    with Run("r", remote=str(tmp_path / "remote"), local_root=tmp_path) as run:
        file = write(run, "a.bin", b"a" * 100)
        first = run.save_files([file], step=1).result(20)
        second = run.save_files([file], step=2).result(20)
        assert second.files == first.files
        assert run.verify(deep=True).ok


def test_the_local_step_of_an_old_heartbeat_is_never_behind_the_durable_one(local: dict[str, Any]) -> None:
    run = Run("exp7", **local)
    run.save_files([write(run, "a.pt", b"a")], step=10).result(20)
    run._writing.heart.beat()
    run._writing.heart.stop()  # as in a process that was killed: the heartbeat stays as it was
    run.save_files([write(run, "b.pt", b"b")], step=20).result(20)
    status = Run("exp7", read_only=True, **local).status()
    assert (status.durable_step, status.local_step) == (20, 20)
    run.close()


def test_a_push_asks_nobody_and_still_never_touches_a_checkpoint(tmp_path: Path) -> None:
    """A run that goes on has not read its journal yet; the store is down when a log is pushed, and comes back."""
    store, is_down = DictStore(), threading.Event()
    (tmp_path / "f.bin").write_bytes(b"committed")
    with Run("r", remote=store, local_root=tmp_path / "one") as run:
        run.save_files({"f.bin": tmp_path / "f.bin"}, step=1).result(20)

    def on_call(call: Call) -> None:
        if is_down.is_set():
            raise RemoteUnreachableError("the line is down", url="memory://")

    patience = Patience(base_delay_s=0.01, max_delay_s=0.05)
    run = Run("r", remote=FaultyStore(store, on_call=on_call), local_root=tmp_path / "two", patience=patience)
    is_down.set()
    (run.local_dir / "log.txt").write_text("a line\n")
    (tmp_path / "f.bin").write_bytes(b"other")
    log = run.push(run.local_dir / "log.txt", growing=True)
    trace = run.push(run.local_dir / "log.txt", "trace.txt")
    forbidden = run.push(tmp_path / "f.bin", "f.bin")
    is_down.clear()
    log.result(20)
    trace.result(20)
    with pytest.raises((AlreadyExistsError, UploadError), match=r"r/f\.bin belongs to a committed checkpoint"):
        forbidden.result(20)
    run.close()
    assert store.get("r/f.bin") == b"committed"
    assert store.get("r/trace.txt") == b"a line\n"


def test_files_that_change_before_they_are_sent_make_no_mixture(tmp_path: Path) -> None:
    reached, go_on = threading.Event(), threading.Event()

    def hold(call: Call) -> None:
        if "/intents/" in call.key:
            reached.set()
            assert go_on.wait(20)

    run = Run("r", remote=FaultyStore(DictStore(), on_call=hold), local_root=tmp_path)
    pending = run.save_files([write(run, "model", b"step 1"), write(run, "optimizer", b"step 1")], step=1)
    assert reached.wait(20)
    write(run, "optimizer", b"step 10")
    go_on.set()
    with pytest.raises(DamagedError, match="optimizer was changed after it was handed over"):
        pending.result(20)
    assert run.latest() is None
    with pytest.raises(DamagedError):
        run.close()


def test_what_cannot_be_a_checkpoint_is_refused_at_once(local: dict[str, Any]) -> None:
    with Run("exp7", **local) as run:
        with pytest.raises(ConfigurationError, match="of no files"):
            run.save_files([], step=1)
        with pytest.raises(ConfigurationError, match="step is True"):
            run.save_files([write(run, "a.pt", b"x")], step=True)
        assert run.checkpoints() == []
