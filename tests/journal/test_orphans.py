from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

import pytest

from artifactsync.journal.attempt import claim
from artifactsync.journal.log import JournalLog
from artifactsync.journal.orphans import MIN_AGE_S, find_leftovers, remove_leftovers
from artifactsync.naming.layout import RunLayout
from artifactsync.run import Run
from tests.journal.conftest import IMPATIENT
from tests.journal.test_attempt import ME
from tests.testing.dict_store import DictStore

if TYPE_CHECKING:
    from pathlib import Path

LAYOUT = RunLayout("demo")
HALF = "demo/c/half.pt"


class Dated(DictStore):
    """A store with a clock of its own, years from ours, on which objects can be old."""

    def __init__(self) -> None:
        super().__init__()
        self.now = datetime(2001, 1, 1, tzinfo=timezone.utc)
        self.dates: dict[str, datetime] = {}

    def put(self, key: str, body: bytes) -> object:
        self.dates[key] = self.now
        return super().put(key, body)

    def put_if_absent(self, key: str, body: bytes) -> object:
        info = super().put_if_absent(key, body)
        self.dates[key] = self.now
        return info

    def head(self, key: str) -> object:
        info = super().head(key)
        object.__setattr__(info, "modified_at", self.dates.get(key, self.now))
        return info


@pytest.fixture
def store() -> Dated:
    """What a crash in mid-upload of attempt 1 left, while attempt 2 runs."""
    store = Dated()
    log = JournalLog(store, "demo", policy=IMPATIENT)  # type: ignore[arg-type]
    claim(log, writer=ME)
    store.put(LAYOUT.intent(1, 1), b'{"keys": ["c/half.pt", "c/never.pt", "../up", ".artifactsync/head.json"]}')
    store.put(HALF, b"half")
    store.put("demo/logs.txt", b"log")
    store.put("demo/.artifactsync/head.json", b'{"seq": 1}')
    claim(log, writer=ME, takeover=True)
    store.put(LAYOUT.intent(2, 1), b'{"keys": ["c/now.pt"]}')
    store.put("demo/c/now.pt", b"on its way")
    store.put(LAYOUT.intent(1, 2), b"garbage")
    store.put(LAYOUT.probe("x"), b"probe")
    store.put(LAYOUT.pin("x"), b"pin of the dead")
    return store


def found(store: Dated, min_age_s: float = MIN_AGE_S) -> set[str]:
    catalogue = JournalLog(store, "demo").read_catalogue()  # type: ignore[arg-type]
    leftovers = find_leftovers(store, LAYOUT, catalogue, min_age_s=min_age_s)  # type: ignore[arg-type]
    remove_leftovers(store, leftovers)  # type: ignore[arg-type]
    return {info.key for info in leftovers.objects}


def test_what_is_young_stays(store: Dated) -> None:
    store.now += timedelta(hours=23)
    assert found(store) == set()


def test_what_is_old_and_nobodys_goes(store: Dated) -> None:
    store.now += timedelta(hours=25)
    before = set(store.objects)
    first = found(store)
    assert first == {HALF, LAYOUT.intent(1, 2), LAYOUT.probe("x"), LAYOUT.pin("x")}
    assert found(store) == {LAYOUT.intent(1, 1)}  # it hid the half until that was gone
    assert found(store) == set()
    assert before - set(store.objects) == first | {LAYOUT.intent(1, 1)}
    assert "demo/c/now.pt" in store.objects  # its attempt may still commit it
    assert "demo/logs.txt" in store.objects


def test_a_pin_is_none_however_little_age_is_asked_for(store: Dated) -> None:
    assert not {LAYOUT.pin("x"), LAYOUT.probe("x")} & found(store, 0.0)
    assert HALF not in store.objects


def test_what_was_committed_is_no_orphan_although_its_intent_stayed(tmp_path: Path) -> None:
    store = Dated()
    (tmp_path / "a").write_bytes(b"a")
    with Run("demo", remote=store, local_root=tmp_path) as run:  # type: ignore[arg-type]
        run.save_files({"c/a.pt": tmp_path / "a"}, step=1).result(20)
    store.put(LAYOUT.intent(1, 1), b'{"keys": ["c/a.pt"]}')  # as after a crash right behind the record
    store.now += timedelta(hours=25)
    assert found(store) == {LAYOUT.intent(1, 1)}
    assert "demo/c/a.pt" in store.objects


def test_a_store_without_times_has_no_old_objects(store: Dated) -> None:
    store.now += timedelta(hours=25)
    store.dates = dict.fromkeys(store.objects)  # type: ignore[arg-type]
    assert found(store) == set()


def test_what_ranks_told_a_dead_attempt_goes_and_what_they_tell_the_living_one_stays(store: Dated) -> None:
    dead, living = LAYOUT.parts + "000001-000003-ep0-ba3/rank1.json", LAYOUT.parts + "000002-000001-ep0-ba4/rank1.json"
    for key in (dead, living, LAYOUT.parts + "strange"):
        store.put(key, b"{}")
    store.now += timedelta(seconds=MIN_AGE_S)
    catalogue = JournalLog(store, "demo").read_catalogue()  # type: ignore[arg-type]
    found = find_leftovers(store, LAYOUT, catalogue, min_age_s=MIN_AGE_S)  # type: ignore[arg-type]
    assert [info.key for info in found.objects if info.key.startswith(LAYOUT.parts)] == [dead]
