"""Whatever the state: what is loaded is what was saved, byte for byte, although everything changes at once."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from artifactsync.checkpoint import snapshot as snapshots
from artifactsync.checkpoint.load import load_file
from artifactsync.checkpoint.rng import get_rng_state
from artifactsync.checkpoint.snapshot import SnapshotBuffers, take_snapshot
from artifactsync.checkpoint.write import write_snapshot

_DTYPES = (
    torch.float32,
    torch.float64,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.complex64,
    torch.bool,
    torch.int64,
    torch.uint8,
)


def _tensor(seed, dtype, elements):
    torch.manual_seed(seed)
    raw = torch.randint(0, 2, (elements * dtype.itemsize,), dtype=torch.uint8)
    return raw.view(dtype)


def _view(tensor, how):
    if how == "strided" and tensor.numel() > 3:
        return tensor[1::2]
    if how == "matrix" and tensor.numel() % 2 == 0:
        return tensor.reshape(2, -1).t()
    if how == "expanded" and tensor.numel():
        return tensor[:1].expand(5)
    if how == "scalar" and tensor.numel():
        return tensor[0]
    return tensor


def _raw(tensor):
    return (
        tensor.dtype,
        tuple(tensor.shape),
        tensor.stride(),
        tensor.contiguous().reshape(-1).view(torch.uint8).tolist(),
    )


def _seen(value):
    if isinstance(value, torch.Tensor):
        return _raw(value)
    if isinstance(value, dict):
        return {key: _seen(item) for key, item in value.items()}
    return [_seen(item) for item in value] if isinstance(value, list) else value


_leaves = st.tuples(
    st.integers(0, 3),  # which storage
    st.sampled_from(["whole", "strided", "matrix", "expanded", "scalar"]),
)
_trees = st.recursive(
    _leaves | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.integers(0, 9), inner, max_size=4),
    max_leaves=12,
)
_storages = st.lists(st.tuples(st.sampled_from(_DTYPES), st.integers(0, 40)), min_size=4, max_size=4)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shapes=st.lists(st.tuples(_trees, _storages, st.sets(st.integers(0, 3))), min_size=1, max_size=3))
def test_the_loaded_state_is_the_saved_one(shapes, tmp_path):
    buffers = SnapshotBuffers()
    for number, (tree, kinds, owned) in enumerate(shapes):
        storages = [_tensor(number, dtype, elements) for dtype, elements in kinds]
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
        # A step of it changes these storages, and nothing else does before that.
        optimizer.state[optimizer.param_groups[0]["params"][0]] = {index: storages[index] for index in owned}

        def fill(value, storages=storages):
            if isinstance(value, tuple):
                return _view(storages[value[0]], value[1])
            if isinstance(value, dict):
                return {key: fill(item) for key, item in value.items()}
            return [fill(item) for item in value] if isinstance(value, list) else value

        for overlap in ((), (optimizer,), (optimizer,)):
            state = fill(tree)
            expected = _seen(state)
            taken = take_snapshot({"it": state}, buffers, overlap=overlap)
            for index, storage in enumerate(storages):
                if not overlap or index not in owned:
                    storage.view(torch.uint8).bitwise_xor_(1)
            optimizer.step()
            for index in owned if overlap else ():
                storages[index].view(torch.uint8).bitwise_xor_(1)
            file = write_snapshot(taken, tmp_path / "x.pt").path
            taken.confirm()
            assert _seen(load_file(file)["it"]) == expected


def test_what_every_save_makes_anew_does_not_cost_a_new_plan(monkeypatch):
    weight, buffers = torch.randn(1000), SnapshotBuffers()
    made = []
    real = snapshots.CopyPlan.make
    monkeypatch.setattr(snapshots.CopyPlan, "make", lambda self, *a: (made.append(1), real(self, *a)))
    kept = []  # so that no two are at one address
    for step in range(6):
        state = {"w": weight, "rng": get_rng_state(), "at": torch.full((3,), float(step))}
        kept.append(state)
        expected = _seen(state["rng"]["torch"])
        snapshot = take_snapshot(state, buffers)
        assert snapshot.state["at"].tolist() == [float(step)] * 3
        assert _seen(snapshot.state["rng"]["torch"]) == expected
    assert len(made) == 2


@pytest.mark.parametrize("how", ["the same twice", "a view of a known one"])
def test_what_is_made_anew_and_shares_memory_still_shares_it(how):
    buffers, weight = SnapshotBuffers(), torch.zeros(64)
    for step in range(4):
        small = torch.full((8,), float(step))
        state = {"w": weight, "a": small, "b": torch.full((8,), 9.0)}
        if step == 3:
            if how == "the same twice":
                state["b"] = small.view(8)
            else:
                weight = torch.zeros(8)
                state["w"], state["a"] = weight[4:], weight
        copied = take_snapshot(state, buffers).state
    assert _seen(copied) == _seen(state)
    one, other = ("a", "b") if how == "the same twice" else ("a", "w")
    assert copied[one].untyped_storage()._cdata == copied[other].untyped_storage()._cdata


def test_prepared_memory_is_what_the_first_snapshot_takes():
    buffers, state = SnapshotBuffers(), {"w": torch.ones(1000), "v": torch.ones(50)}
    buffers.prepare(state)
    held = buffers.size_bytes
    copied = take_snapshot({**state, "step": torch.ones(())}, buffers).state
    assert held == 4200
    assert buffers.size_bytes == 4204
    assert (copied["w"] == 1).all()
    assert (copied["v"] == 1).all()
