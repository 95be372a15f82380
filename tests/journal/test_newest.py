from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from artifactsync.errors import RunIsLiveError
from artifactsync.journal.attempt import Attempt, claim
from artifactsync.journal.catalogue import CheckpointFile
from artifactsync.journal.log import JournalLog, Slot, read_catalogue
from artifactsync.journal.newest import latest_of, totals_of
from artifactsync.journal.record import Kind, Record, seal
from artifactsync.journal.runs import list_runs, summarise_runs
from artifactsync.journal.writer import WriterIdentity
from artifactsync.testing import FaultyStore
from tests.journal.conftest import IMPATIENT
from tests.journal.test_record import commit as golden

if TYPE_CHECKING:
    from artifactsync.stores.protocol import Store

ME = WriterIdentity.of_this_process()
DEAD = replace(ME, started="1")


def commit(attempt: Attempt, step: int) -> int:
    file = CheckpointFile(path=f"c/{step}.pt", key=f"demo/c/{step}.pt", size=step, sha256=f"{step:064x}")
    return attempt.commit(name=f"s{step}", step=step, epoch=0, batch=step, metrics={}, files=[file]).seq


def grow(log: JournalLog, checkpoints: int, *, ends: bool) -> None:
    attempt = claim(log, writer=DEAD)
    for step in range(1, checkpoints + 1):
        commit(attempt, step)
    if ends:
        attempt.finish("preempted")
    log.advise(attempt.head.record.seq)


@pytest.mark.parametrize("ends", [True, False], ids=["finished", "killed"])
@pytest.mark.parametrize("checkpoints", [0, 1, 10, 250])
def test_opening_and_resuming_asks_as_little_however_long_the_journal(
    log: JournalLog, store: Store, checkpoints: int, *, ends: bool
) -> None:
    grow(log, checkpoints, ends=ends)
    counting = FaultyStore(store)
    attempt = claim(JournalLog(counting, "demo", policy=IMPATIENT), writer=ME)
    latest = attempt.latest()
    assert counting.calls.total() == 4  # the pointer, a listing, the newest record, the claim; and then the file
    assert latest == read_catalogue(log).latest()
    assert attempt.durable_step == (checkpoints or None)
    if checkpoints:
        assert commit(attempt, 1000) == attempt.head.record.seq
    assert attempt.catalogue == read_catalogue(log)


def test_the_newest_record_repeats_the_commit_that_a_resume_takes(log: JournalLog) -> None:
    grow(log, 3, ends=True)
    finish = log.find_head()
    assert finish
    repeated = finish.record.latest_commit
    assert repeated
    assert (repeated["seq"], repeated["attempt"], repeated["body"]["step"]) == (4, 1, 3)
    attempt = claim(log, writer=ME)
    assert attempt.head.record.latest_commit == repeated
    commit(attempt, 1)
    newest = log.find_head()
    assert newest
    assert newest.record.latest_commit is None  # it is the one itself
    assert Record.decode(newest.record.encode(), url="x") == newest.record


def test_a_commit_that_is_not_the_newest_checkpoint_names_the_one_that_is(log: JournalLog) -> None:
    attempt = claim(log, writer=DEAD)
    commit(attempt, 20)
    commit(attempt, 10)
    head = log.find_head()
    found = latest_of(log, head)
    assert found
    assert found.step == 20
    assert found == read_catalogue(log).latest()


@pytest.mark.parametrize(
    "changes",
    [
        {"latest_commit": None},
        {"latest_commit": {}},
        {"latest_commit": {"seq": 3, "attempt": "x", "time": 1, "body": []}},
        {"latest_commit": {"seq": 3, "attempt": 1, "time": "", "body": {"files": [{"path": "../x"}]}}},
        {"totals": {}},
        {"totals": {"checkpoints": 2, "bytes": 3, "latest": "3", "last_step": 2}},
        {"totals": {"checkpoints": 2, "bytes": 3, "latest": 1, "last_step": 2}},
        {"totals": {"checkpoints": 2, "bytes": 3, "latest": 99, "last_step": 2}},
        {"totals": {"checkpoints": 2, "bytes": 3, "latest": None, "last_step": None}},
    ],
    ids=str,
)
def test_a_record_that_does_not_say_it_has_the_journal_read(log: JournalLog, changes: dict[str, Any]) -> None:
    grow(log, 2, ends=True)
    head = log.find_head()
    assert head
    fields = {**json.loads(head.record.encode()), **changes}
    log.store.delete([log.layout.record(4)])
    log.store.put(log.layout.record(4), seal(fields))
    found = latest_of(log, log.find_head())
    assert found
    assert found == read_catalogue(log).latest()
    assert claim(log, writer=ME).latest() == found


