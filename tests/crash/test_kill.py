"""SIGKILL of a saving, uploading, pruning or pulling process, anywhere: a checkpoint is whole or it does not exist."""

from __future__ import annotations

import itertools
import random
import threading
import time
from typing import TYPE_CHECKING

import pytest

from artifactsync import Run
from tests.crash.figures import Tally, scaled, stride
from tests.crash.inspection import KINDS, Problem, inspect, inspect_pulled, inspect_resume, read_committed
from tests.crash.lanes import LANES, in_lanes
from tests.crash.remotes import Remotes
from tests.crash.scenario import KEEP, NAME, PATIENCE, Remote, bytes_of, save_step, write
from tests.crash.victim import Part, Point, Victim

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

BACKENDS = ("local", "s3", "gcs")
COMMITS_BEFORE = {"save": 1, "overlap": 1, "upload": 1, "prune": 4, "pull": 2}
"""The scenarios, and how many checkpoints their run has before."""

_CHAIN = 6  # seeded points on one run, each of the leftovers of those before


def begin(remote: Remote, folder: Path, *, commits: int, is_large: bool = False) -> None:
    """A run with a finished attempt, checkpoints and artifacts."""
    with Run(NAME, remote=remote.open(), local_root=folder, patience=PATIENCE) as run:
        for step in range(1, commits + 1):
            save_step(run, step, is_large=is_large)
        for path in ("logs/a1.txt", "traces/a1-0.bin"):
            run.push(write(run, path, bytes_of(path, attempt=1)))


