"""A folder that another program filled becomes a run, and its bytes stay as they are."""

from __future__ import annotations

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifactsync import Run
from artifactsync.errors import (
    CheckpointNotFoundError,
    ConfigurationError,
    MissingBytesError,
    RunIsLiveError,
    RunNotFoundError,
)
from artifactsync.journal import adoption
from artifactsync.journal.layouts import find_checkpoints
from artifactsync.journal.log import JournalLog
from artifactsync.journal.opening import begin_attempt
from artifactsync.stores import open_store

LAYOUTS = {
    "composer": (
        ["checkpoints/ep0-ba10-rank0.pt", "checkpoints/ep0-ba10-rank1.pt", "checkpoints/ep1-ba20-rank0.pt",
         "checkpoints/ep1-ba20-rank1.pt", "checkpoints/latest-rank0.pt.symlink", "logs-rank0.txt"],
        [("ep0-ba10", 10, 0, 2), ("ep1-ba20", 20, 1, 2)],
    ),
    "composer sharded": (
        ["checkpoints/ep1-ba20/__0_0.distcp", "checkpoints/ep1-ba20/__1_0.distcp", "checkpoints/ep1-ba20/.metadata"],
        [("ep1-ba20", 20, 1, 3)],
    ),
    "lightning": (
        ["version_0/checkpoints/epoch=0-step=938.ckpt", "version_0/checkpoints/epoch=1-step=1876-val_loss=0.25.ckpt",
         "version_0/checkpoints/last.ckpt", "version_0/hparams.yaml"],
        [("epoch=0-step=938", 938, 0, 1), ("epoch=1-step=1876-val_loss=0.25", 1876, 1, 1)],
    ),
    "transformers": (
        ["checkpoint-500/model.safetensors", "checkpoint-500/trainer_state.json", "checkpoint-1000/optimizer.pt",
         "checkpoint-1000/trainer_state.json", "runs/events"],
        [("checkpoint-500", 500, 0, 2), ("checkpoint-1000", 1000, 0, 2)],
    ),
    "plain": (
        ["model_step_100.pt", "model_step_20.pt", "readme.md"],
        [("model_step_20", 20, 0, 1), ("model_step_100", 100, 0, 1)],
    ),
}  # fmt: skip


def _fill(root, paths):
    for path in paths:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(f"bytes of {path}".encode())


def _state(root):
    return {
        str(f.relative_to(root)): (hashlib.sha256(f.read_bytes()).hexdigest(), f.stat().st_mtime_ns)
        for f in sorted(root.rglob("*"))
        if f.is_file() and ".artifactsync" not in f.parts
    }


def _view(tmp_path, name="old"):
    return Run(name, remote=tmp_path, read_only=True)


@pytest.mark.parametrize("kind", LAYOUTS)
def test_every_known_layout(tmp_path, kind):
    paths, expected = LAYOUTS[kind]
    _fill(tmp_path / "old", paths)
    before = _state(tmp_path)
    run = _view(tmp_path)
    planned = run.adopt(dry_run=True)
    assert not (tmp_path / "old" / ".artifactsync").exists(), "a dry run writes nothing"
    report = run.adopt()
    assert report.adopted == planned.adopted == tuple(name for name, *_ in expected)
    assert [(c.name, c.step, c.epoch, len(c.files)) for c in run.checkpoints()] == expected
    assert _state(tmp_path) == before, "no object was changed"
    assert run.verify(deep=True).ok
    assert run.status().state == "completed"
    again = run.adopt()
    assert (again.adopted, again.already) == ((), len(expected))
    assert run.attempt == 1
    run.pull(tmp_path / "here")
    assert (tmp_path / "here" / run.latest().files[0].path).read_bytes().startswith(b"bytes of ")


def test_metrics_in_names_decide_best(tmp_path):
    _fill(tmp_path / "old", ["epoch=0-step=5-val_loss=0.50.ckpt", "epoch=1-step=9-val_loss=0.75.ckpt"])
    run = _view(tmp_path)
    run.adopt()
    assert run.best("val_loss").step == 5


