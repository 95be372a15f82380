"""SIGKILL of a copying or removing process at every call: nobody sees half a run, and the same command ends it."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest

from artifactsync import Run
from artifactsync.errors import RunNotFoundError
from tests.crash.figures import Tally, stride
from tests.crash.inspection import KINDS, inspect, read_committed
from tests.crash.lanes import in_lanes
from tests.crash.remotes import Remotes
from tests.crash.scenario import NAME, Remote
from tests.crash.test_kill import begin
from tests.crash.victim import Part, Point, Victim

if TYPE_CHECKING:
    from pathlib import Path

BACKENDS = {"local": 1, "s3": 5}
"""And every so-manyth of the points there, before and after each call."""

_COMMITS = 2


def checkpoints_seen(remote: Remote) -> int:
    """How many checkpoints a reader is shown."""
    store = remote.open()
    try:
        return len(Run(NAME, remote=store, read_only=True).checkpoints())
    finally:
        store.close()


def objects_of(remote: Remote) -> list[str]:
    store = remote.open()
    try:
        return [info.key for info in store.list(f"{NAME}/")]
    finally:
        store.close()


class Grinder:
    """Kills processes that copy or remove, each on a run of its own."""

    def __init__(self, remotes: Remotes, folder: Path) -> None:
        self.tally = Tally(*KINDS)
        self._remotes, self._folder = remotes, folder
        self._numbers = itertools.count()

    def fresh_folder(self) -> Path:
        return self._folder / f"k{next(self._numbers)}"

    def fresh_run(self) -> Remote:
        remote = self._remotes.fresh()
        begin(remote, self.fresh_folder(), commits=_COMMITS)
        return remote

    def at_every_call(self, scenario: str, *, stride: int) -> None:
        with Victim(Part(scenario, self.fresh_run(), self.fresh_folder())) as victim:
            assert not victim.end()
        ending = victim.ending()
        assert not ending.error, ending
        points = [Point(when, number) for number in range(1, ending.calls + 1) for when in ("before", "after")]
        in_lanes(lambda point: self.kill(scenario, point), points[::stride])

    def kill(self, scenario: str, point: Point) -> None:
        remote = self.fresh_run()
        before = read_committed(remote)
        with Victim(Part(scenario, remote, self.fresh_folder(), point=point)) as victim:
            was_killed = victim.end()
        found = self.judge_copy(remote, before) if scenario == "copy" else self.judge_removal(remote, before)
        for kind, problem in found:
            self.tally.problem(kind, f"{scenario} {point}: {problem}")
        self.tally.count(f"{scenario} calls" if was_killed else "too late")

    def judge_copy(self, remote: Remote, before: dict[str, str]) -> list[tuple[str, str]]:
        """The source is as it was; the target shows nothing or all; copying again makes it all."""
        found = list(inspect(remote, before=before))
        if (seen := checkpoints_seen(remote.target)) not in {0, _COMMITS}:
            found.append(("partial", f"the target shows {seen} checkpoints"))
        if seen:
            found += inspect(remote.target, before=before)
        source, target = remote.open(), remote.target.open()
        Run(NAME, remote=source, read_only=True).copy_to(target)
        source.close()
        target.close()
        found += inspect(remote.target, before=before)
        if checkpoints_seen(remote.target) != _COMMITS or read_committed(remote.target) != before:
            found.append(("lost", "the second copy is not whole"))
        return found

    def judge_removal(self, remote: Remote, before: dict[str, str]) -> list[tuple[str, str]]:
        """All checkpoints are shown, and whole, or none is; removing again leaves nothing."""
        found: list[tuple[str, str]] = []
        if (seen := checkpoints_seen(remote)) not in {0, _COMMITS}:
            found.append(("partial", f"{seen} checkpoints are shown"))
        if seen:
            found += inspect(remote, before=before)
        store = remote.open()
        try:
            Run(NAME, remote=store, read_only=True).remove()
        except RunNotFoundError:
            if seen:
                found.append(("lost", "the run is shown, and cannot be found"))
        finally:
            store.close()
        if left := objects_of(remote):
            found.append(("half artifacts", f"left after the second removal: {left[:3]}"))
        return found


@pytest.mark.parametrize("scenario", ["copy", "remove"])
def test_killed_here_and_there(scenario: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    place = Grinder(Remotes("local", request, tmp_path), tmp_path)
    place.at_every_call(scenario, stride=31)
    place.tally.report(f"kill points of {scenario}, local", f"{scenario} calls")


@pytest.mark.crash
@pytest.mark.parametrize("scenario", ["copy", "remove"])
@pytest.mark.parametrize("backend", list(BACKENDS))
def test_killed_at_every_call(backend: str, scenario: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    place = Grinder(Remotes(backend, request, tmp_path), tmp_path)
    place.at_every_call(scenario, stride=BACKENDS[backend] * stride())
    place.tally.report(f"kill points of {scenario}, {backend}", f"{scenario} calls")
