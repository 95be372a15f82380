"""``.metadata`` is a pickle from a remote: nothing in it is run, and it cannot promise what its shards do not have."""

from __future__ import annotations

import io
import os
import pickle
from typing import TYPE_CHECKING

import pytest
import torch
from torch.distributed.checkpoint import metadata as of_dcp
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from artifactsync.checkpoint.shard_metadata import _Reader, read_metadata
from artifactsync.errors import DamagedError

if TYPE_CHECKING:
    from pathlib import Path


class Bomb:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


class Setting:
    """Calls through an allowed class's attribute."""

    def __reduce__(self):
        return eval, ("1",)


def metadata(*, name="__0_0.distcp", size=4, offset=0, length=16):
    chunk = ChunkStorageMetadata(torch.Size([0]), torch.Size([size]))
    tensor = TensorStorageMetadata(TensorProperties(dtype=torch.float32), torch.Size([size]), [chunk])
    return Metadata({"w": tensor}, {"w": ("w",)}, {MetadataIndex("w", [0]): _StorageInfo(name, offset, length)})


def written(tmp_path: Path, what) -> Path:
    file = tmp_path / ".metadata"
    file.write_bytes(pickle.dumps(what))
    return file


def test_what_dcp_writes_is_read(tmp_path):
    read = read_metadata(written(tmp_path, metadata()), {"__0_0.distcp": 16})
    assert read.state_dict_metadata["w"].size == torch.Size([4])
    assert read.storage_data == metadata().storage_data


@pytest.mark.parametrize("place", ["whole", "planner", "storage", "key"])
def test_code_in_it_is_never_run(tmp_path, place):
    target, bomb = tmp_path / "boom", Bomb(tmp_path / "boom")
    what = metadata()
    if place == "whole":
        what = bomb
    elif place == "planner":
        what.planner_data = {"w": bomb}
    elif place == "storage":
        what.storage_data = {MetadataIndex("w"): bomb}
    else:
        what.state_dict_metadata = {"w": bomb}
    with pytest.raises(DamagedError, match="does not belong there"):
        read_metadata(written(tmp_path, what), {"__0_0.distcp": 16})
    assert not target.exists()
    with pytest.raises(DamagedError, match="does not belong there"):
        read_metadata(written(tmp_path, Setting()), {})


@pytest.mark.parametrize(
    ("what", "because"),
    [
        (metadata(name="../../etc/passwd"), "no shard of this checkpoint"),
        (metadata(offset=8), "lies outside"),
        (metadata(offset=-1), "lies outside"),
        (metadata(size=1 << 40), "more than there are"),
        ({"w": 1}, "it is a dict"),
        (b"\x80nonsense", "it is a bytes"),
    ],
)
def test_what_does_not_fit_the_shards_is_damage(tmp_path, what, because):
    with pytest.raises(DamagedError, match=because):
        read_metadata(written(tmp_path, what), {"__0_0.distcp": 16})


def test_half_of_it_is_damage(tmp_path):
    file = written(tmp_path, metadata())
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(DamagedError):
        read_metadata(file, {"__0_0.distcp": 16})


class _OfPython3112:
    """Pickled as Python 3.11.0 to 3.11.3 pickle a member of an enumeration."""

    def __init__(self, owner, name):
        self._what = owner, name

    def __reduce__(self):
        return getattr, self._what


def test_enumerations_of_an_older_python_are_read_and_no_other_attributes():
    def load(what):
        return _Reader(io.BytesIO(pickle.dumps(what))).load()

    encoding = of_dcp._MEM_FORMAT_ENCODING
    assert load(_OfPython3112(encoding, "TORCH_CHANNELS_LAST")) is encoding.TORCH_CHANNELS_LAST
    for owner, name in ((of_dcp.Metadata, "__init__"), (encoding, "__class__"), (encoding, "mro")):
        with pytest.raises((pickle.UnpicklingError, KeyError)):
            load(_OfPython3112(owner, name))
