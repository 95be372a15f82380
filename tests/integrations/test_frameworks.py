"""Each framework with its real package: trained, killed, resumed by name in another folder, compared byte for byte."""

from __future__ import annotations

import shutil
import signal

import pytest

from artifactsync import Run
from artifactsync.errors import ConfigurationError, RunFencedError
from artifactsync.integrations.folders import FolderRun

KILLED = -signal.SIGKILL


def _run(folder):
    return Run("digits", remote=folder / "remote", read_only=True)


def _same(one, other):
    for name in ("final.pt", "optimizer.pt"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


@pytest.mark.parametrize(
    ("program", "kill_at", "durable", "last"),
    [("lightning", 10, 8, 16), ("transformers", 9, 6, 16), ("accelerate", 10, 8, 16)],
)
def test_killed_and_resumed_elsewhere_it_ends_with_the_same_bytes(warm, tmp_path, program, kill_at, durable, last):
    for name in ("straight", "first", "second"):
        (tmp_path / name).mkdir()
    warm(program, tmp_path / "remote-of-straight", tmp_path / "straight", cwd=tmp_path)
    warm(program, tmp_path / "remote", tmp_path / "first", kill_at, cwd=tmp_path, code=KILLED)
    assert _run(tmp_path).latest().step == durable
    shutil.rmtree(tmp_path / "first")  # another machine
    warm(program, tmp_path / "remote", tmp_path / "second", cwd=tmp_path)
    run = _run(tmp_path)
    assert run.latest().step == last
    assert run.status().state == "completed"
    assert run.verify(deep=True).ok
    _same(tmp_path / "second", tmp_path / "straight")


def test_what_the_framework_deletes_at_once_is_committed_all_the_same(warm, tmp_path):
    """save_top_k=1 and save_total_limit=1 remove local files while they are being sent; links of ours go too."""
    for name in ("lightning", "transformers"):
        local, remote = tmp_path / name, tmp_path / f"{name}-remote"
        local.mkdir()
        warm(name, remote, local, None, 1, cwd=tmp_path)
        run = Run("digits", remote=remote, read_only=True)
        assert run.verify(deep=True).ok
        assert not list(local.glob("digits/.artifactsync/kept/*"))
        if name == "lightning":
            assert run.checkpoints()[0].step == 4
            assert len(list(local.rglob("*.ckpt"))) == 1 + (local / "digits/checkpoints/latest.ckpt").is_symlink()
        else:
            assert [c.step for c in run.checkpoints()] == [15, 16], "RetentionPolicy(keep_last=2)"
            assert [p.name for p in (local / "out").glob("checkpoint-*")] == ["checkpoint-16"]


def test_lightning_from_a_url_and_with_objects_of_ones_own(warm, tmp_path):
    program = """
from pathlib import Path
from tests.integrations.programs import *
from tests.integrations.programs import _data
warnings.simplefilter("ignore")
def go(local, url=None, epochs=1, odd=None, **loading):
    Path(local).mkdir(exist_ok=True)
    sync = LightningSync("digits", remote="bucket", local_root=local)
    trainer = pl.Trainer(max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False,
                         enable_model_summary=False, default_root_dir=local, callbacks=[sync])
    trainer.fit(Digits(odd=odd), DataLoader(_data(), batch_size=8), ckpt_path=url, **loading)
    return trainer.global_step
assert go("a", odd=Path("an object of my own")) == 4
assert go("b", "artifactsync://digits", 2, weights_only=False) == 8, "goes on at step 4"
os.environ["ARTIFACTSYNC_REMOTE"] = "bucket"
assert go("c", "artifactsync://digits/checkpoints/epoch=1-step=8.ckpt", 3) == 12
try:
    go("d", "artifactsync://nobody", 3)
except FileNotFoundError as error:
    print(error)
"""
    done = warm(program, cwd=tmp_path)
    assert "run 'nobody' has no Lightning checkpoint yet" in done.output
    run = Run("digits", remote=tmp_path / "bucket", read_only=True)
    assert [(c.attempt, c.step) for c in run.checkpoints()] == [(1, 4), (2, 8), (3, 12)]


def test_a_damaged_newest_checkpoint_is_passed_over(warm, tmp_path):
    (tmp_path / "a").mkdir()
    warm("transformers", tmp_path / "remote", tmp_path / "a", cwd=tmp_path)
    newest = _run(tmp_path).latest()
    for file in newest.files:
        (tmp_path / "remote" / file.key).write_bytes(b"x")
    sync = FolderRun("digits", remote=tmp_path / "remote", local_root=tmp_path / "b")
    with pytest.warns(RuntimeWarning, match="damaged and was passed over"):
        folder = sync.fetch_folder()
    assert folder.name == "checkpoint-15"
    assert (folder / "trainer_state.json").exists()
    sync.close("failed")
    assert _run(tmp_path).status().state == "failed"


def test_a_folder_without_files_and_a_run_that_is_taken_over(tmp_path):
    sync = FolderRun("digits", remote=tmp_path / "remote", local_root=tmp_path / "a")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigurationError, match="no file in"):
        sync.save_folder(tmp_path / "empty", step=1)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "model.bin").write_text("1")
    assert sync.run.attempt == 1
    with Run("digits", remote=tmp_path / "remote", local_root=tmp_path / "b", takeover=True):
        pending = sync.save_folder(tmp_path / "full", step=1)
        shutil.rmtree(tmp_path / "full")
        with pytest.raises(RunFencedError):
            pending.result()
        with pytest.raises(RunFencedError):
            sync.close()
    assert _run(tmp_path).checkpoints() == []
