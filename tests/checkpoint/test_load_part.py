from __future__ import annotations

import pytest
import torch

from artifactsync import Run
from artifactsync.checkpoint import frozen
from artifactsync.checkpoint.local_run import LocalRun
from artifactsync.checkpoint.state_io import resume_state, save_state
from artifactsync.errors import ConfigurationError
from artifactsync.naming.layout import HOUSE_FOLDER
from artifactsync.stores import open_store
from tests.checkpoint.test_local_resume import leave_behind, open_run
from tests.checkpoint.test_pt_part import Counted


class Training:
    """A model with an optimizer of twice its size, saved under a name."""

    def __init__(self, where, tmp_path, options=None):
        torch.manual_seed(3)
        self.store = Counted(open_store(where, options))
        self.tmp_path = tmp_path
        self.model = torch.nn.Linear(500, 500)
        self.optimizer = torch.optim.Adam(self.model.parameters())
        with self.open("a") as run:
            self.step(run, 1)
        self.weight_bytes = sum(p.nbytes for p in self.model.parameters())

    def open(self, host, **options):
        return Run("r", remote=self.store, local_root=self.tmp_path / host, **options)

    def step(self, run, step):
        self.model(torch.randn(3, 500)).sum().backward()
        self.optimizer.step()
        return run.save({"optimizer": self.optimizer, "model": self.model, "step": step}, step=step).result(60)


@pytest.fixture
def training(tmp_path):
    return Training(f"file://{tmp_path}/remote", tmp_path)


def _resume_weights(training, host="b"):
    """Resume the weights alone in a fresh model; the bytes that were moved."""
    fresh = torch.nn.Linear(500, 500)
    kept = [p.data_ptr() for p in fresh.parameters()]
    with training.open(host) as run:
        training.store.ranges.clear()
        resumed = run.resume({"model": fresh}, only="model")
        moved = training.store.bytes
    assert [p.data_ptr() for p in fresh.parameters()] == kept  # into the parameters that were there
    assert all(torch.equal(a, b) for a, b in zip(fresh.parameters(), training.model.parameters(), strict=True))
    assert list(resumed.state) == ["model"]
    assert resumed.step == 1
    return moved


def test_a_resume_of_weights_moves_the_weights_alone(training):
    moved = _resume_weights(training)
    assert training.weight_bytes < moved < training.weight_bytes * 1.1
    house = training.tmp_path / "b" / "r" / HOUSE_FOLDER
    assert not list((house / "parts").iterdir())  # mapped, and gone
    assert not list((training.tmp_path / "b" / "r").glob("checkpoints/*.pt"))


@pytest.mark.parametrize("cloud", ["s3", "gcs"])
def test_it_does_so_on_real_object_stores(request, tmp_path, cloud):
    server = request.getfixturevalue(cloud)
    training = Training(server.fresh_url(), tmp_path, server.storage_options)
    moved = _resume_weights(training)
    assert training.weight_bytes < moved < training.weight_bytes * 1.1


def test_without_only_everything_comes(training):
    with training.open("b") as run:
        training.store.ranges.clear()
        assert set(run.resume().state) == {"model", "optimizer", "step"}
        assert training.store.bytes > training.weight_bytes * 3


def test_a_pull_of_some_files_moves_those_alone(training, tmp_path):
    with training.open("a") as run:
        run.push(__file__, "notes/this.py").result(30)
        training.store.ranges.clear()
        report = run.pull(tmp_path / "pulled", include=["notes/*"])
    assert report.paths == ("notes/this.py",)
    assert training.store.bytes < training.weight_bytes / 4  # some records, and the file
    assert [path.name for path in (tmp_path / "pulled").rglob("*") if path.is_file()] == ["this.py"]


def test_a_checkpoint_that_is_here_is_not_asked_for(training):
    with training.open("a") as run:
        training.store.ranges.clear()
        assert run.resume(only=("model/bias", "step")).state["step"] == 1
        assert training.store.bytes < 10_000


