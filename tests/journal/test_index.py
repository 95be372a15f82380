from __future__ import annotations

import hashlib
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from artifactsync import Run
from artifactsync.errors import DamagedError, NewerFormatError, TransientStoreError
from artifactsync.journal import index as index_module
from artifactsync.journal.index import Pack
from artifactsync.journal.log import JournalLog, Slot, SlotTakenError
from artifactsync.journal.record import FORMAT, Kind, Record, seal
from artifactsync.journal.retention import RetentionPolicy
from artifactsync.journal.untrusted_json import read_json
from artifactsync.journal.writer import WriterIdentity
from artifactsync.testing import Fault, FaultyStore
from tests.journal.conftest import IMPATIENT

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from artifactsync.stores.protocol import Store

ME = WriterIdentity.of_this_process()
PACKED = 23  # two packs of nine, which are merged in threes, and a tail


@pytest.fixture(autouse=True)
def _small_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "BASE", 3)
    monkeypatch.setattr(index_module, "FAN", 3)


def grow(log: JournalLog, count: int, after: Slot | None = None, *, advise: bool = True) -> Slot:
    for _ in range(count):
        after = log.append(after, kind=Kind.CLAIM, attempt=1, writer=ME, body={}, totals={})
        if advise:
            log.advise(after.record.seq)
    assert after
    return after


def plain(log: JournalLog, up_to: int) -> list[Slot]:
    return list(log.read_all(up_to=up_to, with_index=False))


def names(store: Store) -> list[str]:
    return [info.key.rpartition("/")[2].replace("0" * 17, "") for info in store.list("demo/.artifactsync/index/")]


def test_the_format_is_the_records_themselves_one_line_each(log: JournalLog, store: Store) -> None:
    grow(log, 3)
    assert [info.key for info in store.list(log.layout.index)] == [
        "demo/.artifactsync/index/00000000000000000001-00000000000000000003.jsonl"
    ]
    records = b"".join(store.get(log.layout.record(seq)) for seq in (1, 2, 3))
    assert store.get(Pack(1, 3).key(log.layout)) == records
    assert records.count(b"\n") == 3


def test_a_long_journal_is_read_in_few_requests(log: JournalLog, store: Store) -> None:
    grow(log, PACKED)
    assert Pack(1, 9) in log.index.packs()
    assert Pack(10, 18) in log.index.packs()
    counting = FaultyStore(store)
    read = list(JournalLog(counting, "demo").read_all(up_to=PACKED))
    assert read == plain(log, PACKED)
    assert counting.calls["list"] == 1
    assert counting.calls["get"] == 3 + 2  # two packs of nine, one of three, and records 22 and 23


@pytest.mark.parametrize("up_to", range(1, PACKED + 1))
def test_every_journal_reads_as_without_an_index(log: JournalLog, up_to: int) -> None:
    grow(log, up_to)
    assert list(log.read_all(up_to=up_to)) == plain(log, up_to)
    assert not log.bad_packs()


def forge(data: bytes) -> bytes:
    """A pack whose chain holds, with another history: the last record, too, is another."""
    lines, previous = [], None
    for line in data.splitlines():
        fields = {**read_json(line), "time": "1999", "prev_sha256": previous}
        lines.append(seal(fields))
        previous = hashlib.sha256(lines[-1]).hexdigest()
    return b"".join(lines)


def newer(data: bytes) -> bytes:
    return b"".join(seal({**read_json(line), "format": FORMAT + 1}) for line in data.splitlines())


WRONG: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "garbage": lambda _: b"\xff\x00 no records",
    "cut": lambda data: data[:-10],
    "a line short": lambda data: b"".join(data.splitlines(keepends=True)[:-1]),
    "a line more": lambda data: data + data.splitlines(keepends=True)[-1],
    "without its end": lambda data: data[:-1],
    "a flipped bit": lambda data: data[:50] + bytes([data[50] ^ 1]) + data[51:],
    "another order": lambda data: b"".join(reversed(data.splitlines(keepends=True))),
    "a forged history": forge,
    "a newer format": newer,
    "nested without end": lambda _: b"[" * 100_000 + b"\n",
    "too long": lambda data: data + b" " * index_module.MAX_BYTES,
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("pack", [Pack(1, 9), Pack(10, 18), Pack(19, 21)], ids=str)
def test_a_wrong_pack_changes_nothing(log: JournalLog, store: Store, wrong: str, pack: Pack) -> None:
    grow(log, PACKED)
    store.put(pack.key(log.layout), WRONG[wrong](store.get(pack.key(log.layout))))
    assert list(log.read_all(up_to=PACKED)) == plain(log, PACKED)
    assert log.bad_packs() == [pack]
    grow(log, 4, plain(log, PACKED)[-1])
    assert list(log.read_all(up_to=PACKED + 4)) == plain(log, PACKED + 4)


