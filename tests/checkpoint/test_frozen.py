from __future__ import annotations

from collections import OrderedDict

import pytest
import torch

from artifactsync import Run
from artifactsync.checkpoint import frozen
from artifactsync.checkpoint.frozen import NAMES, divide, join
from artifactsync.checkpoint.load import load_file
from artifactsync.errors import DamagedError, ObjectNotFoundError
from artifactsync.stores import open_store
from artifactsync.testing import FaultyStore


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(frozen, "LEAST_BYTES", 100_000)


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = torch.nn.Linear(300, 300)
        self.head = torch.nn.Linear(300, 10)
        self.tied = self.backbone  # shares memory


class Training:
    """A model with a frozen backbone."""

    def __init__(self, tmp_path, name="runs"):
        torch.manual_seed(1)
        self.sizes = {}
        self.inner = open_store(f"file://{tmp_path}/remote")
        self.run = Run("r", remote=FaultyStore(self.inner, on_call=self._note), local_root=tmp_path / name)
        self.net = Net()
        self.net.backbone.requires_grad_(requires_grad=False)
        self.optimizer = torch.optim.Adam(self.net.head.parameters())
        self.step = 0

    def _note(self, call):
        if call.operation == "put" and call.key.endswith(".pt"):
            self.sizes[call.key.rpartition("/")[2]] = self.step

    def state(self):
        return {"model": self.net, "optimizer": self.optimizer, "step": self.step}

    def train(self):
        self.net.head(torch.randn(4, 300)).sum().backward()
        self.optimizer.step()
        self.step += 1
        return self.run.save(self.state(), step=self.step).result(30)


def _equal(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_equal, one, other))
    return one == other


def test_a_frozen_backbone_is_sent_once_more_and_never_again(tmp_path):
    training = Training(tmp_path)
    with training.run as run:
        made = [training.train() for _ in range(5)]
        assert [len(c.files) for c in made] == [1, 2, 2, 2, 2]
        kept = {file.key for c in made[1:] for file in c.files if "frozen-rank0-" in file.path}
        assert len(kept) == 1
        assert training.sizes[kept.pop().rpartition("/")[2]] == 2  # sent at the second step alone
        assert made[-1].files[0].size < 50_000 < made[-1].files[1].size
        assert run.verify(deep=True).ok
    fresh = Net()
    optimizer = torch.optim.Adam(fresh.head.parameters())
    with Run("r", remote=training.inner, local_root=tmp_path / "elsewhere") as again:
        resumed = again.resume({"model": fresh, "optimizer": optimizer})
        assert resumed.step == 5
        assert NAMES not in resumed.state
    assert _equal(dict(fresh.state_dict()), dict(training.net.state_dict()))
    assert _equal(optimizer.state_dict(), training.optimizer.state_dict())


def test_each_of_the_files_is_an_ordinary_one(tmp_path):
    training = Training(tmp_path)
    with training.run as run:
        for _ in range(2):
            made = training.train()
        files = list(run.ensure_local(made).values())
    fresh = Net()
    for file in files:
        part = torch.load(file, weights_only=True, mmap=True)
        fresh.load_state_dict(part["model"], strict=False)
    assert _equal(dict(fresh.state_dict()), dict(training.net.state_dict()))
    main = next(file for file in files if "frozen" not in file.name)
    assert _equal(load_file(main)["model"], dict(training.net.state_dict()))
    next(file for file in files if "frozen" in file.name).unlink()
    with pytest.raises(ObjectNotFoundError, match="frozen-rank0-"):
        load_file(main)


def test_weights_that_begin_to_change_come_back_into_the_one_file(tmp_path):
    training = Training(tmp_path)
    with training.run as run:
        for _ in range(3):
            training.train()
        with torch.no_grad():
            training.net.backbone.weight[0, 0] += 1  # also by whoever goes around the optimizer
        made = training.train()
        assert len(made.files) == 1
        saved = load_file(next(iter(run.ensure_local(made).values())))
        assert _equal(saved["model"], dict(training.net.state_dict()))
        assert len(training.train().files) == 2
        assert run.verify(deep=True).ok


