from __future__ import annotations

import hashlib
import io
import threading
import zlib

import pytest
import torch

from artifactsync.checkpoint.image import FileImage


def _torch_bytes(state):
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def _shared():
    base = torch.randn(300, 40)
    return {"whole": base, "view": base[3:].t(), "again": base, "tail": base[-1:]}


STATES = {
    "numbers": {"step": 3, "lr": [0.1, (2, None)], "name": "x" * 9000},
    "one large": {"w": torch.randn(600, 700)},
    "shared memory": _shared(),
    "kinds": {
        str(kind): torch.ones(5000).to(kind) for kind in (torch.bfloat16, torch.int8, torch.bool, torch.complex64)
    },
    "strided": {"every other": torch.randn(400, 60)[::2, ::3], "sparse": torch.eye(300).to_sparse()},
    "empty and short": {"empty": torch.empty(0, 7), "scalar": torch.tensor(5.0), "short": torch.arange(10)},
    "descriptor in the data": {"w": torch.frombuffer(bytearray(b"PK\x07\x08" * 4000), dtype=torch.uint8)},
    "many": {f"p{n}": torch.full((n % 70,), float(n)) for n in range(300)},
}


@pytest.mark.parametrize("name", STATES)
def test_the_bytes_are_torchs_own(name):
    image = FileImage(STATES[name])
    data = b"".join(image.slices())
    assert data == _torch_bytes(STATES[name])
    assert image.size_bytes == len(data)
    assert image.sha256() == hashlib.sha256(data).hexdigest()


def test_large_tensors_are_seen_and_not_copied():
    weight = torch.randn(1000, 1000)
    image = FileImage({"w": weight})
    before = b"".join(image.slices())
    weight[500, 500] = 12345.0
    assert b"".join(image.slices()) != before


def test_checksums_are_those_of_the_storages():
    state = {"a": torch.randn(1000), "b": torch.zeros(3), "twin": torch.zeros(3)}
    sums = FileImage(state).checksums
    assert sums == {t.data_ptr(): zlib.crc32(t.numpy().tobytes()) for t in state.values()}


def test_others_may_save_meanwhile_and_torchs_settings_stay():
    results = []

    def save():
        results.append(_torch_bytes(STATES["kinds"]))

    crc = torch.serialization.get_crc32_options()
    others = [threading.Thread(target=save) for _ in range(3)]
    for other in others:
        other.start()
    for _ in range(5):
        FileImage(STATES["many"])
    for other in others:
        other.join()
    assert set(results) == {_torch_bytes(STATES["kinds"])}
    assert torch.serialization.get_crc32_options() == crc
