"""Writers that race for one run name: one wins each slot of the journal, and no acknowledged commit is lost."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from artifactsync.journal.log import JournalLog
from artifactsync.journal.record import Kind
from tests.crash.contest import MAX_WRITERS, Outcome, Processes, Race, Threads
from tests.crash.figures import Tally, scaled
from tests.crash.remotes import Remotes

if TYPE_CHECKING:
    from pathlib import Path

# Backend, who races, how many races, of how many writers at most. SeaweedFS lets racing conditional puts wait for each
# other, the more the longer: fewer races there, of fewer writers.
CONTESTS = [
    ("memory", Threads, 250, MAX_WRITERS),
    ("local", Threads, 200, MAX_WRITERS),
    ("local", Processes, 150, MAX_WRITERS),
    ("s3", Threads, 30, 4),
    ("s3", Processes, 20, 4),
    ("moto_s3", Threads, 100, MAX_WRITERS),
    ("moto_s3", Processes, 50, MAX_WRITERS),
    ("gcs", Threads, 130, MAX_WRITERS),
    ("gcs", Processes, 70, MAX_WRITERS),
]
assert sum(races for _, _, races, _ in CONTESTS) == 1000

contests = pytest.mark.parametrize(
    ("backend", "who", "races", "most"),
    CONTESTS,
    ids=[f"{backend}-{who.__name__.lower()}" for backend, who, *_ in CONTESTS],
)


def race(remotes: Remotes, folder: Path, who: type[Threads | Processes], *, races: int, most: int) -> Tally:
    tally = Tally("without one winner", "lost commits", "forked journals")
    draw = random.Random(most)
    with who(folder) as contenders:
        remote = remotes.fresh()
        for number in range(races):
            one = Race(remote, f"race-{number}", draw.randint(2, most), takeover=number % 2 == 1)
            outcomes = contenders.run(one)
            tally.count("races")
            tally.count("writers", one.writers)
            judge(tally, one, outcomes)
    return tally


def judge(tally: Tally, race: Race, outcomes: list[Outcome]) -> None:
    where = f"{race}: {outcomes}"
    log = JournalLog(race.remote.open(), race.name)
    head = log.find_head()
    assert head
    records = [slot.record for slot in log.read_all(up_to=head.record.seq)]  # raises if it is not one chain
    claims = [record.attempt for record in records if record.kind is Kind.CLAIM]
    committed = {(r.seq, r.body["step"], r.attempt) for r in records if r.kind is Kind.COMMIT}
    told = [(seq, step, outcome.attempt) for outcome in outcomes for seq, step in outcome.commits]
    tally.count("commits", len(told))
    owners = sum(outcome.is_owner for outcome in outcomes)
    claimed = sorted(outcome.attempt for outcome in outcomes if outcome.attempt)
    if owners != 1 or claimed != (list(range(1, race.writers + 1)) if race.takeover else [1]):
        tally.problem("without one winner", where)
    if not committed.issuperset(told):
        tally.problem("lost commits", where)
    attempts = [record.attempt for record in records]
    if claims != claimed or attempts != sorted(attempts) or len(committed) != len(told):
        tally.problem("forked journals", where)


@contests
def test_a_few_races(
    backend: str, who: type[Threads | Processes], races: int, most: int, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    few = 2 if backend == "s3" else 4
    tally = race(Remotes(backend, request, tmp_path), tmp_path, who, races=few, most=most)
    tally.report(f"races, {backend}, {who.__name__.lower()}", "races", "writers", "commits")


@pytest.mark.crash
@contests
def test_many_races(
    backend: str, who: type[Threads | Processes], races: int, most: int, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    tally = race(Remotes(backend, request, tmp_path), tmp_path, who, races=scaled(races), most=most)
    tally.report(f"races, {backend}, {who.__name__.lower()}", "races", "writers", "commits")
