"""The journal as a log: find its head, read records, append one.

Owns: the protocol of one append (put-if-absent, read-back, fencing). Does not own: what is appended.

Invariant: records are dense, create-once and never changed. An append succeeds if and only if the slot after the
last record that this writer knows holds this writer's ``write_id``; every other answer is an error or another try.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from artifactsync.errors import (
    AlreadyExistsError,
    ArtifactSyncError,
    DamagedError,
    NewerFormatError,
    ObjectNotFoundError,
    RunFencedError,
)
from artifactsync.journal.catalogue import Catalogue
from artifactsync.journal.index import Pack, RecordIndex, Slot
from artifactsync.journal.record import Kind, Record
from artifactsync.journal.untrusted_json import read_json
from artifactsync.journal.writer import WriterIdentity
from artifactsync.naming.layout import RunLayout
from artifactsync.stores.create_once import create_once

__all__ = ["JournalLog", "Slot", "SlotTakenError", "fenced", "is_removal", "read_catalogue", "seq_of"]

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from artifactsync.stores.protocol import Store
    from artifactsync.stores.retry import RetryPolicy

_HINT_DAMAGED = "something other than artifactsync removed or changed records; restore them from a backup of the bucket"
_READ_THREADS = 16  # records are below 100 KB: latency, not bandwidth, is what parallel reads hide


@dataclass(frozen=True)
class _Hint:
    """What ``head.json`` says; 0 where it says nothing."""

    seq: int
    copying_to: int


_Read = Slot | DamagedError | NewerFormatError | None  # what reading a record gave


class SlotTakenError(AlreadyExistsError):
    """Another writer's record is in the slot; ``slot`` is what lies there."""

    def __init__(self, message: str, *, slot: Slot, url: str | None = None) -> None:
        super().__init__(message, url=url)
        self.slot = slot


