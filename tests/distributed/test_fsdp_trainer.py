"""The Trainer given a model that is sharded with FSDP2: saved in shards, resumed on as many ranks as there are then."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from artifactsync import Run
from tests.distributed import fsdp_digits

ROOT = Path(__file__).parents[2]


@pytest.fixture
def train(tmp_path, launcher):
    """Train on so many ranks on a host of its own; what each rank says."""

    def start(world_size, host, *more, remote=None, kind="fsdp", killed=None):
        out = tmp_path / f"said-{host}"
        out.mkdir()
        argv = _arguments(tmp_path, host, out, *more, remote=remote, kind=kind)
        codes = launcher.run(fsdp_digits.main, argv, world_size=world_size)
        if killed is None:
            assert codes == [0] * world_size, launcher.output
        else:
            assert codes[killed] == -signal.SIGKILL
            assert 0 not in codes
        return _said(out)

    return start


def _arguments(folder, host, out, *more, remote=None, kind="fsdp"):
    where = ["--remote", remote or folder / "remote", "--local-root", folder / host, "--out", out, "--kind", kind]
    return [str(word) for word in (*where, *more)]


def _said(out):
    return [json.loads(file.read_text()) for file in sorted(out.glob("*.json"))]


def _goes_on(before, after, epochs):
    """Every rank of ``after`` began with what all ranks of ``before`` ended with, and trained one epoch on."""
    assert [each["at_start"] for each in after] == [before[0]["at_end"]] * len(after)
    assert {(each["epochs"], each["samples"]) for each in after} == {(epochs, 240 * epochs)}
    assert after[0]["at_end"] != before[0]["at_end"]
    assert len({json.dumps([each["at_end"], each["learning_rate"], each["eval"]]) for each in after}) == 1
    assert after[0]["learning_rate"] == pytest.approx(before[0]["learning_rate"] * 0.8)


def _check_saved(remote, step, ranks):
    run = Run("shards", remote=remote, local_root=remote.parent / "look", read_only=True)
    latest = run.latest()
    names = {file.path.rpartition("/")[2] for file in latest.files}
    shards = {f"__{rank}_0.distcp" for rank in range(ranks)} | {".metadata"} if ranks > 1 else set()
    assert names == shards | {f"ep{latest.epoch}-ba{latest.batch}-rank{rank}.pt" for rank in range(ranks)}
    assert latest.step == step
    assert run.verify(deep=True).ok


def test_shards_of_four_ranks_go_to_two_and_back_to_four_and_to_one(tmp_path, train):
    four = train(4, "a", "--max-duration", "1ep")
    _check_saved(tmp_path / "remote", 4, 4)
    two = train(2, "b", "--max-duration", "2ep")
    _goes_on(four, two, 2)
    _check_saved(tmp_path / "remote", 4 + 8, 2)
    assert two[0]["random"] != two[1]["random"]
    again = train(4, "c", "--max-duration", "3ep")
    _goes_on(two, again, 3)
    _check_saved(tmp_path / "remote", 4 + 8 + 4, 4)
    _goes_on(again, train(1, "d", "--max-duration", "4ep", kind="plain"), 4)
    _check_saved(tmp_path / "remote", 4 + 8 + 4 + 16, 1)


def test_a_rank_that_is_killed_within_an_epoch_costs_nothing_of_the_result(tmp_path, train):
    straight = train(2, "s", "--max-duration", "2ep", remote=tmp_path / "straight")
    often = ["--max-duration", "2ep", "--save-interval", "3ba"]
    train(2, "a", *often, "--kill-rank", 1, "--kill-at", 13, killed=1)
    after = train(2, "b", *often)
    assert [each["began_at"] for each in after] == [12, 12]
    for each in (*straight, *after):
        del each["at_start"], each["began_at"]
    assert after == straight


@pytest.mark.crash
@pytest.mark.timeout(600)  # eleven cold starts of torch
def test_under_real_torchruns_of_changing_size(tmp_path):
    before = None
    for epochs, ranks in enumerate((4, 2, 4), start=1):
        out = tmp_path / f"said-{epochs}"
        out.mkdir()
        command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        arguments = _arguments(tmp_path, f"host{epochs}", out, "--max-duration", f"{epochs}ep")
        done = subprocess.run(
            [sys.executable, *command, "-m", "tests.distributed.fsdp_digits", *arguments],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        after = _said(out)
        assert len(after) == ranks
        if before is not None:
            _goes_on(before, after, epochs)
        before = after
    print("FSDP2 by Trainer under torchrun: 4 ranks, 2, 4: parameters and optimizer state equal at each resume")
