from __future__ import annotations

import random

import numpy as np
import torch

from artifactsync.checkpoint.load import load_file
from artifactsync.checkpoint.rng import RngState, preserved_rng, seed_all
from artifactsync.checkpoint.snapshot import SnapshotBuffers, take_snapshot
from artifactsync.checkpoint.write import write_snapshot


def _draw():
    numpy_draws = np.random.rand(), np.random.randn()  # noqa: NPY002  (the global generator is what is tested)
    return [random.random(), random.gauss(0, 1), *map(float, numpy_draws), *torch.rand(3).tolist()]


def test_the_state_survives_a_file(tmp_path):
    _draw()
    saved = write_snapshot(take_snapshot({"rng": RngState()}, SnapshotBuffers()), tmp_path / "x.pt")
    expected = [_draw() for _ in range(3)]
    seed_all(99)
    RngState().load_state_dict(load_file(saved.path)["rng"])
    assert [_draw() for _ in range(3)] == expected


def test_a_seed_seeds_everything():
    seed_all(5)
    first = _draw()
    seed_all(5)
    assert _draw() == first
    seed_all(6)
    assert _draw() != first


def test_preserved():
    seed_all(1)
    expected = _draw()
    seed_all(1)
    with preserved_rng():
        _draw()
    assert _draw() == expected
