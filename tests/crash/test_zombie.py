"""A process is stopped at a request, loses its run, and wakes: it harms nothing, and is told whose the run is."""

from __future__ import annotations

import itertools
import os
import threading
from typing import TYPE_CHECKING

import pytest

from artifactsync import Run
from tests.crash.figures import Tally, stride
from tests.crash.inspection import inspect, read_committed
from tests.crash.lanes import in_lanes
from tests.crash.remotes import Remotes
from tests.crash.scenario import NAME, PATIENCE, Remote, resume_step, save_step
from tests.crash.test_kill import begin
from tests.crash.victim import Part, Point, Victim

if TYPE_CHECKING:
    from pathlib import Path

BACKENDS = ("local", "s3", "gcs")
KINDS = ("changed", "late", "unnamed owners", "partial", "lost", "unresumable", "half artifacts")


class Graveyard:
    """Where zombies wake: one backend, one tally."""

    def __init__(self, remotes: Remotes, folder: Path) -> None:
        self.remotes, self.folder = remotes, folder
        self.tally = Tally(*KINDS)
        self._numbers = itertools.count()
        self._lock = threading.Lock()

    def fresh_folder(self) -> Path:
        with self._lock:
            return self.folder / f"z{next(self._numbers)}"

    def fresh_run(self) -> Remote:
        remote = self.remotes.fresh()
        begin(remote, self.fresh_folder(), commits=2)
        return remote

    def at_every_call(self, *, stride: int) -> None:
        with Victim(Part("career", self.fresh_run(), self.fresh_folder())) as victim:
            assert not victim.end()
        calls = victim.ending().calls
        points = [Point(when, number, "stop") for number in range(1, calls + 1) for when in ("before", "after")]
        in_lanes(self.wake_one, points[::stride])

    def wake_one(self, point: Point) -> None:
        """Stop it, take its run over, commit there, wake it, and see what it does."""
        remote = self.fresh_run()
        with Victim(Part("career", remote, self.fresh_folder(), point=point)) as victim:
            if not victim.wait_until_stopped():
                self.tally.count("not reached")
                return
            told = victim.commits()
            with Run(
                NAME, remote=remote.open(), local_root=self.fresh_folder(), patience=PATIENCE, takeover=True
            ) as run:
                # The same step at the same paths as the zombie's own, with other bytes.
                told.append(save_step(run, resume_step(run) + 1).seq)
                committed = read_committed(remote)
                owner = run.attempt
                victim.wake()
                assert not victim.end()
                found = inspect(remote, acknowledged=[*told, *victim.commits()], before=committed)
                told.append(save_step(run, resume_step(run) + 1).seq)
        found += inspect(remote, acknowledged=told, before=committed)
        for kind, problem in found:
            self.tally.problem(kind, f"{point}: {problem}")
        self._judge_the_end(victim, point, owner=owner)

    def _judge_the_end(self, victim: Victim, point: Point, *, owner: int) -> None:
        """It stopped within one journal operation, and said who the owner is."""
        end = victim.ending()
        self.tally.count("zombies")
        where = f"{point}: {end}"
        if end.appends_after_stop > 1:
            self.tally.problem("late", where)
        if end.error:
            self.tally.count("fenced" if end.error == "RunFencedError" else "refused at the claim")
            is_named = f"attempt {owner} (host {os.uname().nodename}, process {os.getpid()}, since 2" in end.message
            if end.error not in {"RunFencedError", "RunIsLiveError"} or not is_named:
                self.tally.problem("unnamed owners", where)
        else:
            # It had written its finish record before: there was nothing more to lose.
            self.tally.count("finished before")
            if end.appends_after_stop:
                self.tally.problem("late", where)


_COUNTED = ("zombies", "fenced", "refused at the claim", "finished before")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_zombie_wakes_here_and_there(backend: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    place = Graveyard(Remotes(backend, request, tmp_path), tmp_path)
    place.at_every_call(stride=29 if backend == "local" else 71)
    place.tally.report(f"zombies, {backend}", *_COUNTED)


@pytest.mark.crash
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_zombie_wakes_anywhere(backend: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    place = Graveyard(Remotes(backend, request, tmp_path), tmp_path)
    place.at_every_call(stride=stride())
    place.tally.report(f"zombies, {backend}", *_COUNTED)
