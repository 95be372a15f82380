from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from artifactsync.errors import DamagedError
from artifactsync.journal.log import JournalLog, Slot, SlotTakenError, seq_of
from artifactsync.journal.record import Kind, seal
from artifactsync.journal.writer import WriterIdentity
from artifactsync.stores.retry import RetryStore
from artifactsync.stores.s3 import _folders_passed_over
from artifactsync.testing import Fault, FaultyStore
from tests.journal.conftest import IMPATIENT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from artifactsync.stores.protocol import ObjectInfo, Store

ME = WriterIdentity.of_this_process()


def append(log: JournalLog, after: Slot | None, kind: Kind = Kind.CLAIM) -> Slot:
    return log.append(after, kind=kind, attempt=1, writer=ME, body={}, totals={})


def grow(log: JournalLog, count: int) -> Slot:
    slot = None
    for _ in range(count):
        slot = append(log, slot)
    assert slot
    return slot


def test_records_are_dense_chained_and_created_once(log: JournalLog, store: Store) -> None:
    last = grow(log, 3)
    slots = list(log.read_all(up_to=3))
    assert [slot.record.seq for slot in slots] == [1, 2, 3]
    assert [slot.record.prev_sha256 for slot in slots] == [None, slots[0].sha256, slots[1].sha256]
    assert slots[-1] == last
    before = store.get(log.layout.record(2))
    with pytest.raises(SlotTakenError) as caught:
        append(log, slots[0])
    assert caught.value.slot == slots[1]
    assert store.get(log.layout.record(2)) == before


@pytest.mark.parametrize("operation", ["put_if_absent", "get"])
def test_a_lost_response_is_neither_a_conflict_nor_a_duplicate(store: Store, operation: str) -> None:
    for call in (1, 2):
        faulty = FaultyStore(store, [Fault(kind="lost-response", operations={operation}, calls={call})])
        log = JournalLog(RetryStore(faulty, IMPATIENT), f"lost-{operation}-{call}", policy=IMPATIENT)
        grow(log, 3)
        assert log.read(4) is None
        assert len(list(log.read_all(up_to=3))) == 3


def test_every_answer_lost_for_a_while(store: Store) -> None:
    faulty = FaultyStore(store, [Fault(kind="lost-response", operations={"put_if_absent"})])
    log = JournalLog(faulty, "demo", policy=IMPATIENT)
    assert grow(log, 5).record.seq == 5
    assert log.read(6) is None


def test_the_head_is_found_in_three_requests_however_long_the_journal(store: Store) -> None:
    log = JournalLog(store, "demo")
    grow(log, 40)
    log.advise(40)
    counting = FaultyStore(store)
    head = JournalLog(counting, "demo").find_head()
    assert head
    assert head.record.seq == 40
    assert counting.calls.total() <= 3


@pytest.mark.parametrize("length", [1, 9, 10, 40])
def test_a_store_that_lists_folder_by_folder_is_asked_for_one_listing_too(store: Store, length: int) -> None:
    class Listed(FaultyStore):
        """Notes where listings begin."""

        def list(self, prefix: str = "", *, start_after: str = "") -> Iterator[ObjectInfo]:
            asked.append((prefix, start_after))
            return super().list(prefix, start_after=start_after)

    asked: list[tuple[str, str]] = []
    grow(JournalLog(store, "demo"), length)
    JournalLog(store, "demo").advise(length)
    head = JournalLog(Listed(store), "demo").find_head()
    assert head
    assert head.record.seq == length
    assert [_folders_passed_over(*each) for each in asked] == [[]]


@pytest.mark.parametrize(
    "pointer", [None, b"", b"garbage", b"[]", b'{"seq": 3}', b'{"seq": 999999}', b'{"seq": -1}', b'{"seq": true}']
)
def test_a_pointer_that_is_missing_stale_or_lies_changes_nothing(
    log: JournalLog, store: Store, pointer: bytes | None
) -> None:
    grow(log, 5)
    if pointer is not None:
        store.put(log.layout.head, pointer)
    head = log.find_head()
    assert head
    assert head.record.seq == 5


def test_an_empty_run_has_no_head(log: JournalLog) -> None:
    assert log.find_head() is None


def test_foreign_objects_in_the_journal_folder_are_no_records(log: JournalLog, store: Store) -> None:
    grow(log, 2)
    for name in ("zzz", "00000000000000000009.json.tmp", "9.json", "٣.json", "00000000000000000003.txt"):
        store.put(log.layout.journal + name, b"x")
    head = log.find_head()
    assert head
    assert head.record.seq == 2


def test_a_hole_or_a_changed_record_is_damage(log: JournalLog, store: Store) -> None:
    grow(log, 3)
    key = log.layout.record(2)
    original = store.get(key)
    store.put(key, seal({**json.loads(original), "time": "1999"}))
    with pytest.raises(DamagedError, match="does not follow"):
        list(log.read_all(up_to=3))
    store.delete([key])
    with pytest.raises(DamagedError, match="missing"):
        list(log.read_all(up_to=3))
    store.put(key, store.get(log.layout.record(3)))
    with pytest.raises(DamagedError, match="says that it is number 3"):
        log.read(2)


@pytest.mark.parametrize(
    ("name", "seq"),
    [
        ("00000000000000000001.json", 1),
        ("1.json", None),
        ("00000000000000000001", None),
        ("²0000000000000000001.json", None),
    ],
)
def test_seq_of(name: str, seq: int | None) -> None:
    assert seq_of(name) == seq
