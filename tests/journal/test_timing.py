from __future__ import annotations

import math

import pytest
import torch

from artifactsync import Run
from artifactsync.journal.timing import NOTHING, SaveTiming, read_timing


def test_the_first_mark_counts_and_marks_follow_each_other():
    timing = SaveTiming()
    timing.stalled(0.25)
    timing.stalled(9.0)
    timing.written()
    timing.durable()
    timing.written()
    fields = timing.to_json()
    assert fields["stall_s"] == 0.25
    assert 0 <= fields["written_s"] <= fields["durable_s"]
    assert read_timing(fields) == {name: fields[name] for name in ("stall_s", "written_s", "durable_s")}


@pytest.mark.parametrize(
    "nonsense", [None, 3, "soon", [], {"stall_s": "0.1"}, {"stall_s": True}, {"stall_s": -1}, {"stall_s": math.inf}]
)
def test_nonsense_in_a_record_is_left_out(nonsense):
    assert read_timing(nonsense) == NOTHING


def test_a_commit_says_how_long_it_took_and_ls_shows_it(tmp_path):
    with Run("r", remote=tmp_path / "remote", local_root=tmp_path / "a") as run:
        saved = run.save({"w": torch.zeros(1 << 16)}, step=1).result()
    (checkpoint,) = Run("r", remote=tmp_path / "remote", read_only=True).checkpoints()
    assert checkpoint.timing == saved.timing
    assert set(checkpoint.timing) == {"stall_s", "written_s", "durable_s"}
    assert checkpoint.timing["stall_s"] < checkpoint.timing["durable_s"]
    assert checkpoint.to_json()["timing"] == checkpoint.timing