@pytest.mark.parametrize(
    ("paths", "name", "reason"),
    [
        (["ep0-ba1-rank0.pt", "ep0-ba1-rank1.pt", "ep0-ba2-rank1.pt"], "ep0-ba2", "1 of 2 ranks"),
        (["step-2/__0_0.distcp", "step-1/a.pt"], "step-2", "no .metadata"),
        (["checkpoint-2/model.safetensors", "step_1.pt"], "checkpoint-2", "no trainer_state.json"),
        (["step-2/model-00001-of-00002.safetensors", "step-1/a.pt"], "step-2", "model-00002-of-00002.safetensors"),
    ],
)
def test_half_a_checkpoint_is_left_out_and_told(tmp_path, paths, name, reason):
    _fill(tmp_path / "old", paths)
    report = _view(tmp_path).adopt()
    assert reason in report.left_out[name]
    assert len(report.adopted) == 1


def test_what_came_since_is_adopted_and_training_goes_on_under_other_keys(tmp_path):
    _fill(tmp_path / "old", ["checkpoints/ep0-ba1-rank0.pt"])
    _view(tmp_path).adopt()
    _fill(tmp_path / "old", ["checkpoints/ep0-ba2-rank0.pt"])
    assert _view(tmp_path).adopt().adopted == ("ep0-ba2",)
    before = _state(tmp_path)
    with Run("old", remote=tmp_path, local_root=tmp_path.parent / f"{tmp_path.name}-local") as run:
        assert run.latest().step == 2
        run.local_dir.joinpath("x").write_text("new")
        run.save_files({"checkpoints/ep0-ba2-rank0.pt": run.local_dir / "x"}, step=3).result()
    assert before.items() <= _state(tmp_path).items()
    with pytest.raises(ConfigurationError, match="artifactsync wrote while training"):
        _view(tmp_path).adopt()


def test_a_pattern_of_ones_own(tmp_path):
    _fill(tmp_path / "old", ["w/000100.bin", "w/000100.json", "w/000200.bin"])
    run = _view(tmp_path)
    with pytest.raises(CheckpointNotFoundError, match="says which step") as told:
        run.adopt()
    assert "--pattern" in told.value.hint
    for bad in ("(", "no group"):
        with pytest.raises(ConfigurationError, match="pattern"):
            run.adopt(pattern=bad)
    assert run.adopt(pattern=r"w/(?P<step>\d+)\.").adopted == ("step-100", "step-200")
    assert [len(c.files) for c in run.checkpoints()] == [2, 1]


def test_nothing_there(tmp_path):
    tmp_path.joinpath("other").mkdir()
    with pytest.raises(RunNotFoundError, match="nothing at"):
        _view(tmp_path, "no-such").adopt()


def test_a_run_that_somebody_writes_is_refused(tmp_path):
    _fill(tmp_path / "old", ["step_1.pt"])
    store = open_store(tmp_path)
    log = JournalLog(store, "old")
    begin_attempt(store, log, takeover=False, allow_unfenced=False, launch="adopt")  # another one is at it
    with pytest.raises(RunIsLiveError):
        _view(tmp_path).adopt()


def test_a_file_that_changes_while_it_is_read_is_not_adopted(tmp_path, monkeypatch):
    _fill(tmp_path / "old", ["step_1.pt", "step_2.pt"])
    real = adoption._read

    def read(store, info, on_progress):
        hashed = real(store, info, on_progress)
        if info.key.endswith("step_2.pt"):
            (tmp_path / "old" / "step_2.pt").write_bytes(b"others write here, more than there was")
        return hashed

    monkeypatch.setattr(adoption, "_read", read)
    with pytest.raises(MissingBytesError, match="changed while it was read"):
        _view(tmp_path).adopt()
    assert [c.name for c in _view(tmp_path).checkpoints()] == ["step_1"]


def test_over_s3_what_aws_cp_left(s3, tmp_path):
    remote = s3.fresh_url()
    store = open_store(remote, s3.storage_options)
    for path in LAYOUTS["composer"][0]:
        store.put(f"old/{path}", path.encode())
    run = Run("old", remote=remote, storage_options=s3.storage_options, read_only=True)
    moved = []
    report = run.adopt(on_progress=moved.append)
    assert (len(report.adopted), report.files, sum(moved)) == (2, 4, report.bytes)
    assert run.verify(deep=True).ok
    assert json.loads(json.dumps(report.to_json()))["other_files"] == 2


@given(st.lists(st.text(max_size=40), max_size=6))
def test_whatever_names_there_are(names):
    found = find_checkpoints(names)
    assert {path for each in found for path in each.paths} <= set(names)
