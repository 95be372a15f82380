"""``Run.save`` and ``Run.resume`` on several ranks: FSDP2 in shards, DDP whole, on as many ranks as there are then."""

from __future__ import annotations

import re
import signal
import warnings

import pytest
import torch
from torch.distributed import checkpoint as dcp

from artifactsync import Run
from tests.crash.figures import Tally, scaled

SHARDS = [
    f"checkpoints/ep0-ba3/{name}"
    for name in (".metadata", "__0_0.distcp", "__1_0.distcp", "__2_0.distcp", "__3_0.distcp")
]


def test_shards_of_four_ranks_go_to_two_and_back_to_four_and_to_one(tmp_path, loop):
    four = loop(4, "a", "--until", 3, "--save-at", 2, 3)
    assert [path for path in four[0]["files"] if path.endswith(("distcp", ".metadata"))] == SHARDS
    two = loop(2, "b", "--until", 5, "--save-at", 4, 5)
    assert [rank["resumed"] for rank in two] == [3, 3]
    assert [rank["at_start"] for rank in two] == [four[0]["at_end"]] * 2  # parameters and optimizer state
    assert two[0]["draws"] != two[1]["draws"]
    again = loop(4, "c", "--until", 6, "--save-at", 6)
    assert [rank["at_start"] for rank in again] == [two[0]["at_end"]] * 4
    one = loop(1, "d", "--until", 6, kind="plain")
    assert one[0]["at_start"] == again[0]["at_end"]
    ddp = loop(2, "e", "--until", 6, kind="ddp")
    assert [rank["at_start"] for rank in ddp] == [again[0]["at_end"]] * 2
    run = Run("many", remote=tmp_path / "remote", local_root=tmp_path / "f", read_only=True)
    whole = run.resume()
    assert whole.saved_by == 4
    assert whole.state["model"]["0.weight"].shape == (24, 10)
    assert run.verify(deep=True).ok

    # torch's own reader opens what was pulled
    run.pull(tmp_path / "pulled")
    mine = {"model": {"0.weight": torch.zeros(24, 10)}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.load(mine, checkpoint_id=tmp_path / "pulled" / "checkpoints" / "ep0-ba6", no_dist=True)
    assert torch.equal(mine["model"]["0.weight"], whole.state["model"]["0.weight"])


@pytest.mark.parametrize("kind", ["fsdp", "ddp"])
def test_the_same_number_of_ranks_goes_on_bit_by_bit(tmp_path, loop, kind):
    straight = loop(2, "s", "--until", 5, "--save-at", 3, kind=kind, remote=tmp_path / "straight")
    before = loop(2, "a", "--until", 3, "--save-at", 3, kind=kind)
    after = loop(2, "b", "--until", 5, kind=kind)
    assert [rank["resumed"] for rank in after] == [3, 3]
    assert [rank["mine"] for rank in after] == [{"rank": 0}, {"rank": 1}]
    assert [rank["draws"] for rank in after] == [rank["next_draws"] for rank in before]
    assert [rank["at_end"] for rank in after] == [rank["at_end"] for rank in straight]


@pytest.mark.parametrize(("rank", "where"), [(1, "write"), (1, "part"), (0, "gather")])
def test_a_rank_that_is_killed_during_a_save_leaves_the_checkpoint_before(loop, rank, where):
    kill = ["--kill-rank", rank, "--kill-in", where, "--kill-at", 4]
    codes = [-signal.SIGTERM, -signal.SIGTERM]
    codes[rank] = -signal.SIGKILL
    loop(2, "a", "--until", 4, "--save-at", 3, 4, *kill, codes=codes)
    after = loop(2, "b", "--until", 5, "--save-at", 5)
    assert [each["resumed"] for each in after] == [3, 3]
    assert all("checkpoints/ep0-ba5/.metadata" in each["files"] for each in after)


def test_the_store_down_for_one_rank_alone(loop):
    """Every rank gets a clear error within the time limit, none hangs, and the checkpoint before stays the newest."""
    limits = ["--part-timeout", 2, "--down-rank", 1, "--kill-at", 2]
    first, second = loop(2, "a", "--until", 2, "--save-at", 1, 2, *limits)
    assert re.search(r"rank 1 of 2 did not deliver its part of checkpoint 'ep0-ba2' within 2 s", first["errors"][0])
    assert re.search(r"of rank 1|rank 1 could not|rank 1's", second["errors"][0])
    assert max(first["seconds"], second["seconds"]) < 30
    after = loop(2, "b", "--until", 2)
    assert [rank["resumed"] for rank in after] == [1, 1]


@pytest.mark.crash
def test_killed_in_many_saves(tmp_path, loop):
    tally = Tally("lost", "hung")
    for number in range(scaled(12)):
        rank, where = number % 2, ("write", "part", "gather")[number % 3]
        remote = tmp_path / f"r{number}"
        kill = ["--kill-rank", rank, "--kill-in", where, "--kill-at", 4]
        codes = [-signal.SIGTERM, -signal.SIGTERM]
        codes[rank] = -signal.SIGKILL
        loop(2, f"a{number}", "--until", 4, "--save-at", 3, 4, *kill, codes=codes, remote=remote)
        after = loop(2, f"b{number}", "--until", 5, "--save-at", 5, remote=remote)
        tally.count("kills during a save of 2 ranks")
        if [each["resumed"] for each in after] != [3, 3]:
            tally.problem("lost", f"rank {rank} in {where}: {after}")
    tally.report("FSDP2, killed during a save", "kills during a save of 2 ranks")
