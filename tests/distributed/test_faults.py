"""Ranks in trouble on real remotes: killed at every step of a save, and cut off from the store alone."""

from __future__ import annotations

import json
import re
import signal

import pytest

from artifactsync import Run
from artifactsync.stores import open_store
from tests.crash.figures import Tally
from tests.distributed import plain_loop

COMMIT = "put_if_absent:*/journal/*"
POINTS = {
    "rank 1, before its file is sent": (1, "put:*ba4-rank1.pt:before"),
    "rank 1, after it": (1, "put:*ba4-rank1.pt:after"),
    "rank 1, before its shards are sent": (1, "put:*ba4/__1_0.distcp:before"),
    "rank 1, after them": (1, "put:*ba4/__1_0.distcp:after"),
    "rank 1, before its part record": (1, "put_if_absent:*/parts/*:before"),
    "rank 0, before its file is sent": (0, "put:*ba4-rank0.pt:before"),
    "rank 0, after its file is sent": (0, "put:*ba4-rank0.pt:after"),
    "rank 0, after its shards are sent": (0, "put:*ba4/__0_0.distcp:after"),
    "rank 0, before it asks for the parts": (0, "list:*/parts/*:before"),
    "rank 0, before the metadata is sent": (0, "put:*ba4/.metadata:before"),
    "rank 0, before the commit": (0, f"{COMMIT}:before"),
    "rank 0, after the commit": (0, f"{COMMIT}:after"),
    "rank 0, before advice is written": (0, "put:*/head.json:before"),
}
NEW = {"rank 0, after the commit"}
"""Points behind the commit: the new checkpoint resumes."""
EITHER = {"rank 0, before advice is written"}
"""Advice is written by a thread that no commit waits for: that of step 3 may come as late as the save of step 4."""


class Place:
    """A remote that ranks share, and what they need to reach it."""

    def __init__(self, backend, request, folder):
        self.cloud = None if backend == "local" else request.getfixturevalue(backend)
        self.url = self.cloud.fresh_url() if self.cloud else str(folder / "remote")
        self.environment = self.cloud.environment if self.cloud else {}

    def below(self, number):
        return f"{self.url}/{number}"


@pytest.fixture
def place(request, tmp_path):
    return Place(request.param, request, tmp_path)


def _steps_recorded(remote, options):
    """Steps of the commits in the journal, by its records alone: no reader of ours, nothing advisory."""
    store = open_store(remote, options)
    keys = sorted(info.key for info in store.list("many/.artifactsync/journal/"))
    records = [json.loads(store.get(key)) for key in keys]
    return [record["body"]["step"] for record in records if record["kind"] == "commit"]


def _killed(launcher, tmp_path, place, number, point):
    """Kill one of two ranks there in the save of step 4, and resume; what is wrong, or nothing."""
    rank, call = POINTS[point]
    remote, out = place.below(number), tmp_path / f"said{number}"
    out.mkdir()

    def start(host, *more):
        where = ["--remote", remote, "--local-root", str(tmp_path / f"{host}{number}"), "--out", str(out)]
        return launcher.run(
            plain_loop.main, [*where, *map(str, more)], world_size=2, limit_s=60, environment=place.environment
        )

    kill = ["--kill-rank", rank, "--kill-call", call, "--kill-at", 4]
    codes = start("a", "--until", 4, "--save-at", 3, 4, *kill)
    if codes[rank] != -signal.SIGKILL or codes[1 - rank] == -signal.SIGKILL:  # by the launcher, after its limit
        return "hung", f"{codes}"
    options = place.cloud.storage_options if place.cloud else None
    run = Run("many", remote=remote, storage_options=options, local_root=tmp_path / "look", read_only=True)
    recorded = _steps_recorded(remote, options)
    expected = recorded[-1] if point in EITHER and recorded[-1] in {3, 4} else 4 if point in NEW else 3
    if run.latest().step != expected or recorded[-1] != expected or not run.verify(deep=True).ok:
        return "lost", f"{run.latest()}; the journal has commits of {recorded}"
    if (out / "rank1.json").exists() and not plain_loop.said(out, 1)["errors"] and expected != 4:
        return "lost", "rank 1 was told that step 4 is committed"
    codes = start("b", "--until", 5, "--save-at", 5)
    said = [plain_loop.said(out, each) for each in (0, 1)]
    if codes != [0, 0] or [each["resumed"] for each in said] != [expected] * 2 or run.latest().step != 5:
        return "lost", f"{codes} {said} {launcher.output[-2000:]}"
    return None


@pytest.mark.parametrize(
    ("place", "point"),
    [("s3", "rank 1, before its part record"), ("gcs", "rank 0, before the metadata is sent")],
    indirect=["place"],
)
def test_a_rank_that_is_killed_in_a_save_to_a_cloud(place, point, tmp_path, launcher):
    assert _killed(launcher, tmp_path, place, 0, point) is None


@pytest.mark.crash
@pytest.mark.parametrize("place", ["local", "s3", "gcs"], indirect=True)
def test_killed_at_every_step_of_a_save(place, tmp_path, launcher, request):
    tally = Tally("lost", "hung")
    for number, point in enumerate(POINTS):
        problem = _killed(launcher, tmp_path, place, number, point)
        tally.count("steps of a save of 2 ranks")
        if problem:
            tally.problem(problem[0], f"{point}: {problem[1]}")
    name = request.node.callspec.params["place"]
    tally.report(f"FSDP2, a rank killed in a save, {name}", "steps of a save of 2 ranks")


@pytest.mark.parametrize("place", ["s3", "gcs"], indirect=True)
def test_one_rank_is_cut_off_from_the_store(place, loop):
    """The line of rank 1 alone is cut: an error on each rank within its limit, and the checkpoint before stays."""
    shared = {"remote": place.url, "environment": place.environment}
    cut = ["--part-timeout", 3, "--down-rank", 1, "--line-to", place.cloud.server.origin, "--kill-at", 2]
    first, second = loop(2, "a", "--until", 2, "--save-at", 1, 2, *cut, **shared)
    assert re.search(r"rank 1 of 2 did not deliver its part of checkpoint 'ep0-ba2' within 3 s", first["errors"][0])
    assert re.search(r"rank 1", second["errors"][0])
    assert max(first["seconds"], second["seconds"]) < 60
    after = loop(2, "b", "--until", 2, **shared)
    assert [rank["resumed"] for rank in after] == [1, 1]