class JournalLog:
    """The records of one run on one store.

    Args:
        store: The remote.
        run_name: A valid run name.
        policy: How patient an append is while its outcome is unknown.
    """

    def __init__(self, store: Store, run_name: str, *, policy: RetryPolicy | None = None) -> None:
        self.store = store
        self.layout = RunLayout(run_name)
        self.index = RecordIndex(store, self.layout)
        self._policy = policy

    def read(self, seq: int) -> Slot | None:
        """Return record ``seq``, or None if there is none.

        Raises:
            DamagedError: the object is no record, or the record of another slot.
            NewerFormatError: written by a newer artifactsync.
        """
        key = self.layout.record(seq)
        try:
            data = self.store.get(key)
        except ObjectNotFoundError:
            return None
        url = f"{self.store.url}/{key}"
        record = Record.decode(data, url=url)
        if record.seq != seq:
            raise DamagedError(
                f"the journal record in slot {seq} says that it is number {record.seq}", hint=_HINT_DAMAGED, url=url
            )
        return Slot(record, hashlib.sha256(data).hexdigest())

    def find_head(self) -> Slot | None:
        """Return the newest record, or None if the run has no journal.

        Three requests however long the journal is: the advisory pointer, one listing from there on, the record.
        Without the pointer, or with one that lies, the listing takes one request for each 1,000 records.

        While a copy of the journal is arriving (``announce_copy``), nothing of it counts before all of it is there.
        """
        hint = self._read_hint()
        newest = self._newest_seq(hint)
        if newest < hint.copying_to:
            newest = hint.seq
        return self.read(newest) if newest else None

    def peek_head(self) -> Slot | None:
        """The newest record, as :meth:`find_head`, but without a listing where the advisory pointer is right.

        Right is a pointer to a record after which there is none: journals are dense. Three small reads; a pointer that
        is missing, behind, or lies costs what ``find_head`` does.
        """
        hint = self._read_hint()
        if hint.seq and not hint.copying_to:
            try:
                slot = self.read(hint.seq)
                if slot is not None and not self._is_taken(hint.seq + 1):
                    return slot
            except (DamagedError, NewerFormatError):  # there may be a newer one
                pass
        return self.find_head()

    def _is_taken(self, seq: int) -> bool:
        try:
            self.store.get(self.layout.record(seq), end=1)
        except ObjectNotFoundError:
            return False
        return True

    def newest_seq(self) -> int:
        """Number of the newest record that lies there, 0 if none does; counts those of a copy that is arriving."""
        return self._newest_seq(self._read_hint())

    def is_copy_arriving(self) -> bool:
        """Whether a copy of the journal to here has begun, and not all of its records are there."""
        hint = self._read_hint()
        return bool(hint.copying_to) and self._newest_seq(hint) < hint.copying_to

    def announce_copy(self, visible: int, up_to: int) -> None:
        """Let readers count no record after ``visible`` until record ``up_to`` is there."""
        self.store.put(self.layout.head, json.dumps({"seq": visible, "copying_to": up_to}).encode())

    def read_all(self, *, up_to: int, with_index: bool = True) -> Iterator[Slot]:
        """Yield records 1 … ``up_to`` in order, each checked against the one before.

        Args:
            up_to: Number of the last one.
            with_index: Read packs of records where there are any; each is used only if the record that follows it
                has its hash. Without, every record is read by itself, several at a time.

        Raises:
            DamagedError: a record is missing, or does not follow from the one before.
        """
        with ThreadPoolExecutor(_READ_THREADS, thread_name_prefix="artifactsync-journal") as pool:
            parts = self.index.covering(up_to) if with_index else range(1, up_to + 1)
            found = deque(zip(parts, pool.map(self._read_part, parts), strict=True))
            follower: _Read = None
            checked: deque[tuple[int, _Read]] = deque()
            while found:  # backwards, as the later record has the hash of the earlier one
                part, read = found.pop()
                if isinstance(part, int):
                    follower = read[0] if read else None
                    checked.appendleft((part, follower))
                    continue
                if not (read and _follows(follower, read[-1])):
                    read = list(pool.map(self._read_one, range(part.first, part.last + 1)))
                checked.extendleft(reversed(list(enumerate(read, start=part.first))))
                follower = read[0]
        previous: Slot | None = None
        while checked:
            seq, slot = checked.popleft()
            url = f"{self.store.url}/{self.layout.record(seq)}"
            if isinstance(slot, ArtifactSyncError):
                raise slot
            if slot is None:
                raise DamagedError(
                    f"journal record {seq} is missing although {up_to} exists", hint=_HINT_DAMAGED, url=url
                )
            if slot.record.prev_sha256 != (previous.sha256 if previous else None):
                raise DamagedError(
                    f"journal record {seq} does not follow from record {seq - 1}", hint=_HINT_DAMAGED, url=url
                )
            previous = slot
            yield slot

    def bad_packs(self) -> list[Pack]:
        """Packs that are not what they should be. They harm nobody: the records are read in their place."""
        return self.audit(with_index=True)[1]

    def audit(self, *, with_index: bool = False) -> tuple[Catalogue, list[Pack]]:
        """Read the whole journal, and compare every pack with it: what it says, and the packs that differ.

        Args:
            with_index: As for :meth:`read_all`; without, every record is read as it lies there.

        Raises:
            DamagedError: as for :meth:`read_all`.
        """
        packs = self.index.packs()  # first: each has its records, and those behind them, by now
        head = self.find_head()
        if head is None or is_removal(head.record):
            return Catalogue(attempt=head.record.attempt, seq=head.record.seq) if head else Catalogue(), []
        slots = list(self.read_all(up_to=head.record.seq, with_index=with_index))
        return self.fold(slots), self.index.differing(packs, [slot.sha256 for slot in slots])

    def append(
        self,
        after: Slot | None,
        *,
        kind: Kind,
        attempt: int,
        writer: WriterIdentity,
        body: dict[str, Any],
        totals: dict[str, Any],
    ) -> Slot:
        """Append a record directly after ``after``.

        A lost answer, a time-out, 409 or 412 mean that the outcome is not known; the slot is read back and the
        ``write_id`` decides. Nothing is ever cleaned up here.

        Raises:
            SlotTakenError: the slot holds another writer's record; it comes with the error.
        """
        seq = after.record.seq + 1 if after else 1
        record = Record(
            seq=seq,
            attempt=attempt,
            kind=kind,
            write_id=uuid.uuid4().hex,
            writer=writer.to_json(),
            prev_sha256=after.sha256 if after else None,
            previous_commit=_previous_commit(after),
            totals=totals,
            latest_commit=_latest_commit(after, totals.get("latest")),
            time=datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
            body=body,
        )
        data = record.encode()
        key = self.layout.record(seq)
        try:
            create_once(self.store, key, data, policy=self._policy)
        except AlreadyExistsError as error:
            other = self.read(seq)
            if other is None:
                raise DamagedError(
                    f"journal record {seq} was there and is gone: something deletes records of this run",
                    hint=_HINT_DAMAGED,
                    url=f"{self.store.url}/{key}",
                ) from error
            if other.record.write_id != record.write_id:
                raise SlotTakenError(error.message, slot=other, url=error.url) from error
        return Slot(record, hashlib.sha256(data).hexdigest())

    def fold(self, slots: Iterable[Slot]) -> Catalogue:
        """What records mean together."""
        return Catalogue.from_records(
            (slot.record for slot in slots),
            run_name=self.layout.run_name,
            url=f"{self.store.url}/{self.layout.journal}",
        )

    def read_catalogue(self) -> Catalogue:
        """Read the whole journal. One of a run that is being removed has nothing in it any more."""
        head = self.find_head()
        if head and is_removal(head.record):
            return Catalogue(attempt=head.record.attempt, seq=head.record.seq)
        return self.fold(self.read_all(up_to=head.record.seq) if head else ())

    def advise(self, seq: int, *, with_index: bool = True) -> None:
        """Write the advisory pointer to a recent record, and what is due of the index.

        Failing is harmless: readers list, and read record by record, instead.
        """
        try:
            self.store.put(self.layout.head, json.dumps({"seq": seq}).encode())
        except ArtifactSyncError:
            return
        if with_index:
            self.index.keep(seq)

    def _read_part(self, part: Pack | int) -> Sequence[_Read]:
        return [self._read_one(part)] if isinstance(part, int) else self.index.read(part) or []

    def _read_one(self, seq: int) -> _Read:
        try:
            return self.read(seq)
        except (DamagedError, NewerFormatError) as error:  # told when it is its turn
            return error

    def _newest_seq(self, hint: _Hint) -> int:
        # With the slash, which sorts behind ".json", a store that lists folder by folder has passed no folder over, and
        # need not be asked for those that it might have: two requests fewer.
        before = self.layout.record(hint.seq - 1).removesuffix(".json") + "/" if hint.seq else ""
        newest = max(self._list_seqs(start_after=before), default=0)
        return newest or (max(self._list_seqs(start_after=""), default=0) if hint.seq else 0)

    def _read_hint(self) -> _Hint:
        try:
            fields = read_json(self.store.get(self.layout.head))
            seq, copying_to = fields["seq"], fields.get("copying_to", 0)
        except (ObjectNotFoundError, ValueError, KeyError, TypeError, AttributeError):
            return _Hint(0, 0)
        return _Hint(*(n if isinstance(n, int) and not isinstance(n, bool) and n > 0 else 0 for n in (seq, copying_to)))

    def _list_seqs(self, *, start_after: str) -> Sequence[int]:
        prefix = self.layout.journal
        names = (info.key[len(prefix) :] for info in self.store.list(prefix, start_after=start_after))
        numbers = (seq_of(name) for name in names)
        return [seq for seq in numbers if seq is not None]


