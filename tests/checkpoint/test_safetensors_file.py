from __future__ import annotations

import json

import pytest
import safetensors
import safetensors.torch
import torch

from artifactsync import Run
from artifactsync.checkpoint import safetensors_file
from artifactsync.checkpoint.load import load_file
from artifactsync.checkpoint.safetensors_file import SafetensorsImage
from artifactsync.errors import ConfigurationError, DamagedError, ObjectNotFoundError
from artifactsync.stores import open_store
from artifactsync.testing import FaultyStore

DTYPES = [dtype for dtype in safetensors_file._DTYPES.values() if dtype in safetensors.torch._TYPES.values()]


def _state():
    torch.manual_seed(0)
    state = {}
    for number, dtype in enumerate(DTYPES):
        data = torch.randint(0, 256, (3, 5, dtype.itemsize), dtype=torch.uint8)
        tensor = data > 127 if dtype is torch.bool else data.view(dtype)
        state[f"{'zyx'[number % 3]}.{str(dtype)[6:]}"] = tensor.reshape(3, -1)
    return {**state, 'ünicode "quoted"': torch.ones(2), "empty": torch.empty(0, 3), "scalar": torch.tensor(4.0)}


def _same(one, other):
    raw = [x.contiguous().reshape(-1).view(torch.uint8) if x.numel() else torch.empty(0) for x in (one, other)]
    return one.dtype == other.dtype and one.shape == other.shape and raw[0].equal(raw[1])


def _bytes(state):
    image = SafetensorsImage(state)
    return b"".join(image.slices())


def test_the_bytes_are_those_of_the_package_itself():
    assert len(DTYPES) >= 15
    assert _bytes(_state()) == safetensors.torch.save(_state(), metadata={"format": "pt"})


def test_both_ways_by_both_readers(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(_bytes(_state()))
    ours = load_file(tmp_path / "a.safetensors")
    theirs = safetensors.torch.load_file(tmp_path / "a.safetensors")
    assert set(ours) == set(theirs) == set(_state())
    assert all(_same(ours[name], value) and _same(theirs[name], value) for name, value in _state().items())
    with safetensors.safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert load_file(tmp_path / "a.safetensors", map_location="meta")["scalar"].is_meta


def test_a_run_saves_it_uploads_it_and_resumes_from_it(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(300, 300), torch.nn.BatchNorm1d(300))
    with Run("r", remote=tmp_path / "remote", local_root=tmp_path / "a") as run:
        pending = run.save(model, step=3, metrics={"loss": 1.0}, format="safetensors")
        expected = {name: value.clone() for name, value in model.state_dict().items()}
        with torch.no_grad():
            model[0].weight.zero_()
        file = pending.result(30).files[0]
        assert file.path == "checkpoints/ep0-ba3-rank0.safetensors"
        assert (
            run.local_dir / "checkpoints" / "latest-rank0.safetensors"
        ).resolve().name == "ep0-ba3-rank0.safetensors"
        assert run.verify(deep=True).ok
    theirs = safetensors.torch.load_file(tmp_path / "remote" / file.key)
    assert theirs.keys() == expected.keys()
    assert all(_same(theirs[name], value) for name, value in expected.items())
    assert (tmp_path / "remote" / "r" / "checkpoints" / "latest-rank0.safetensors.symlink").read_text() == file.key
    fresh = torch.nn.Sequential(torch.nn.Linear(300, 300), torch.nn.BatchNorm1d(300))
    with Run("r", remote=tmp_path / "remote", local_root=tmp_path / "b") as run:
        assert run.resume(fresh).step == 3
        assert list(run.resume(only="0.*").state) == ["0.bias", "0.weight"]
    assert all(_same(fresh.state_dict()[name], value) for name, value in expected.items())


def test_the_same_weights_again_are_not_sent_again(tmp_path):
    puts = []
    store = FaultyStore(
        open_store(tmp_path / "remote"), on_call=lambda c: puts.append(c.key) if c.operation == "put" else None
    )
    model = torch.nn.Linear(300, 300)
    with Run("r", remote=store, local_root=tmp_path / "a") as run:
        for step in (1, 2, 3):
            run.save(model, step=step, format="safetensors").result(30)
        torch.nn.init.zeros_(model.bias)
        run.save(model, step=4, format="safetensors").result(30)
        assert run.verify(deep=True).ok
    sent = sorted({key.rpartition("/")[2] for key in puts if key.endswith(".safetensors")})
    assert sent == ["ep0-ba1-rank0.safetensors", "ep0-ba4-rank0.safetensors"]


def test_tensors_of_one_storage_that_do_not_overlap_and_others_in_another_order_are_fine():
    flat = torch.arange(20.0)
    state = {"a": flat[:5], "b": flat[5:15].reshape(5, 2), "c": torch.arange(6.0).reshape(2, 3).t()}
    loaded = safetensors.torch.load(_bytes(state))
    assert all(loaded[name].equal(state[name]) for name in state)


_SHARED = torch.ones(4)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ([torch.ones(1)], "flat dict of tensors, and the state is a list"),
        ({"model": {"w": torch.ones(1)}}, "'model' is a dict"),
        ({"w": torch.ones(1), "step": 3}, "'step' is a int"),
        ({1: torch.ones(1)}, "1 is no name of a tensor"),
        ({"__metadata__": torch.ones(1)}, "'__metadata__' is no name"),
        ({"a": _SHARED, "b": _SHARED}, "share memory, and 'a' and 'b' do"),
        ({"a": _SHARED, "b": _SHARED[2:]}, "share memory, and 'a' and 'b' do"),
        ({"a": torch.ones(2, dtype=torch.complex128)}, "has no complex128, which 'a' is"),
        ({"a": torch.eye(2).to_sparse()}, "has no sparse_coo, which 'a' is"),
    ],
)
def test_what_it_cannot_hold_is_said_in_one_line_before_anything_is_written(tmp_path, state, message):
    with Run("r", remote=tmp_path / "remote", local_root=tmp_path / "a") as run:
        with pytest.raises(ConfigurationError, match=message) as raised:
            run.save(state, step=1, format="safetensors")
        assert "\n" not in raised.value.message
        assert raised.value.hint
        run.save({"w": torch.ones(1)}, step=1, format="safetensors").result(30)  # nothing is in its way
        assert len(run.checkpoints()) == 1
        with pytest.raises(ConfigurationError, match="no format 'zip'"):
            run.save({"w": torch.ones(1)}, step=2, format="zip")


