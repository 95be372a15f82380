from __future__ import annotations

import io
import struct
import zipfile
from collections import OrderedDict

import pytest
import torch

from artifactsync.checkpoint.image import FileImage
from artifactsync.checkpoint.load_part import load_parts
from artifactsync.checkpoint.pt_part import PtPart
from artifactsync.checkpoint.zip_layout import IndivisibleError
from artifactsync.errors import ConfigurationError, DamagedError, MissingBytesError
from artifactsync.stores import open_store
from artifactsync.testing import FaultyStore
from artifactsync.transfer.ranges import RangeReader


class Counted(FaultyStore):
    """A store that counts what it gives."""

    def __init__(self, store):
        super().__init__(store)
        self.ranges = []

    def get(self, key, *, start=0, end=None):
        data = super().get(key, start=start, end=end)
        self.ranges.append((start, start + len(data)))
        return data

    @property
    def bytes(self):
        return sum(end - start for start, end in self.ranges)


@pytest.fixture
def store(tmp_path):
    return Counted(open_store(f"file://{tmp_path}/remote"))


@pytest.fixture
def part(store, tmp_path):
    def take(state, only, *, data=None, **options):
        if data is None:
            file = io.BytesIO()
            torch.save(state, file)
            data = file.getvalue()
        store.put("a.pt", data)
        store.ranges.clear()
        reader = RangeReader(store, "a.pt", size_bytes=len(data))
        return load_parts(lambda _: PtPart(reader, tmp_path / "here" / "part"), only, **options)

    return take


def _state():
    torch.manual_seed(0)
    shared = torch.randn(500, 500)
    return {
        "optimizer": {"big": torch.randn(1_000_000), "list": [torch.randn(3), 4]},
        "model": OrderedDict(
            weight=torch.randn(700, 500), view=shared[10:20, ::2], tied=shared.t(), bf16=torch.randn(99).bfloat16(),
            none=torch.empty(0, 3), flag=torch.tensor([True, False]), parameter=torch.nn.Parameter(torch.randn(5)),
            z=torch.randn(7, dtype=torch.complex64), f8=torch.randn(40).to(torch.float8_e4m3fn),
        ),
        "more": torch.randn(1_000_000),
        "step": 7,
    }  # fmt: skip


def test_only_what_is_asked_for_moves_and_it_is_the_same_bits(part, store):
    state = _state()
    taken = part(state, ["model", "step"])
    assert list(taken) == ["model", "step"]
    assert taken["step"] == 7
    assert type(taken["model"]) is OrderedDict
    for name, tensor in state["model"].items():
        got = taken["model"][name]
        assert (got.dtype, got.shape, got.stride()) == (tensor.dtype, tensor.shape, tensor.stride())
        assert got.contiguous().view(torch.uint8).equal(tensor.detach().contiguous().view(torch.uint8))
    assert taken["model"]["tied"].data_ptr() == taken["model"]["view"].untyped_storage().data_ptr()  # still shared
    wanted = 700 * 500 * 4 + 500 * 500 * 4
    assert wanted < store.bytes < wanted + 200_000
    assert len(store.ranges) <= 4


@pytest.mark.parametrize("only", [["optimizer/list"], ["optimizer/l*", "step"], ["step"], ["model/t*"]])
def test_patterns_reach_below(part, store, only):
    taken = part(_state(), only)
    if "optimizer" in taken:
        assert list(taken["optimizer"]) == ["list"]
        assert taken["optimizer"]["list"][0].equal(_state()["optimizer"]["list"][0])
    if "model" in taken:
        assert list(taken["model"]) == ["tied"]
    assert store.bytes < 1_300_000


def test_module_versions_come_along(part):
    taken = part({"model": torch.nn.BatchNorm1d(3).state_dict()}, ["model/running*"])
    assert taken["model"]._metadata[""]["version"] == 2


def test_a_pattern_without_a_match_is_named_with_what_there_is(part, store):
    with pytest.raises(ConfigurationError, match="'modle/x' matches nothing") as raised:
        part(_state(), ["model", "modle/x"])
    assert "model, more, optimizer, step" in raised.value.hint
    assert store.bytes < 200_000


def test_a_flipped_bit_is_found_in_what_was_asked_for_alone(part):
    file = io.BytesIO()
    torch.save(_state(), file)
    data = bytearray(file.getvalue())
    info = zipfile.ZipFile(file).getinfo("archive/data/0")
    data[info.header_offset + 5000] ^= 1
    with pytest.raises(DamagedError, match=r"a\.pt is damaged: archive/data/0 does not have its checksum"):
        part(None, ["optimizer"], data=bytes(data))
    assert part(None, ["model"], data=bytes(data))["model"]["flag"].tolist() == [True, False]
    at = data.index(b"running" if b"running" in data else b"optimizer")
    data[at] ^= 1
    with pytest.raises(DamagedError, match=r"data\.pkl does not have its checksum"):
        part(None, ["model"], data=bytes(data))


