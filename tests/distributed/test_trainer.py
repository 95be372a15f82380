"""The Trainer on two ranks: killed anywhere, it ends with the bytes of a run that never was."""

from __future__ import annotations

import random
import re
import signal

import pytest
import torch

from artifactsync import Run
from tests.crash.figures import Tally, scaled
from tests.distributed.result import differences, result


def test_bit_identical_after_a_rank_was_killed(tmp_path, digits_on):
    more = ["--microbatch", 12]
    assert digits_on(2, "straight", *more, remote=tmp_path / "one") == [0, 0]
    killed = digits_on(2, "a", *more, "--kill-rank", 1, "--kill-at", 7, "--when-durable", remote=tmp_path / "two")
    assert killed[1] == -signal.SIGKILL
    killed = digits_on(2, "b", *more, "--kill-rank", 0, "--kill-at", 8, remote=tmp_path / "two")
    assert killed[0] == -signal.SIGKILL
    assert digits_on(2, "c", *more, remote=tmp_path / "two") == [0, 0]
    (states, lines), (expected, expected_lines) = (
        result(tmp_path / "two", tmp_path / "c"),
        result(tmp_path / "one", tmp_path / "straight"),
    )
    assert list(states) == ["ep2-ba10-rank0.pt", "ep2-ba10-rank1.pt"]
    assert differences(states, expected) == []
    assert lines == expected_lines
    assert Run("digits", remote=tmp_path / "two", local_root=tmp_path / "x", read_only=True).attempt == 3


@pytest.mark.parametrize("told", [1, pytest.param(-1, marks=pytest.mark.crash)])
def test_a_stop_signal_to_one_rank_saves_all_after_the_same_batch(told, tmp_path, digits_on):
    assert digits_on(2, "straight", remote=tmp_path / "one") == [0, 0]
    stopped = digits_on(2, "a", "--stop-rank", told, "--stop-at", 3, remote=tmp_path / "two")
    assert stopped == [-signal.SIGTERM] * 2
    run = Run("digits", remote=tmp_path / "two", local_root=tmp_path / "look", read_only=True)
    latest = run.latest()
    assert (run.status().state, latest.step) == ("preempted", 5)  # told in the fourth batch, agreed on in the fifth
    assert [file.path.rpartition("-")[2] for file in latest.files] == ["rank0.pt", "rank1.pt"]
    assert digits_on(2, "b", remote=tmp_path / "two") == [0, 0]
    (states, lines), (expected, expected_lines) = (
        result(tmp_path / "two", tmp_path / "b"),
        result(tmp_path / "one", tmp_path / "straight"),
    )
    assert differences(states, expected) == []
    assert lines == expected_lines


def test_two_ranks_learn_what_one_would(tmp_path, digits_on):
    """Every sample is seen once an epoch, gradients and metrics are means over ranks, and rank 0's log is the run's."""
    assert digits_on(2, "h", remote=tmp_path / "r") == [0, 0]
    states, lines = result(tmp_path / "r", tmp_path / "h")
    first, second = states["ep2-ba10-rank0.pt"], states["ep2-ba10-rank1.pt"]
    assert (first["timestamp"]["sample"], first["timestamp"]["batch"]) == (600, 10)
    assert set(second) == {"rng", "train_dataloader"}
    assert not torch.equal(first["rng"]["torch"], second["rng"]["torch"])
    losses = [[line for line in log if "loss/train" in line] for log in lines.values()]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 10
    assert re.search(r"eval/accuracy\": 0\.\d", lines["logs-rank0.txt"][-1])


def test_another_number_of_ranks_goes_on_at_the_same_sample(tmp_path, digits_on):
    killed = digits_on(2, "a", "--kill-rank", 0, "--kill-at", 7, "--when-durable", remote=tmp_path / "r")
    assert killed[0] == -signal.SIGKILL
    assert digits_on(1, "b", remote=tmp_path / "r") == [0]
    run = Run("digits", remote=tmp_path / "r", local_root=tmp_path / "look", read_only=True)
    at = {c.step: run.resume().state["timestamp"] for c in [run.latest()]}
    # 2 ranks: 5 batches of 64 an epoch. After batch 6 one rank goes on at sample 64 of the second epoch: 8 of 32 left.
    assert list(at) == [6 + 8]
    assert at[14]["sample"] == 600


@pytest.mark.crash
def test_killed_at_random_batches(tmp_path, digits_on):
    tally = Tally("not bit-identical", "hung")
    assert digits_on(2, "straight", remote=tmp_path / "one") == [0, 0]
    expected = result(tmp_path / "one", tmp_path / "straight")
    chance = random.Random(5)
    for number in range(scaled(25)):
        remote, rank, batch = tmp_path / f"r{number}", chance.randrange(2), chance.randrange(1, 10)
        durable = ["--when-durable"] if chance.random() < 0.5 else []
        kill = ["--kill-rank", rank, "--kill-at", batch, *durable]
        ended = digits_on(2, f"a{number}", *kill, remote=remote, limit_s=60)
        tally.count("kills of one of 2 ranks")
        if ended[rank] != -signal.SIGKILL or digits_on(2, f"b{number}", remote=remote, limit_s=60) != [0, 0]:
            tally.problem("hung", f"rank {rank} at batch {batch}: {ended}")
            continue
        found = result(remote, tmp_path / f"b{number}")
        if differences(found[0], expected[0]) or found[1] != expected[1]:
            tally.problem("not bit-identical", f"rank {rank} at batch {batch}: {differences(found[0], expected[0])}")
    tally.report("DDP, killed in the midst of a batch", "kills of one of 2 ranks")