def test_the_packs_of_another_run_change_nothing(log: JournalLog, store: Store) -> None:
    grow(log, PACKED)
    other = JournalLog(store, "other", policy=IMPATIENT)
    grow(other, 9 * 9 + 1)  # longer too
    for info in store.list(other.layout.index):
        store.put(log.layout.index + info.key[len(other.layout.index) :], store.get(info.key))
    assert list(log.read_all(up_to=PACKED)) == plain(log, PACKED)
    assert set(log.bad_packs()) == set(log.index.packs())


def test_packs_that_are_gone_between_listing_and_reading_change_nothing(log: JournalLog, store: Store) -> None:
    grow(log, PACKED)

    def pruned(call: object) -> None:
        if getattr(call, "operation", "") == "get":
            store.delete([info.key for info in store.list(log.layout.index)])

    late = JournalLog(FaultyStore(store, on_call=pruned), "demo")
    assert list(late.read_all(up_to=PACKED)) == plain(log, PACKED)


@pytest.mark.parametrize("name", ["x", "1-9.jsonl", f"{2:020d}-{10:020d}.jsonl", f"{1:020d}-{99:020d}.jsonl"])
def test_other_objects_in_its_folder_are_no_packs(log: JournalLog, store: Store, name: str) -> None:
    grow(log, PACKED)
    store.put(log.layout.index + name, b"x")
    assert list(log.read_all(up_to=PACKED)) == plain(log, PACKED)
    assert log.bad_packs() == []


def test_a_pack_that_no_record_follows_yet_is_looked_at_too(log: JournalLog, store: Store) -> None:
    """Else one that claims more than there is would keep the good ones from being written."""
    last = grow(log, 9)
    ahead, at_the_end = Pack(1, 27), Pack(7, 9)
    store.put(ahead.key(log.layout), b"".join(store.get(log.layout.record(seq)) for seq in range(1, 10)))
    store.put(at_the_end.key(log.layout), b"x")
    assert log.bad_packs() == [ahead, at_the_end]
    log.index.remove_superseded(log.bad_packs())
    grow(JournalLog(store, "demo", policy=IMPATIENT), 19, last)
    assert log.bad_packs() == []
    assert ahead in log.index.packs()


class Crowd:
    """Everybody who touches the packs of one run, at the same time, until ``over``."""

    def __init__(self, store: Store) -> None:
        self.store, self.over = store, threading.Event()

    def log(self) -> JournalLog:
        return JournalLog(self.store, "demo", policy=IMPATIENT)

    def write(self, number: int) -> None:
        mine, written = self.log(), 0
        after = mine.find_head()
        while written < 30:
            try:
                after = mine.append(after, kind=Kind.CLAIM, attempt=number, writer=ME, body={}, totals={})
                written += 1
            except SlotTakenError as error:
                after = error.slot
            mine.advise(after.record.seq)

    def prune(self) -> None:
        mine = self.log()
        while not self.over.is_set():
            mine.index.remove_superseded(mine.bad_packs())

    def spoil(self) -> None:
        mine, draw = self.log(), random.Random(9)
        while not self.over.is_set():
            for pack in mine.index.packs():
                if draw.random() < 0.3:
                    self.store.put(pack.key(mine.layout), draw.choice([b"", b"x\n" * 3, b"{}\n" * 9]))

    def read(self) -> int:
        mine, reads = self.log(), 0
        while not self.over.is_set():
            up_to = mine.newest_seq()
            assert list(mine.read_all(up_to=up_to)) == plain(mine, up_to)
            reads += 1
        return reads


def test_writers_a_prune_and_a_vandal_at_the_same_packs(store: Store) -> None:
    """Whoever writes packs when, and whatever becomes of them: each reader reads the journal."""
    crowd = Crowd(store)
    with ThreadPoolExecutor(6) as threads:
        reader, *beside = [threads.submit(role) for role in (crowd.read, crowd.prune, crowd.spoil)]
        try:
            for writer in [threads.submit(crowd.write, number) for number in (1, 2, 3)]:
                writer.result(60)
        finally:
            crowd.over.set()
        for role in beside:
            role.result(60)
        assert reader.result(60)
    log = crowd.log()
    assert log.newest_seq() == 90
    assert list(log.read_all(up_to=90)) == plain(log, 90)
    log.index.remove_superseded(log.bad_packs())
    grow(crowd.log(), 60, log.find_head())
    assert log.bad_packs() == []
    assert Pack(1, 27) in log.index.packs()