class Range:
    """Where processes are killed: on one backend, with one tally."""

    def __init__(self, remotes: Remotes, folder: Path) -> None:
        self.remotes, self.folder = remotes, folder
        self.tally = Tally(*KINDS)
        self._numbers = itertools.count()
        self._lock = threading.Lock()

    def fresh_folder(self) -> Path:
        with self._lock:
            return self.folder / f"p{next(self._numbers)}"

    def fresh_run(self, scenario: str) -> Remote:
        remote = self.remotes.fresh()
        begin(remote, self.fresh_folder(), commits=COMMITS_BEFORE[scenario])
        return remote

    def kill(self, remote: Remote, scenario: str, point: Point | float, *, what: str, resumes: bool = True) -> bool:
        """Let a process play and die, and judge what it left; says whether the kill came in time.

        Args:
            remote: Its run is there.
            scenario: What it plays.
            point: Where it dies; as a number, how many seconds after it began.
            what: What to count it as.
            resumes: Whether a new attempt follows.
        """
        before = read_committed(remote)
        with Victim(
            Part(scenario, remote, self.fresh_folder(), point=point if isinstance(point, Point) else Point())
        ) as victim:
            if not isinstance(point, Point):
                victim.kill_after(point)
            was_killed = victim.end()
            if not was_killed:
                assert not victim.ending().error, victim.ending()
        found = inspect(remote, acknowledged=victim.commits(), before=before)
        if scenario == "pull":
            found += self._pull_again(remote, victim.part.folder / "pulled", expected=not was_killed)
        if resumes:
            now = read_committed(remote)
            found += inspect_resume(remote, self.fresh_folder())
            found += inspect(remote, acknowledged=victim.commits(), before=now)
        if scenario == "prune" and resumes:
            found += self._prune_again(remote)
        for kind, problem in found:
            self.tally.problem(kind, f"{scenario} {point}: {problem}")
        self.tally.count(what if was_killed else "too late")
        return was_killed

    def _pull_again(self, remote: Remote, destination: Path, *, expected: bool) -> list[Problem]:
        """Nothing half-written is visible; and the same command ends well."""
        store = remote.open()
        reader = Run(NAME, remote=store, read_only=True)
        latest = reader.latest()
        assert latest
        found = inspect_pulled(destination, attempt=latest.attempt, is_whole=expected) if destination.exists() else []
        report = reader.pull(destination)
        if report.checkpoint != latest.name or report.fallback_from:
            found.append(("unresumable", f"the second pull: {report}"))
        found += inspect_pulled(destination, attempt=latest.attempt, is_whole=True)
        store.close()
        return found

    def _prune_again(self, remote: Remote) -> list[Problem]:
        """The next prune deletes what this one left: no byte that only retired checkpoints had stays for ever."""
        store = remote.open()
        run = Run(NAME, remote=store, read_only=True)
        before = read_committed(remote)
        run.prune(KEEP)
        catalogue = run.catalogue()
        there = {info.key for info in store.list(f"{NAME}/")}
        live = {file.key for checkpoint in catalogue.checkpoints for file in checkpoint.files}
        store.close()
        left = (catalogue.retired_keys - live) & there
        found: list[Problem] = [("changed", f"retired and never deleted: {key}") for key in sorted(left)]
        return found + inspect(remote, before=before)

    def at_every_call(self, scenario: str, *, stride: int = 1) -> None:
        """Kill before and after each store call, from the first to the last."""
        remote = self.fresh_run(scenario)
        with Victim(Part(scenario, remote, self.fresh_folder())) as victim:
            assert not victim.end()
        calls = victim.ending().calls
        points = [Point(when, number) for number in range(1, calls + 1) for when in ("before", "after")]
        chosen = points[::stride]
        shared = self.fresh_run(scenario) if scenario == "pull" else None

        def one(point: Point) -> None:
            # A pull changes nothing but its pin, so all of them may read one run.
            remote = shared or self.fresh_run(scenario)
            self.kill(remote, scenario, point, what=f"{scenario} calls", resumes=not shared)

        in_lanes(one, chosen)

    def measure(self) -> dict[str, tuple[int, float]]:
        """Lines and seconds of each scenario, undisturbed."""
        found = {}
        for scenario in COMMITS_BEFORE:
            with Victim(Part(scenario, self.fresh_run(scenario), self.fresh_folder(), counts_lines=True)) as victim:
                assert not victim.end()
            lines = victim.ending().lines
            with Victim(Part(scenario, self.fresh_run(scenario), self.fresh_folder())) as victim:
                victim.wait_until_it_plays()
                began = time.monotonic()
                assert not victim.end()
                found[scenario] = (lines, time.monotonic() - began)
        return found

    def at_random(self, count: int, *, seed: int, within: Mapping[str, tuple[int, float]], lanes: int = LANES) -> None:
        """Kill at seeded places, half of them at a line of our code, half at a moment; until so many have died.

        Args:
            count: How many.
            seed: Of the places.
            within: At which line and second of each scenario at the latest.
            lanes: How many at a time.
        """

        def chain(number: int) -> None:
            draw = random.Random(f"{seed}/{number}")
            remote = self.fresh_run("prune")
            for _ in range(_CHAIN):
                scenario = draw.choice(list(COMMITS_BEFORE))
                at_line, share, resumes = draw.random() < 0.5, draw.random(), draw.random() < 0.4
                lines, seconds = within[scenario]
                point = Point("line", int(share * lines) + 1) if at_line else share * seconds
                if self.tally.counts["seeded"] < count:
                    self.kill(remote, scenario, point, what="seeded", resumes=resumes)

        in_lanes(chain, self._until("seeded", count), lanes=lanes)

    def at_moments_of_parts(self, count: int, *, seed: int) -> None:
        """Kill while large files go in parts, up and down."""

        def chain(number: int) -> None:
            draw = random.Random(f"{seed}/{number}")
            remote = self.remotes.fresh()
            begin(remote, self.fresh_folder(), commits=1, is_large=True)
            seconds = {}
            for scenario in ("save large", "pull"):
                with Victim(Part(scenario, remote, self.fresh_folder())) as victim:
                    victim.wait_until_it_plays()
                    began = time.monotonic()
                    assert not victim.end()
                    seconds[scenario] = time.monotonic() - began
            for _ in range(_CHAIN):
                scenario = draw.choice(["save large", "pull"])
                if self.tally.counts["in parts"] < count:
                    self.kill(remote, scenario, draw.random() * seconds[scenario], what="in parts", resumes=False)
            for kind, problem in inspect_resume(remote, self.fresh_folder()):
                self.tally.problem(kind, f"after parts: {problem}")

        in_lanes(chain, self._until("in parts", count))

    def _until(self, what: str, count: int) -> Iterator[int]:
        """0, 1, 2 … until so many of these have been counted."""
        return itertools.takewhile(lambda _: self.tally.counts[what] < count, itertools.count())


