"""The answer of any one request may get lost: no false conflict, no second copy of anything.

Once above the store, at every call of every operation, on every backend; and once on the wire, where the libraries'
own retries come in.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest

from artifactsync.errors import ArtifactSyncError
from artifactsync.journal.log import JournalLog
from artifactsync.stores.retry import RetryPolicy, RetryStore
from artifactsync.testing import Fault, FaultyStore
from tests.crash.figures import Tally, stride
from tests.crash.inspection import KINDS, inspect, inspect_pulled
from tests.crash.lanes import in_lanes
from tests.crash.remotes import Remotes
from tests.crash.scenario import NAME, Remote, Stage, life, paths_of
from tests.fault_proxy import LoseAnswer

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable
    from pathlib import Path

    from artifactsync.stores.protocol import Store

BACKENDS = ("memory", "local", "s3", "moto_s3", "gcs")

_ONCE = RetryPolicy(max_attempts=1)
_QUICK = RetryPolicy(max_attempts=6, base_delay_s=0.001, max_delay_s=0.01)
_KINDS = ("false conflicts", "duplicates", *KINDS)

RECORDS = ["claim", "commit", "commit", "commit", "retire", "finish", "claim", "commit", "finish"]
"""What the journal of ``life`` is, and no record more."""

# Checkpoint 1 is pruned; config.json is sent once, and shared; attempt 2 writes siblings.
OBJECTS = {
    *(path for step in (2, 3) for path in paths_of(step)[:2]),
    paths_of(1)[2],
    *(path.replace(".pt", ".a2.pt") for path in paths_of(4)[:2]),
    "checkpoints/latest-rank0.pt.symlink",
    "logs/a1.txt",
}
"""What lies below the run's folder after ``life``, the house aside: one copy of everything."""


def judge(tally: Tally, remote: Remote, folder: Path, play: Callable[[], None], *, where: str) -> None:
    """Play ``life``, and count what is wrong afterwards."""
    try:
        play()
    except (ArtifactSyncError, AssertionError) as error:
        tally.problem("false conflicts", f"{where}: {type(error).__name__}: {error}")
        return
    store = remote.open()
    log = JournalLog(store, NAME)
    kinds = [slot.record.kind.value for slot in log.read_all(up_to=log.newest_seq())]
    objects = {info.key.removeprefix(f"{NAME}/") for info in store.list(f"{NAME}/")}
    plain = {key for key in objects if not key.startswith(".artifactsync/")}
    if kinds != RECORDS:
        tally.problem("duplicates", f"{where}: the journal is {kinds}")
    if plain != OBJECTS:
        tally.problem("duplicates", f"{where}: too much {plain - OBJECTS}, too little {OBJECTS - plain}")
    found = inspect(remote, acknowledged=[2, 3, 4, 8], before={})
    for kind, problem in found + inspect_pulled(folder / "pulled", attempt=2, is_whole=True):
        tally.problem(kind, f"{where}: {problem}")


class LostAnswers:
    """One backend, and what was counted there."""

    def __init__(self, remotes: Remotes, folder: Path) -> None:
        self.remotes, self.folder = remotes, folder
        self.tally = Tally(*_KINDS)
        self._numbers = itertools.count()

    def play(self, faults: list[Fault], *, where: str) -> Counter[str]:
        """Play a life with faults; returns how many calls of each operation there were."""
        remote = self.remotes.fresh()
        folder = self.folder / f"n{next(self._numbers)}"
        faulty = FaultyStore(remote.open(_ONCE), faults)

        def open_again() -> Store:
            return RetryStore(_Kept(faulty), _QUICK)

        judge(
            self.tally,
            remote,
            folder,
            lambda: life(Stage(store=open_again(), folder=folder, open=open_again)),
            where=where,
        )
        if faults:
            assert faulty.faults_hit <= 1
            self.tally.count("lost answers", faulty.faults_hit)
        return faulty.calls

    def at_every_call(self, *, stride: int) -> None:
        calls = self.play([], where="undisturbed")
        points = [(operation, number) for operation in sorted(calls) for number in range(1, calls[operation] + 1)]

        def lose(point: tuple[str, int]) -> None:
            fault = Fault(kind="lost-response", operations={point[0]}, calls={point[1]})
            self.play([fault], where=f"answer {point[1]} of {point[0]}")

        in_lanes(lose, points[::stride])
        for operation in {operation for operation, _ in points[::stride]}:
            self.tally.count("operations")
            assert calls[operation]


class _Kept(FaultyStore):
    """A faulty store's calls go on being counted when another run is opened on it."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)

    def close(self) -> None:
        """It stays open."""


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_lost_answer_here_and_there(backend: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    lost = LostAnswers(Remotes(backend, request, tmp_path), tmp_path)
    lost.at_every_call(stride={"memory": 7, "local": 19}.get(backend, 61))
    lost.tally.report(f"lost answers, {backend}", "lost answers", "operations")


@pytest.mark.crash
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_lost_answer_anywhere(backend: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    lost = LostAnswers(Remotes(backend, request, tmp_path), tmp_path)
    lost.at_every_call(stride=stride())
    lost.tally.report(f"lost answers, {backend}", "lost answers", "operations")


def lose_on_the_wire(backend: str, request: pytest.FixtureRequest, folder: Path, *, stride: int) -> Tally:
    """Let a proxy swallow the answer of each request in turn."""
    tally = Tally(*_KINDS)
    cloud = request.getfixturevalue(backend)
    put_before = request.getfixturevalue("fault_proxy")

    def play(number: int) -> int:
        line = put_before(cloud)
        remote = Remote(line.fresh_url(), line.storage_options)
        rule = line.proxy.add(LoseAnswer(), skip=number - 1, times=1) if number else None
        place = folder / f"w{number}"
        judge(
            tally,
            remote,
            place,
            lambda: life(Stage(store=remote.open(), folder=place, open=remote.open)),
            where=f"request {number}: {line.proxy.seen()[number - 1 : number]}",
        )
        tally.count("lost answers", rule.hits if rule else 0)
        return len(line.proxy.seen())

    requests = play(0)
    in_lanes(play, range(1, requests + 1, stride))
    return tally


@pytest.mark.parametrize("backend", ["s3", "gcs"])
def test_an_answer_lost_on_the_wire_here_and_there(
    backend: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    lose_on_the_wire(backend, request, tmp_path, stride=97).report(f"lost on the wire, {backend}", "lost answers")


@pytest.mark.crash
@pytest.mark.parametrize("backend", ["s3", "gcs"])
def test_an_answer_lost_on_the_wire_anywhere(backend: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    lose_on_the_wire(backend, request, tmp_path, stride=stride()).report(f"lost on the wire, {backend}", "lost answers")