def test_verify_names_a_wrong_pack_and_a_prune_removes_it(store: Store, tmp_path: Path) -> None:
    with Run("demo", remote=store, local_root=tmp_path) as run:
        for step in range(1, 12):
            path = run.local_dir / f"{step}.pt"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"%d" % step)
            run.save_files([path], step=step).result(30)
    log = JournalLog(store, "demo")
    key = Pack(1, 9).key(log.layout)
    good = store.get(key)
    store.put(key, good[:-5])
    reader = Run("demo", remote=store, read_only=True)
    report = reader.verify(deep=True)
    assert report.ok  # nothing is lost by it
    assert report.to_json()["wrong_packs"] == [key]
    assert len(reader.checkpoints()) == 11
    reader.prune(RetentionPolicy(keep_last=5), orphans_age_s=0)
    assert reader.verify().wrong_packs == ()
    assert Pack(1, 9) not in log.index.packs()
    with Run("demo", remote=store, local_root=tmp_path):
        pass
    assert store.get(key) == good  # its next writer makes it anew


def test_the_packs_that_follow_the_journal_are_not_read(log: JournalLog, store: Store) -> None:
    """A record is never taken from a pack that no record follows."""
    grow(log, 9)
    pack = Pack(1, 9).key(log.layout)
    store.put(pack, forge(store.get(pack)))
    assert list(log.read_all(up_to=9)) == plain(log, 9)


def test_a_damaged_record_behind_the_packs_is_damage_as_ever(log: JournalLog, store: Store) -> None:
    grow(log, PACKED)
    key = log.layout.record(22)
    original = store.get(key)
    for data, error in ((b"x", DamagedError), (seal({**read_json(original), "format": FORMAT + 1}), NewerFormatError)):
        store.put(key, data)
        with pytest.raises(error):
            list(log.read_all(up_to=PACKED))
    store.delete([key])
    with pytest.raises(DamagedError, match="22 is missing"):
        list(log.read_all(up_to=PACKED))


def test_a_record_that_is_damaged_or_gone_is_read_from_its_pack(log: JournalLog, store: Store) -> None:
    grow(log, PACKED)
    whole = plain(log, PACKED)
    store.delete([log.layout.record(5)])
    assert list(log.read_all(up_to=PACKED)) == whole
    with pytest.raises(DamagedError, match="5 is missing"):  # as `verify` reads
        plain(log, PACKED)


def test_no_pack_is_made_of_a_damaged_journal(log: JournalLog, store: Store) -> None:
    last = grow(log, 4, advise=False)
    store.put(log.layout.record(2), seal({**read_json(store.get(log.layout.record(2))), "time": "1999"}))
    grow(log, 1, last)
    assert names(store) == []


@pytest.mark.parametrize("fault", ["lost-response", "transient"])
def test_an_index_that_cannot_be_written_harms_nobody(store: Store, fault: str) -> None:
    faulty = FaultyStore(store, [Fault(kind=fault, operations={"put"})])  # type: ignore[arg-type]
    log = JournalLog(faulty, "demo", policy=IMPATIENT)
    grow(log, PACKED)
    assert list(log.read_all(up_to=PACKED)) == plain(log, PACKED)


def test_a_journal_without_an_index_gets_one_pack_by_pack(log: JournalLog, store: Store) -> None:
    last = grow(log, 19, advise=False)
    assert names(store) == []
    fresh = JournalLog(store, "demo", policy=IMPATIENT)
    counting = []
    for _ in range(12):
        last = grow(fresh, 1, last)
        counting.append(len(names(store)))
    assert counting == sorted(counting)
    assert Pack(1, 9) in log.index.packs()
    assert list(log.read_all(up_to=31)) == plain(log, 31)


def test_a_process_that_dies_between_a_record_and_its_pack_leaves_it_to_the_next(log: JournalLog, store: Store) -> None:
    def die(call: object) -> None:
        if getattr(call, "operation", "") == "put" and "/index/" in getattr(call, "key", ""):
            raise TransientStoreError("gone", url="x")

    dying = JournalLog(FaultyStore(store, on_call=die), "demo", policy=IMPATIENT)
    last = grow(dying, 3)
    assert names(store) == []
    grow(JournalLog(store, "demo"), 1, last)
    assert log.index.packs().keys() == {Pack(1, 3)}


def test_superseded_and_wrong_packs_are_removed(log: JournalLog, store: Store) -> None:
    grow(log, PACKED)
    store.put(Pack(19, 21).key(log.layout), b"x")
    assert log.index.remove_superseded(log.bad_packs()) == 7
    assert log.index.packs().keys() == {Pack(1, 9), Pack(10, 18)}
    assert log.index.remove_superseded() == 0
    store.put(Pack(1, 3).key(log.layout), b"")
    # A pack that is known to be wrong supersedes nothing.
    log.index.remove_superseded({Pack(1, 9)})
    assert log.index.packs().keys() == {Pack(1, 3), Pack(10, 18)}


def test_too_large_packs_are_neither_written_nor_merged(
    log: JournalLog, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_module, "MAX_BYTES", 4 * len(Record.encode(grow(log, 1).record)))
    grow(log, 10, log.find_head())
    assert log.index.packs().keys() == {Pack(1, 3), Pack(4, 6), Pack(7, 9)}
    assert list(log.read_all(up_to=11)) == plain(log, 11)