def test_the_judge_sees_damage(tmp_path: Path) -> None:
    remote = Remote(str(tmp_path / "remote"))
    begin(remote, tmp_path / "runs", commits=2)
    before = read_committed(remote)
    assert not inspect(remote, acknowledged=[2, 3], before=before)
    assert {kind for kind, _ in inspect(remote, acknowledged=[9], before=before)} == {"lost"}
    for path, damage, kinds in (
        ("checkpoints/ep0-ba1-optim.pt", lambda file: file.write_bytes(b"x" * file.stat().st_size), "partial changed"),
        ("checkpoints/ep0-ba2-rank0.pt", lambda file: file.unlink(), "partial changed"),
        ("checkpoints/ep0-ba3-rank0.pt", lambda file: file.write_bytes(b"half"), "half artifacts"),
        ("traces/a1-0.bin", lambda file: file.write_bytes(b"half"), "half artifacts"),
        ("logs/a1.txt", lambda file: file.write_bytes(b"half"), "half artifacts"),
    ):
        file = tmp_path / "remote" / NAME / path
        whole = file.read_bytes() if file.exists() else None
        damage(file)
        assert {kind for kind, _ in inspect(remote, before=before)} == set(
            [kinds] if kinds == "half artifacts" else kinds.split()
        )
        file.unlink(missing_ok=True)
        if whole is not None:
            file.write_bytes(whole)
    assert not inspect(remote, before=before)
    pulled = tmp_path / "pulled"
    (pulled / "checkpoints").mkdir(parents=True)
    (pulled / "checkpoints/ep0-ba2-rank0.pt").write_bytes(b"half")
    (pulled / "checkpoints/.artifactsync-part").write_bytes(b"half")
    assert [kind for kind, _ in inspect_pulled(pulled, attempt=1, is_whole=True)] == ["partial"] * 2
    assert [kind for kind, _ in inspect_pulled(pulled, attempt=1, is_whole=False)] == ["partial"]
    (tmp_path / "remote" / NAME / ".artifactsync/journal/00000000000000000002.json").unlink()
    assert [kind for kind, _ in inspect_resume(remote, tmp_path / "next")] == ["unresumable"]


_COUNTED = ("seeded", "in parts", *(f"{scenario} calls" for scenario in COMMITS_BEFORE))


@pytest.mark.parametrize("backend", BACKENDS)
def test_killed_here_and_there(backend: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    place = Range(Remotes(backend, request, tmp_path), tmp_path)
    if backend == "local":
        for scenario in COMMITS_BEFORE:
            place.at_every_call(scenario, stride=61)
    place.at_random(3, seed=1, within=dict.fromkeys(COMMITS_BEFORE, (6000, 0.2)), lanes=1)
    place.tally.report(f"kill points, {backend}", *_COUNTED)


@pytest.mark.crash
@pytest.mark.parametrize("scenario", list(COMMITS_BEFORE))
@pytest.mark.parametrize("backend", BACKENDS)
def test_killed_at_every_call(backend: str, scenario: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    place = Range(Remotes(backend, request, tmp_path), tmp_path)
    place.at_every_call(scenario, stride=stride())
    place.tally.report(f"kill points, {backend}", f"{scenario} calls")


@pytest.mark.crash
@pytest.mark.parametrize("backend", BACKENDS)
def test_killed_anywhere(backend: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    place = Range(Remotes(backend, request, tmp_path), tmp_path)
    place.at_random(scaled(500), seed=2, within=place.measure())
    place.at_moments_of_parts(scaled(50), seed=3)
    place.tally.report(f"kill points, {backend}", "seeded", "in parts")