def test_a_change_behind_torchs_back_is_seen(tmp_path):
    training = Training(tmp_path)
    with training.run as run:
        for _ in range(3):
            training.train()
        before = training.net.backbone.weight._version
        training.net.backbone.weight.detach().numpy()[5, 5] = 99.0
        assert training.net.backbone.weight._version == before
        made = training.train()
        name = next(path for path in run.ensure_local(made) if "frozen" not in path)
        assert load_file(run.local_dir / name)["model"]["backbone.weight"][5, 5] == 99.0


def test_a_local_frozen_file_that_somebody_removed_is_written_again(tmp_path):
    training = Training(tmp_path)
    with training.run as run:
        training.train()
        training.train()
        (kept,) = run.local_dir.rglob("frozen-*.pt")
        kept.unlink()
        training.train()
        assert kept.exists()


def test_a_prune_keeps_what_the_newest_needs(tmp_path):
    from artifactsync.journal.retention import RetentionPolicy  # noqa: PLC0415

    training = Training(tmp_path)
    with training.run as run:
        for _ in range(4):
            training.train()
        run.prune(RetentionPolicy(keep_last=1))
        assert [c.step for c in run.checkpoints()] == [4]
        assert run.verify(deep=True).ok


def test_dividing_and_joining_gives_the_whole():
    module = torch.nn.BatchNorm1d(4).state_dict()
    state = {"model": module, "nested": {1: {"a": torch.ones(2), "b": torch.zeros(3)}}, "n": 5, "list": [torch.ones(1)]}
    groups = [frozenset({("model", "weight"), ("nested", 1, "a")}), frozenset({("nested", 1, "b")})]
    main, parts = divide(state, groups)
    assert main["nested"] == {1: {}}
    assert isinstance(main["model"], OrderedDict)
    assert main["model"]._metadata == module._metadata
    assert _equal(join(main, parts), state)


@pytest.mark.parametrize("names", [["../../etc/passwd.pt"], "frozen-rank0-0123456789abcdef.pt", [3]])
def test_names_of_other_files_that_make_no_sense_are_damage(tmp_path, names):
    torch.save({"a": 1, NAMES: names}, tmp_path / "x.pt")
    with pytest.raises(DamagedError, match="no names of files"):
        load_file(tmp_path / "x.pt")


@pytest.mark.parametrize("scheme", ["file", "s3"])
def test_a_file_that_is_named_brings_what_lies_beside_it(tmp_path, request, scheme):
    from artifactsync.training.load_path import read_checkpoint  # noqa: PLC0415

    cloud = request.getfixturevalue("s3") if scheme == "s3" else None
    url = cloud.fresh_url() if cloud else f"file://{tmp_path}/remote"
    options = cloud.storage_options if cloud else None
    with Run("r", remote=url, storage_options=options, local_root=tmp_path / "runs") as run:
        for step in (1, 2):
            state = {"model": {"w": torch.ones(200, 300)}, "step": step}
            run.save(state, step=step).result(30)
    where = f"{url}/r/checkpoints/ep0-ba2-rank0.pt"
    take = {"run_name": "r", "storage_options": options, "map_location": "cpu", "folder": tmp_path / "loaded"}
    assert _equal(read_checkpoint(where, **take), state)
    assert _equal(read_checkpoint(where, **take, only=["model"]), {"model": state["model"]})
    assert not any((tmp_path / "loaded").iterdir())


def test_one_file_for_those_who_want_one(tmp_path):
    with Run("r", remote=f"file://{tmp_path}/remote", local_root=tmp_path / "runs", split_frozen=False) as run:
        for step in (1, 2, 3):
            made = run.save({"model": {"w": torch.ones(200, 300)}, "step": step}, step=step).result(30)
            assert len(made.files) == 1
