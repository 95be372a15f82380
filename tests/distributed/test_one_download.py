"""The ranks of a machine fetch together what one would."""

from __future__ import annotations

import json

import pytest
import torch

from artifactsync import Run
from tests.distributed import one_download

W_BYTES, REST_BYTES = 300_000 * 4, 500_000 * 4


@pytest.mark.parametrize("how", ["whole", "part", "file", "file-part"])
def test_one_download_for_each_machine(tmp_path, launcher, how):
    state = {"model": {"w": torch.arange(300_000.0)}, "optimizer": torch.ones(500_000)}
    with Run("r", remote=f"file://{tmp_path}/remote", local_root=tmp_path / "first") as run:
        run.save(state, step=1).result(30)
    out = tmp_path / "said"
    out.mkdir()
    argv = ["--remote", f"file://{tmp_path}/remote", "--local-root", str(tmp_path), "--out", str(out), "--how", how]
    environment = {"LOCAL_WORLD_SIZE": "2"}
    ended = launcher.run(one_download.main, argv, world_size=4, environment=environment)
    assert ended == [0] * 4, launcher.output
    said = [json.loads(file.read_text()) for file in sorted(out.glob("*.json"))]
    wanted = W_BYTES + (0 if "part" in how else REST_BYTES)
    directory = 10_000 if how in ("whole", "file") else 160_000  # which each of the ranks reads for itself
    for host in (said[:2], said[2:]):
        assert wanted <= sum(rank["bytes"] for rank in host) <= wanted + directory
        assert all(rank["kept"] == (["ep0-ba1-rank0.pt"] if how == "whole" else []) for rank in host)
    assert [rank["names"] for rank in said] == [["model"] if "part" in how else ["model", "optimizer"]] * 4
