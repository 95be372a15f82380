from __future__ import annotations

import math
from dataclasses import replace

import pytest

from artifactsync.errors import ConfigurationError, DamagedError, UnsafeKeyError
from artifactsync.journal.catalogue import Catalogue, Checkpoint
from artifactsync.journal.record import Kind, Record
from tests.journal.test_record import commit


def record(seq: int, attempt: int, kind: Kind, **body: object) -> Record:
    return replace(commit(), seq=seq, attempt=attempt, kind=kind, body=body, time=f"t{seq}")


def saved(seq: int, attempt: int, step: int, name: str = "", **metrics: object) -> Record:
    key = f"c/{attempt}-{step}-{seq}.pt"
    file = {"path": f"c/{step}.pt", "key": key, "size": 10, "sha256": f"{seq:064x}"}
    return record(
        seq,
        attempt,
        Kind.COMMIT,
        name=name or f"s{step}",
        step=step,
        epoch=0,
        batch=step,
        metrics=metrics,
        files=[file],
    )


def fold(*records: Record) -> Catalogue:
    return Catalogue.from_records(records, run_name="demo", url="memory://x")


def test_latest_is_the_greatest_attempt_then_step_whatever_time_and_name_say() -> None:
    catalogue = fold(
        record(1, 1, Kind.CLAIM),
        saved(2, 1, 100, "zzz"),
        replace(saved(3, 1, 50), time="2999-01-01"),
        record(4, 2, Kind.CLAIM),
        saved(5, 2, 60, "aaa"),
        saved(6, 2, 40),
    )
    assert [(c.attempt, c.step) for c in catalogue.newest_first()] == [(2, 60), (2, 40), (1, 100), (1, 50)]
    latest = catalogue.latest()
    assert latest
    assert latest.seq == 5
    assert catalogue.totals() == {"checkpoints": 4, "bytes": 40, "latest": 5, "last_step": 60}
    assert catalogue.last_commit_at == "t6"


def test_a_new_claim_reopens_a_finished_run() -> None:
    finished = (record(1, 1, Kind.CLAIM), record(2, 1, Kind.FINISH, state="preempted"))
    assert fold(*finished).finished == "preempted"
    reopened = fold(*finished, record(3, 2, Kind.CLAIM))
    assert (reopened.finished, reopened.attempt, reopened.seq) == ("", 2, 3)


def test_retired_checkpoints_are_gone_but_their_keys_stay_taken() -> None:
    catalogue = fold(saved(1, 1, 10), saved(2, 1, 20), record(3, 1, Kind.RETIRE, commits=[1]))
    assert [c.step for c in catalogue.checkpoints] == [20]
    assert catalogue.keys == {"demo/c/1-10-1.pt", "demo/c/1-20-2.pt"}


def test_a_name_means_its_newest_checkpoint() -> None:
    found = fold(saved(1, 1, 10, "x"), saved(2, 2, 5, "x")).named("x")
    assert found
    assert (found.attempt, found.step) == (2, 5)
    assert fold().named("x") is None


def test_best() -> None:
    catalogue = fold(
        saved(1, 1, 10, loss=0.5),
        saved(2, 1, 20, loss="nan"),
        saved(3, 1, 30, loss=0.25),
        saved(4, 1, 40, loss=0.25),
        saved(5, 1, 50),
        saved(6, 1, 60, loss="inf"),
    )
    smallest, greatest = catalogue.best("loss"), catalogue.best("loss", "max")
    assert smallest
    assert smallest.step == 40  # of equals the newest
    assert greatest
    assert greatest.step == 60
    assert math.isinf(greatest.metrics["loss"])
    assert catalogue.best("accuracy") is None
    with pytest.raises(ConfigurationError, match="median"):
        catalogue.best("loss", "median")  # type: ignore[arg-type]


@pytest.mark.parametrize("field", ["path", "key"])
@pytest.mark.parametrize("value", ["../up", "/etc/passwd", "a/../../b", "a\x00b", ".artifactsync/journal/x", "C:/x"])
def test_hostile_paths_in_a_record_are_refused(field: str, value: str) -> None:
    hostile = saved(1, 1, 10)
    hostile.body["files"][0][field] = value
    with pytest.raises(UnsafeKeyError):
        fold(hostile)


@pytest.mark.parametrize("field", ["name", "step", "files"])
def test_a_commit_without_what_it_needs_is_damaged(field: str) -> None:
    broken = saved(1, 1, 10)
    del broken.body[field]
    with pytest.raises(DamagedError, match="commit record 1"):
        fold(broken)


def test_a_shared_file_counts_once() -> None:
    first, second = saved(1, 1, 10), saved(2, 1, 20)
    second.body["files"][0]["key"] = first.body["files"][0]["key"]
    assert fold(first, second).totals()["bytes"] == 10


def test_json_names() -> None:
    checkpoint = Checkpoint.from_record(saved(1, 1, 10, loss=0.5), run_name="demo", url="x")
    assert checkpoint.to_json() == {
        "name": "s10",
        "step": 10,
        "epoch": 0,
        "batch": 10,
        "attempt": 1,
        "bytes": 10,
        "committed_at": "t1",
        "metrics": {"loss": 0.5},
        "timing": {},
        "files": [{"path": "c/10.pt", "key": "demo/c/1-10-1.pt", "size": 10, "sha256": f"{1:064x}"}],
    }
