"""``load_path`` and ``load_weights_only``: what is moved, and what the formats hold."""

from __future__ import annotations

import pytest
import safetensors.torch
import torch

from artifactsync.checkpoint import frozen
from artifactsync.errors import ConfigurationError
from artifactsync.stores import open_store
from artifactsync.training import load_path
from artifactsync.training.callbacks import WeightsExporter
from tests.checkpoint.test_pt_part import Counted
from tests.training.test_trainer_options import Net, _trainer


class Wide(Net):
    def __init__(self):
        super().__init__()
        self.wide = torch.nn.Linear(64, 4000)


def test_the_weights_alone_move_into_the_parameters_that_are_there(tmp_path, monkeypatch):
    model = Wide()
    tmp_path.joinpath("remote").mkdir()
    saved = {"optimizers": [torch.ones(2_000_000)], "model": model.state_dict(), "rng": torch.ones(1_000_000)}
    torch.save(saved, tmp_path / "remote" / "big.pt")
    opened = []

    def counted(*where):
        opened.append(Counted(open_store(*where)))
        return opened[-1]

    monkeypatch.setattr(load_path, "open_store", counted)
    fresh = Wide()
    kept = [p.data_ptr() for p in fresh.parameters()]
    path = f"file://{tmp_path}/remote/big.pt"
    with _trainer(tmp_path, fresh, run_name="w", load_path=path, load_weights_only=True) as loaded:
        assert [p.data_ptr() for p in loaded.state.model.parameters()] == kept
        assert all(torch.equal(a, b) for a, b in zip(fresh.parameters(), model.parameters(), strict=True))
        assert loaded.state.timestamp.batch == 0
    weights = sum(p.nbytes for p in model.parameters())
    assert weights < opened[0].bytes < weights + 150_000
    assert not list((tmp_path / "a" / "w").rglob("*.part"))


def test_safetensors_are_exported_and_loaded(tmp_path):
    saver = WeightsExporter(filename="last.safetensors")
    with _trainer(tmp_path, callbacks=saver) as trainer:
        trainer.fit()
    path = tmp_path / "remote" / "r" / "weights" / "last.safetensors"
    theirs = safetensors.torch.load_file(path)
    ours = trainer.state.model.state_dict()
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in ours)
    for where in (path, f"file://{path}"):
        name = "l" if where is path else "u"
        with _trainer(tmp_path, run_name=name, load_path=where, load_weights_only=True) as loaded:
            assert torch.equal(loaded.state.model.head.weight, trainer.state.model.head.weight)
    with pytest.raises(ConfigurationError, match="holds weights alone"):
        _trainer(tmp_path, run_name="whole", load_path=path)


def test_tied_weights_are_named(tmp_path):
    model = Net(classes=10)
    model.again = model.head
    trainer = _trainer(tmp_path, model, callbacks=WeightsExporter(filename="a.safetensors"))
    with trainer, pytest.raises(ConfigurationError, match=r"'again\.(bias|weight)' and 'head\.(bias|weight)' do"):
        trainer.fit()


def test_a_divided_file_is_loaded_from_where_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(frozen, "LEAST_BYTES", 100_000)
    model = Wide()
    model.wide.requires_grad_(requires_grad=False)
    with _trainer(tmp_path, model, save_interval="2ba") as trainer:
        trainer.fit()
    folder = tmp_path / "remote" / "r" / "checkpoints"
    assert list(folder.glob("frozen-*.pt"))
    fresh = Wide()
    path = f"file://{folder}/ep1-ba6-rank0.pt"
    with _trainer(tmp_path, fresh, run_name="w", load_path=path, load_weights_only=True):
        assert all(torch.equal(a, b) for a, b in zip(fresh.parameters(), model.parameters(), strict=True))