def test_damage_is_passed_over_loudly_and_other_damage_not_met(training):
    with training.open("a") as run:
        second = training.step(run, 2)
    path = training.tmp_path / "remote" / second.files[0].key
    whole = path.read_bytes()
    weight = training.model.weight.detach().numpy().tobytes()
    moment = training.optimizer.state[training.model.weight]["exp_avg"].numpy().tobytes()
    for part, step in ((moment, 2), (weight, 1)):
        data = bytearray(whole)
        data[data.index(part) + 1000] ^= 4
        path.write_bytes(data)
        with training.open(f"b{step}") as run:
            if step == 1:
                with pytest.warns(RuntimeWarning, match="'ep0-ba2' of run 'r' is damaged.*does not have its checksum"):
                    resumed = run.resume(only="model")
                assert resumed.passed_over == ("ep0-ba2",)
            else:
                resumed = run.resume(only="model")
            assert resumed.step == step


def test_what_is_asked_for_must_be_there(training):
    with training.open("b") as run:
        with pytest.raises(ConfigurationError, match="'modell' matches nothing"):
            run.resume(only="modell")
        with pytest.raises(ConfigurationError, match="only is"):
            run.resume(only=())


def test_weights_that_are_kept_apart_come_by_ranges_too(tmp_path, monkeypatch):
    monkeypatch.setattr(frozen, "LEAST_BYTES", 100_000)
    training = Training(f"file://{tmp_path}/remote", tmp_path)
    training.model.weight.requires_grad_(requires_grad=False)
    training.model.weight.grad = None
    with training.open("a") as run:
        for step in (2, 3, 4):
            training.optimizer.zero_grad()
            committed = training.step(run, step)
    assert len(committed.files) > 1
    fresh = torch.nn.Linear(500, 500)
    with training.open("b") as run:
        training.store.ranges.clear()
        run.resume({"model": fresh}, only=["model"])
        assert training.store.bytes < training.weight_bytes * 1.2
    assert torch.equal(fresh.weight, training.model.weight)
    assert torch.equal(fresh.bias, training.model.bias)


def test_a_file_that_is_not_divisible_comes_whole(training):
    torch.serialization.set_crc32_options(False)
    try:
        with training.open("a") as run:
            torch.save({"model": training.model.state_dict(), "rest": torch.ones(9)}, run.local_dir / "own.pt")
            run.save_files([run.local_dir / "own.pt"], step=2).result(30)
    finally:
        torch.serialization.set_crc32_options(True)
    with training.open("b") as run:
        resumed = run.resume(only="model")
        assert (run.local_dir / "own.pt").is_file()
    assert torch.equal(resumed.state["model"]["weight"], training.model.weight)
    assert (list(resumed.state), resumed.step) == (["model"], 2)


def test_what_was_kept_of_an_earlier_checkpoint_goes(training):
    parts = training.tmp_path / "b" / "r" / HOUSE_FOLDER / "parts"
    (parts / ("0" * 64)).mkdir(parents=True)
    (parts / ("0" * 64) / f"{'0' * 64}.pt").write_bytes(b"x")
    _resume_weights(training)
    assert not list(parts.iterdir())


def test_a_local_run_gives_parts_too(tmp_path):
    run = LocalRun("r", local_root=tmp_path)
    save_state(run, {"model": {"w": torch.ones(3)}, "step": 1}, step=1).result(30)
    assert list(resume_state(run, only="model").state) == ["model"]
    run.close()


def test_what_a_killed_process_left_here_is_read_in_part_and_published(tmp_path):
    remote = open_store(tmp_path / "remote")
    leave_behind(remote, tmp_path)
    with open_run(remote, tmp_path, takeover=True) as run:
        resumed = run.resume(only="step")
        assert (resumed.state, resumed.publishing.result(30).step) == ({"step": 2}, 2)