def test_the_records_of_an_older_version_are_read_as_ever(log: JournalLog) -> None:
    assert b"latest_commit" not in golden().encode()
    assert Record.decode(golden().encode(), url="x").latest_commit is None
    slot = Slot(golden(), "")
    assert totals_of(slot.record) == golden().totals


def test_a_prune_in_between_changes_neither_owner_nor_end(log: JournalLog) -> None:
    attempt = claim(log, writer=ME)
    first = commit(attempt, 1)
    commit(attempt, 2)
    owner = attempt.writer.to_json()
    attempt.retire(
        lambda _: (
            {"commits": [first], "names": [], "keys": [], "owner": owner, "finished": ""}
            if attempt.head.record.kind is Kind.COMMIT
            else None
        )
    )
    with pytest.raises(RunIsLiveError):
        claim(log, writer=replace(ME, token="other"))
    found = latest_of(log, log.find_head())
    assert found
    assert found.step == 2


def test_ls_lists_names_and_reads_three_small_objects_of_each_run(store: Store) -> None:
    for number in range(5):
        log = JournalLog(store, f"run{number}", policy=IMPATIENT)
        grow(log, 150 if number == 4 else 7, ends=bool(number % 2))
    counting = FaultyStore(store)
    runs = {run.run_name: run for run in list_runs(counting)}
    assert [(runs[f"run{n}"].last_step, runs[f"run{n}"].checkpoints) for n in (0, 4)] == [(7, 7), (150, 150)]
    assert runs["run0"].bytes == 28  # 1 + 2 + ... + 7
    assert {run.state for run in runs.values()} == {"preempted", "unknown"}
    assert counting.calls == {"list_folders": 1, "get": 15}
    for at_a_time in (1, 2):  # on the caller's thread where the store is near
        assert summarise_runs(store, sorted(runs), at_a_time=at_a_time) == [runs[name] for name in sorted(runs)]


POINTERS = {
    "missing": None,
    "behind": {"seq": 3},
    "at the first": {"seq": 1},
    "one ahead": {"seq": 9},
    "far ahead": {"seq": 10**25},
    "of a copy": {"seq": 2, "copying_to": 8},
    "negative": {"seq": -4},
    "no number": {"seq": "8"},
    "nonsense": ["seq"],
}


@pytest.mark.parametrize("pointer", POINTERS.values(), ids=POINTERS)
def test_ls_shows_the_newest_record_whatever_the_pointer_says(log: JournalLog, store: Store, pointer: Any) -> None:
    grow(log, 6, ends=True)
    store.delete([log.layout.head])
    if pointer is not None:
        store.put(log.layout.head, json.dumps(pointer).encode())
    assert [(run.last_step, run.state) for run in list_runs(store)] == [(6, "preempted")]
    peeked, found = log.peek_head(), log.find_head()
    assert peeked == found
    assert peeked
    assert peeked.record.seq == 8


def test_ls_looks_past_a_damaged_record_to_which_the_pointer_points(log: JournalLog, store: Store) -> None:
    grow(log, 6, ends=True)
    store.put(log.layout.record(4), b"no record")
    store.put(log.layout.head, json.dumps({"seq": 4}).encode())
    assert [(run.last_step, run.state) for run in list_runs(store)] == [(6, "preempted")]
    store.put(log.layout.record(8), b"no record")
    assert [run.state for run in list_runs(store)] == ["unknown"]
    assert log.layout.run_name == list_runs(store)[0].run_name


def test_a_folder_with_nothing_in_it_is_no_run(store: Store, log: JournalLog) -> None:
    grow(log, 1, ends=True)
    store.put("notes/readme.md", b"12345")
    store.put("not a run/x", b"1")
    listed = {run.run_name: (run.bytes, run.checkpoints, run.state) for run in list_runs(store)}
    assert listed == {"demo": (1, 1, "preempted"), "notes": (5, 0, "unknown")}