def _with(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


_ONE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"1234567",
        _with({"a": _ONE}, b"1234")[:-1],
        _with({"a": _ONE}, b"12345"),
        _with({"a": _ONE}, b"1234", 1 << 62),
        _with({"a": _ONE}, b"1234", 5),
        _with({"a": {**_ONE, "shape": [2]}}, b"1234"),
        _with({"a": {**_ONE, "shape": [-1]}}, b"1234"),
        _with({"a": {**_ONE, "shape": [1.0]}}, b"1234"),
        _with({"a": {**_ONE, "dtype": "F33"}}, b"1234"),
        _with({"a": _ONE, "b": _ONE}, b"1234"),  # two tensors in one place
        _with({"a": _ONE, "b": {**_ONE, "data_offsets": [8, 12]}}, b"123456789012"),  # a hole
        _with({"a": {**_ONE, "data_offsets": [-4, 0]}}, b"1234"),
        _with({"a": {"dtype": "F32"}}, b"1234"),
        _with([], b"1234"),
        _with({"a": 3}, b"1234"),
        _with(b"[" * 100_000, b""),
    ],
)
def test_a_file_that_is_not_what_it_says_is_damaged(tmp_path, data):
    (tmp_path / "a.safetensors").write_bytes(data)
    with pytest.raises(DamagedError, match="is no whole safetensors file"):
        load_file(tmp_path / "a.safetensors")


def test_a_file_that_is_not_there_is_said_so(tmp_path):
    with pytest.raises(ObjectNotFoundError):
        load_file(tmp_path / "a.safetensors")


def test_other_programs_files_are_read(tmp_path):
    safetensors.torch.save_file({"b": torch.arange(3), "a": torch.ones(2, 2).bfloat16()}, tmp_path / "a.safetensors")
    loaded = load_file(tmp_path / "a.safetensors")
    assert loaded["b"].tolist() == [0, 1, 2]
    assert loaded["a"].dtype is torch.bfloat16