def _follows(later: _Read, earlier: _Read) -> bool:
    return isinstance(later, Slot) and isinstance(earlier, Slot) and later.record.prev_sha256 == earlier.sha256


def seq_of(name: str) -> int | None:
    """The number in a record's object name; None for any other object that lies in the journal's folder."""
    stem = name.removesuffix(".json")
    is_record = name.endswith(".json") and stem.isascii() and stem.isdigit()
    return int(stem) if is_record and name == RunLayout("x").record(int(stem)).rpartition("/")[2] else None


def read_catalogue(log: JournalLog) -> Catalogue:
    """Read the whole journal of a run."""
    return log.read_catalogue()


def is_removal(record: Record) -> bool:
    """Whether a record says that the whole run is being removed: the last record that the run ever gets."""
    return record.kind is Kind.RETIRE and record.body.get("removes_run") is True


def fenced(run_name: str, owner: Record, *, url: str) -> RunFencedError:
    """The error for a writer that finds a later attempt's record in its way."""
    who = WriterIdentity.from_json(owner.writer).describe()
    return RunFencedError(
        f"run {run_name!r} now belongs to attempt {owner.attempt} ({who}, since {owner.time})",
        hint="stop this process: nothing it writes from now on becomes part of the run",
        url=url,
    )


def _previous_commit(after: Slot | None) -> int | None:
    if after is None:
        return None
    return after.record.seq if after.record.kind is Kind.COMMIT else after.record.previous_commit


def _latest_commit(after: Slot | None, latest: Any) -> dict[str, Any] | None:
    """The commit number ``latest`` as a later record repeats it, if the record before it shows it."""
    if after is None or latest is None:
        return None
    record = after.record
    if record.kind is Kind.COMMIT and record.seq == latest:
        return {"seq": record.seq, "attempt": record.attempt, "time": record.time, "body": record.body}
    carried = record.latest_commit
    return carried if carried and carried.get("seq") == latest else None