def test_any_damage_is_found_or_does_no_harm(part):
    """Every byte of a small file changed in turn: the right tensor comes, or an error."""
    file = io.BytesIO()
    weight = torch.arange(20.0)
    torch.save({"model": weight, "rest": torch.arange(9)}, file)
    errors = 0
    for at in range(0, len(file.getvalue()), 17):
        data = bytearray(file.getvalue())
        data[at] ^= 0x55
        try:
            assert part(None, ["model"], data=bytes(data))["model"].equal(weight), at
        except (DamagedError, IndivisibleError):
            errors += 1
    assert errors > 50


def test_a_file_cut_short_is_missing_bytes(part, store, tmp_path):
    file = io.BytesIO()
    torch.save(_state(), file)
    store.put("a.pt", file.getvalue()[:-1000])
    with pytest.raises(MissingBytesError):
        PtPart(RangeReader(store, "a.pt", size_bytes=len(file.getvalue())), tmp_path / "part")


def test_what_is_here_is_not_fetched_again_and_what_is_wrong_here_is(part, store, tmp_path):
    state = _state()
    part(state, ["model"])
    first = store.bytes
    part(state, ["model"])
    assert store.bytes < first / 10
    kept = tmp_path / "here" / "part"
    data = bytearray(kept.read_bytes())
    at = data.index(state["model"]["weight"].numpy().tobytes())
    data[at : at + 100] = bytes(100)
    kept.write_bytes(data)
    assert part(state, ["model"])["model"]["weight"].equal(state["model"]["weight"])
    assert first > store.bytes > 700 * 500 * 4
    assert [path.name for path in kept.parent.iterdir()] == ["part"]


def test_the_image_that_a_save_writes_is_divisible(part, store):
    image = FileImage(_state())
    data = b"".join(image.slices())
    assert part(None, ["model"], data=data)["model"]["weight"].equal(_state()["model"]["weight"])


def test_many_tensors_need_a_longer_directory(part, store):
    state = {"a": {str(n): torch.full((2,), n) for n in range(1500)}, "b": torch.zeros(1_000_000)}
    taken = part(state, ["a"])
    assert all(taken["a"][str(n)].tolist() == [n, n] for n in range(1500))
    assert store.bytes < 1_000_000


def _rezipped(state, compression):
    file, other = io.BytesIO(), io.BytesIO()
    torch.save(state, file)
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(other, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return other.getvalue()


@pytest.mark.filterwarnings("ignore:Validating sparse:UserWarning")
def test_files_of_another_program_are_left_to_those_who_take_the_whole(part):
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with pytest.raises(IndivisibleError):
            part(None, ["model"], data=_rezipped(_state(), compression))
    torch.serialization.set_crc32_options(False)
    try:
        with pytest.raises(IndivisibleError, match="without checksums"):
            part(_state(), ["model"])
    finally:
        torch.serialization.set_crc32_options(True)
    with pytest.raises(IndivisibleError, match="sparse"):
        part({"model": torch.eye(3).to_sparse()}, ["model"])
    with pytest.raises(DamagedError, match="directory"):
        part(None, ["model"], data=b"x" * 1000)
    legacy = io.BytesIO()
    torch.save({"model": torch.ones(3)}, legacy, _use_new_zipfile_serialization=False)
    with pytest.raises(DamagedError):
        part(None, ["model"], data=legacy.getvalue())


def test_torch_may_calculate_where_entries_are(part):
    config = pytest.importorskip("torch.utils.serialization").config
    with config.patch("load.calculate_storage_offsets", True):
        assert part(_state(), ["model"])["model"]["weight"].equal(_state()["model"]["weight"])


@pytest.mark.parametrize("where", ["cpu", None, {"cpu": "cpu"}, lambda storage, location: None])
def test_map_location_is_as_torch_takes_it(part, where):
    assert part(_state(), ["model"], map_location=where)["model"]["weight"].device.type == "cpu"


def test_another_device_is_given_what_was_brought(part):
    taken = part(_state(), ["model"], map_location="meta")
    assert taken["model"]["weight"].device.type == "meta"


def test_a_directory_that_lies_takes_no_memory(part):
    file = io.BytesIO()
    torch.save({"model": torch.ones(3)}, file)
    data = bytearray(file.getvalue())
    at = data.rindex(b"PK\x01\x02")
    data[at + 24 : at + 28] = struct.pack("<I", 0xFFFF0000)  # the last entry's length
    with pytest.raises((IndivisibleError, DamagedError)):
        part(None, ["model"], data=bytes(data))
