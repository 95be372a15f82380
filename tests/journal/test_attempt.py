from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from artifactsync.errors import RunFencedError, RunIsLiveError
from artifactsync.journal.attempt import Attempt, claim
from artifactsync.journal.catalogue import CheckpointFile
from artifactsync.journal.log import JournalLog, read_catalogue
from artifactsync.journal.record import Kind
from artifactsync.journal.writer import WriterIdentity
from artifactsync.stores import open_store
from artifactsync.testing import Fault, FaultyStore
from tests.journal.conftest import IMPATIENT

if TYPE_CHECKING:
    from artifactsync.stores.protocol import Store

ME = WriterIdentity.of_this_process()
DEAD = replace(ME, started="1")  # this pid, but of a process that started at boot
ELSEWHERE = replace(ME, host="other", pid_space="another-machine")


def commit(attempt: Attempt, step: int) -> int:
    file = CheckpointFile(path=f"c/{step}.pt", key=f"demo/c/{step}.pt", size=step, sha256=f"{step:064x}")
    return attempt.commit(name=f"s{step}", step=step, epoch=0, batch=step, metrics={}, files=[file]).seq


def test_attempts_are_numbered_and_commits_listed_oldest_first(log: JournalLog) -> None:
    first = claim(log, writer=ME)
    assert first.number == 1
    commit(first, 10)
    commit(first, 20)
    first.finish("completed")
    second = claim(log, writer=ME)
    assert second.number == 2
    commit(second, 30)
    catalogue = read_catalogue(log)
    assert [(c.attempt, c.step) for c in catalogue.checkpoints] == [(1, 10), (1, 20), (2, 30)]
    assert catalogue.attempt == 2
    assert catalogue.finished == ""


def test_a_live_owner_is_not_disturbed(log: JournalLog) -> None:
    claim(log, writer=ME)
    with pytest.raises(RunIsLiveError, match=f"process {os.getpid()}") as caught:
        claim(log, writer=ME)
    assert caught.value.exit_code == 5
    assert "takeover" in caught.value.hint


def test_a_dead_neighbour_is_known_to_be_dead_at_once(log: JournalLog) -> None:
    claim(log, writer=DEAD)
    assert claim(log, writer=ME).number == 2


def test_a_process_that_was_killed_is_known_to_be_dead(log: JournalLog) -> None:
    code = (
        "import json; from artifactsync.journal.writer import WriterIdentity as W\n"
        "print(json.dumps(W.of_this_process().to_json()), flush=True); input()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout
        identity = WriterIdentity.from_json(json.loads(child.stdout.readline()))
        claim(log, writer=identity)
        with pytest.raises(RunIsLiveError):
            claim(log, writer=ME)
        child.kill()
        child.wait()
    assert claim(log, writer=ME).number == 2


def test_a_takeover_fences_the_old_owner_for_good(log: JournalLog) -> None:
    old = claim(log, writer=ELSEWHERE)
    commit(old, 10)
    new = claim(log, writer=ME, takeover=True)
    for _ in range(2):
        with pytest.raises(RunFencedError, match="attempt 2") as caught:
            commit(old, 20)
        assert str(os.getpid()) in str(caught.value)
    with pytest.raises(RunFencedError):
        old.finish("completed")
    with pytest.raises(RunFencedError):
        old.check()
    commit(new, 30)
    assert [c.step for c in read_catalogue(log).checkpoints] == [10, 30]


def test_an_owner_that_asks_learns_of_a_takeover_without_a_commit(log: JournalLog) -> None:
    old = claim(log, writer=ME)
    commit(old, 1)
    old.look_for_later()
    old.check()
    new = claim(log, writer=ME, takeover=True)
    commit(new, 2)
    old.check()  # it asks nobody
    old.look_for_later()
    with pytest.raises(RunFencedError, match="attempt 2"):
        old.check()
    new.look_for_later()
    new.check()


def test_a_commit_that_wins_the_slot_before_a_claim_is_kept(log: JournalLog, store: Store) -> None:
    old = claim(log, writer=DEAD)

    def commit_first(call: object) -> None:
        if getattr(call, "operation", "") == "put_if_absent" and getattr(call, "number", 0) == 1:
            commit(old, 10)

    racing = FaultyStore(store, on_call=commit_first)
    new = claim(JournalLog(racing, "demo", policy=IMPATIENT), writer=ME)
    assert new.number == 2
    assert [c.step for c in new.catalogue.checkpoints] == [10]
    assert [c.step for c in read_catalogue(log).checkpoints] == [10]


def test_an_own_record_whose_answer_never_came_is_adopted(log: JournalLog, store: Store) -> None:
    attempt = claim(log, writer=ME)
    # Every request of the commit fails after it was applied, so the commit is reported as unknown …
    deaf = FaultyStore(store, [Fault(kind="lost-response", operations={"put_if_absent", "get"})])
    attempt.use(JournalLog(deaf, "demo", policy=IMPATIENT))
    with pytest.raises(Exception, match=r".") as caught:
        commit(attempt, 10)
    assert not isinstance(caught.value, RunFencedError)
    # … and trying again finds it, instead of taking it for another writer's.
    attempt.use(log)
    assert commit(attempt, 10) == 2
    assert commit(attempt, 20) == 3
    assert [c.step for c in read_catalogue(log).checkpoints] == [10, 20]


@pytest.mark.parametrize("kind", ["memory", "local"])
def test_of_many_claims_at_once_one_wins(kind: str, tmp_path: object) -> None:
    for number in range(20):
        url = f"memory://race-{number}" if kind == "memory" else f"{tmp_path}/race-{number}"
        store = open_store(url)
        start = threading.Barrier(6)

        def contend(index: int, store: Store = store, start: threading.Barrier = start) -> int | None:
            log = JournalLog(store, "demo", policy=IMPATIENT)
            start.wait()
            try:
                attempt = claim(log, writer=replace(ME, token=str(index)))
            except RunIsLiveError:
                return None
            commit(attempt, 10 + index)
            return index

        with ThreadPoolExecutor(6) as pool:
            winners = [w for w in pool.map(contend, range(6)) if w is not None]
        assert len(winners) == 1
        assert [c.step for c in read_catalogue(JournalLog(store, "demo")).checkpoints] == [10 + winners[0]]


def test_takeovers_that_race_lose_no_commit(store: Store) -> None:
    committed: list[int] = []

    def contend(index: int) -> None:
        log = JournalLog(store, "demo", policy=IMPATIENT)
        attempt = claim(log, writer=replace(ME, token=str(index)), takeover=True)
        for round_ in range(5):
            try:
                commit(attempt, index * 100 + round_)
            except RunFencedError:
                return
            committed.append(index * 100 + round_)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(contend, range(8)))
    log = JournalLog(store, "demo")
    catalogue = read_catalogue(log)
    assert sorted(c.step for c in catalogue.checkpoints) == sorted(committed)
    claims = [s.record.attempt for s in log.read_all(up_to=catalogue.seq) if s.record.kind is Kind.CLAIM]
    assert claims == list(range(1, 9))
    attempts = [s.record.attempt for s in log.read_all(up_to=catalogue.seq)]
    assert attempts == sorted(attempts)  # no record of an attempt after the claim of a later one
