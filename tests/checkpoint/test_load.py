from __future__ import annotations

import pickle
import zipfile

import pytest
import torch

from artifactsync.checkpoint.load import load_file, restore
from artifactsync.checkpoint.snapshot import SnapshotBuffers, take_snapshot
from artifactsync.checkpoint.write import write_snapshot
from artifactsync.errors import ConfigurationError, DamagedError, ObjectNotFoundError


@pytest.fixture
def whole(tmp_path):
    return write_snapshot(take_snapshot({"w": torch.arange(10_000)}, SnapshotBuffers()), tmp_path / "x.pt").path


@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, 0.999])
def test_a_truncated_file_is_damaged(whole, kept):
    data = whole.read_bytes()
    whole.write_bytes(data[: kept if isinstance(kept, int) else int(len(data) * kept)])
    with pytest.raises(DamagedError):
        load_file(whole)


def test_garbage_is_damaged(tmp_path):
    path = tmp_path / "x.pt"
    path.write_bytes(b"<html>503 Service Unavailable</html>" * 50)
    with pytest.raises(DamagedError):
        load_file(path)


def test_a_missing_file(tmp_path):
    with pytest.raises(ObjectNotFoundError):
        load_file(tmp_path / "none.pt")


class _Evil:
    def __reduce__(self):
        return (print, ("executed",))


def test_code_in_a_checkpoint_is_refused_and_never_run(tmp_path, capsys):
    path = tmp_path / "evil.pt"
    torch.save({"w": torch.ones(2), "x": _Evil()}, path)
    with pytest.raises(ConfigurationError, match="print"):
        load_file(path)
    with zipfile.ZipFile(tmp_path / "zip.pt", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(_Evil(), protocol=2))
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
    with pytest.raises((ConfigurationError, DamagedError)):
        load_file(tmp_path / "zip.pt")
    assert "executed" not in capsys.readouterr().out


def test_restore_changes_objects_in_place():
    model = torch.nn.Linear(3, 3)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    ema = torch.zeros(3)
    saved = take_snapshot(
        {"model": model, "optimizer": optimizer, "ema": torch.ones(3), "epoch": 4, "extra": [1], "pair": (1, model)},
        SnapshotBuffers(),
    ).state
    other = torch.nn.Linear(3, 3)
    weight = other.weight
    target = {
        "model": other,
        "optimizer": torch.optim.Adam(other.parameters()),
        "ema": ema,
        "epoch": 0,
        "pair": (0, other),
    }
    assert restore(target, saved) is target
    assert target["model"] is other
    assert other.weight is weight
    assert torch.equal(weight, model.weight)
    assert target["ema"] is ema
    assert ema.sum() == 3
    assert target["epoch"] == 4
    assert target["extra"] == [1]
    assert target["pair"] == (1, other)
    assert target["optimizer"].state[weight]["step"] == 1


@pytest.mark.parametrize(
    ("target", "saved", "said"),
    [
        ({"a": 1}, {}, "no 'a'"),
        ({"t": torch.zeros(2)}, {"t": torch.zeros(3)}, "shape"),
        ({"m": torch.nn.Linear(1, 1)}, {"m": {}}, "Missing key"),
        ({"l": [torch.zeros(1)]}, {"l": []}, "0 entries, not 1"),
        ({"t": torch.zeros(2)}, {"t": 3}, "int for a Tensor"),
        ({"d": {}}, {"d": 3}, "int for a dict"),
    ],
)
def test_what_does_not_fit_is_named(target, saved, said):
    with pytest.raises(ConfigurationError, match=said):
        restore(target, saved)


def test_without_strict_what_is_missing_stays():
    target = {"a": 1, "model": torch.nn.Linear(1, 1)}
    restore(target, {"model": {"weight": torch.full((1, 1), 7.0)}}, strict=False)
    assert target["a"] == 1
    assert target["model"].weight.item() == 7.0
