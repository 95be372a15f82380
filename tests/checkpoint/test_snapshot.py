from __future__ import annotations

import enum
from collections import OrderedDict, defaultdict, namedtuple

import numpy as np
import pytest
import torch

from artifactsync.checkpoint.load import load_file
from artifactsync.checkpoint.snapshot import SnapshotBuffers, take_snapshot
from artifactsync.checkpoint.write import write_snapshot
from artifactsync.errors import ConfigurationError


def _through_disk(state, tmp_path, buffers=None):
    snapshot = take_snapshot(state, buffers or SnapshotBuffers())
    return load_file(write_snapshot(snapshot, tmp_path / "x.pt").path)


def test_everything_allowed_comes_back_equal(tmp_path):
    state = {
        "tensors": [torch.arange(5).to(kind) for kind in (torch.float32, torch.bfloat16, torch.int8, torch.bool)],
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(7.5),
        "strided": torch.arange(12).reshape(3, 4).t(),
        "complex": torch.tensor([1 + 2j]).conj(),
        "numbers": (1, -(2**70), 1.5, float("inf"), True, None, 2j),
        "text": "schön",
        "bytes": b"\x00\xff",
        "ordered": OrderedDict(b=1, a=2),
        "keys": {0: "int", (1, 2): "tuple", None: "none"},
        "set": {1, 2},
        "torch": (torch.float16, torch.device("cpu"), torch.Size([1, 2])),
        "numpy scalars": (np.float64(0.25), np.int64(3)),
    }
    loaded = _through_disk(state, tmp_path)
    for old, new in zip(state["tensors"], loaded["tensors"], strict=True):
        assert torch.equal(old, new)
        assert old.dtype == new.dtype
    for name in ("empty", "scalar", "strided", "complex"):
        assert torch.equal(state[name], loaded[name])
    assert loaded["strided"].stride() == state["strided"].stride()
    plain = ("numbers", "text", "bytes", "ordered", "keys", "set", "torch", "numpy scalars")
    assert {name: loaded[name] for name in plain} == {name: state[name] for name in plain}
    assert type(loaded["ordered"]) is OrderedDict
    assert [type(x) for x in loaded["numpy scalars"]] == [float, int]


def test_nothing_done_afterwards_changes_a_snapshot():
    weight, inner = torch.ones(3), {"list": [1, 2]}
    state = {"w": weight, "inner": inner}
    snapshot = take_snapshot(state, SnapshotBuffers())
    weight.zero_()
    inner["list"].append(3)
    state["new"] = 1
    assert torch.equal(snapshot.state["w"], torch.ones(3))
    assert snapshot.state["inner"] == {"list": [1, 2]}
    assert "new" not in snapshot.state


def test_shared_memory_stays_shared_and_is_written_once(tmp_path):
    embedding = torch.randn(1000, 64)
    state = {"in": embedding, "out": embedding.t(), "row": embedding[7], "again": {"in": embedding}}
    snapshot = take_snapshot(state, SnapshotBuffers())
    assert snapshot.size_bytes == embedding.nbytes
    loaded = load_file(write_snapshot(snapshot, tmp_path / "x.pt").path)
    loaded["in"][7, 3] = 42.0
    assert loaded["out"][3, 7] == loaded["row"][3] == loaded["again"]["in"][7, 3] == 42.0


def test_only_the_used_part_of_a_storage_is_copied():
    big = torch.arange(1_000_000)
    snapshot = take_snapshot({"a": big[500_003:500_010], "b": big[500_008:500_020]}, SnapshotBuffers())
    assert snapshot.size_bytes < 1000
    assert torch.equal(snapshot.state["a"], big[500_003:500_010])
    assert torch.equal(snapshot.state["b"], big[500_008:500_020])
    assert snapshot.state["a"].untyped_storage().data_ptr() == snapshot.state["b"].untyped_storage().data_ptr()


def test_buffers_are_used_again_and_freed_when_not_needed():
    buffers = SnapshotBuffers()
    first = take_snapshot({"a": torch.zeros(100), "b": torch.zeros(50)}, buffers).state["a"].data_ptr()
    second = take_snapshot({"a": torch.ones(100)}, buffers).state["a"]
    assert second.data_ptr() == first
    assert torch.equal(second, torch.ones(100))
    assert buffers.size_bytes == 400
    assert take_snapshot({"a": torch.ones(10)}, buffers).size_bytes == 40


def test_an_object_is_asked_for_its_state_once_wherever_it_appears():
    class Counting:
        asked = 0

        def state_dict(self):
            self.asked += 1
            return {"w": torch.ones(2), "asked": self.asked}

    thing = Counting()
    snapshot = take_snapshot([thing, {"again": thing}], SnapshotBuffers())
    assert thing.asked == 1
    assert snapshot.state[1]["again"]["asked"] == 1


def test_module_versions_survive(tmp_path):
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    loaded = _through_disk({"model": module}, tmp_path)
    assert loaded["model"]._metadata == module.state_dict()._metadata
    assert loaded["model"]._metadata["1"]["version"] == 2


def test_same_state_gives_the_same_bytes(tmp_path):
    torch.manual_seed(0)
    model = torch.nn.Linear(20, 20)
    buffers = SnapshotBuffers()
    first = write_snapshot(take_snapshot({"m": model}, buffers), tmp_path / "one.pt")
    second = write_snapshot(take_snapshot({"m": model}, buffers), tmp_path / "two.pt")
    assert first.sha256 == second.sha256


class _Colour(enum.Enum):
    RED = 1


class _Subclass(torch.Tensor):
    pass


Point = namedtuple("Point", "x y")  # noqa: PYI024  (the case under test)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (object(), "builtins.object"),
        (np.zeros(3), "torch.from_numpy"),
        (_Colour.RED, "_Colour"),
        (Point(1, 2), "Point"),
        (frozenset({1}), "frozenset"),
        (defaultdict(int), "dict("),
        (lambda: None, "code is not saved"),
        (torch.zeros(2).as_subclass(_Subclass), "_Subclass"),
        (torch.zeros(2, device="meta"), "meta"),
    ],
)
def test_what_could_not_be_loaded_again_is_refused_with_its_place(value, said):
    with pytest.raises(ConfigurationError) as caught:
        take_snapshot({"optimizer": {"state": [0, value]}}, SnapshotBuffers())
    assert "['optimizer']['state'][1]" in str(caught.value)
    assert said in f"{caught.value} {caught.value.hint}"


def test_a_bad_key_is_refused():
    with pytest.raises(ConfigurationError, match="key"):
        take_snapshot({object(): 1}, SnapshotBuffers())


def test_a_state_that_contains_itself_is_refused():
    loop: dict = {}
    loop["inner"] = [loop]
    with pytest.raises(ConfigurationError, match="contains itself"):
        take_snapshot(loop, SnapshotBuffers())
