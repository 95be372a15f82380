from __future__ import annotations

import torch
from torch.utils.data import DataLoader

from artifactsync import Trainer
from artifactsync.checkpoint.load import load_file
from tests.training.digits import Digits


def _files(tmp_path, *, overlap):
    torch.manual_seed(1)
    model = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(64, 32), torch.nn.BatchNorm1d(32), torch.nn.Linear(32, 10)
    )
    with Trainer(
        model,
        DataLoader(Digits(400), batch_size=50),
        optimizers=torch.optim.AdamW(model.parameters(), lr=0.01),
        loss_fn=torch.nn.functional.cross_entropy,
        max_duration="4ba",
        save_interval="1ba",
        save_overlap=overlap,
        run_name="r",
        local_root=tmp_path / str(overlap),
        remote=tmp_path / f"remote-{overlap}",
        seed=1,
        progress_bar=False,
    ) as trainer:
        trainer.fit()
    return sorted((tmp_path / str(overlap) / "r" / "checkpoints").glob("ep*.pt"))


def test_checkpoints_copied_during_training_are_those_copied_at_once(tmp_path):
    plain, overlapped = (_files(tmp_path, overlap=each) for each in (False, True))
    assert [path.name for path in plain] == [path.name for path in overlapped]
    assert len(plain) == 4
    for one, other in zip(plain, overlapped, strict=True):
        a, b = load_file(one), load_file(other)
        assert all(torch.equal(a["model"][name], b["model"][name]) for name in a["model"])
        for key, kept in a["optimizers"][0]["state"].items():
            assert all(torch.equal(kept[name], b["optimizers"][0]["state"][key][name]) for name in kept)
