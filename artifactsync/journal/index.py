"""The index: many records of the journal in one object, so that a long journal is read in few requests.

A pack holds the very bytes of ``BASE`` (100) records, ten packs are merged into one of 1,000, ten of those into one of
10,000. As each record names the sha256 of the one before, a pack is checked against the record that follows it: nobody
can put anything into a pack that is not in the journal. So there is nothing to trust in it.

Owns: packs, how they are checked, when they are written. Does not own: records (``record``), the chain at large
(``log``).

Invariant: what is read from a pack is, byte for byte, what the records are whose chain the following record seals. A
pack that is missing, cut, stale, of another run, too long or forged is not used; the records are read in its place.
"""

from __future__ import annotations

import hashlib
import logging
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from artifactsync.errors import ArtifactSyncError, ObjectNotFoundError
from artifactsync.journal.record import Record
from artifactsync.naming.layout import SEQ_DIGITS, RunLayout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from artifactsync.stores.protocol import Store

BASE = 100
"""Records in the smallest pack: so many, at most, are read one by one behind the last pack."""
FAN = 10
"""Packs that are merged into the next larger one: each record is written into three packs at most."""
LEVELS = 3
"""Sizes of packs: 100, 1,000 and 10,000 records."""
MAX_BYTES = 16 * 1024 * 1024
"""No longer pack is written, and none is read: ten thousand records of one file each have about 12 MB."""

_THREADS = 16
_NAME = re.compile(rf"([0-9]{{{SEQ_DIGITS}}})-([0-9]{{{SEQ_DIGITS}}})\.jsonl")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Slot:
    """A record and the sha256 of the very bytes it was read from or written as."""

    record: Record
    sha256: str


@dataclass(frozen=True)
class Pack:
    """Where a pack is said to be; nothing is known of what is in it."""

    first: int
    """Number of its first record."""
    last: int
    """Number of its last record."""

    def key(self, layout: RunLayout) -> str:
        """Its key."""
        return f"{layout.index}{self.first:0{SEQ_DIGITS}d}-{self.last:0{SEQ_DIGITS}d}.jsonl"

    def covers(self, other: Pack) -> bool:
        """Whether all records of ``other`` are in this one."""
        return self.first <= other.first and other.last <= self.last


class RecordIndex:
    """The packs of one run.

    Args:
        store: The remote.
        layout: The run's keys.
    """

    def __init__(self, store: Store, layout: RunLayout) -> None:
        self._store, self._layout = store, layout
        self._kept_up_to = 0

    def packs(self) -> dict[Pack, int]:
        """What lies in the index's folder under the name of a pack, with its length in bytes."""
        prefix = self._layout.index
        found = ((_pack_of(info.key[len(prefix) :]), info.size_bytes) for info in self._store.list(prefix))
        return {pack: size_bytes for pack, size_bytes in found if pack is not None}

    def covering(self, up_to: int) -> list[Pack | int]:
        """Packs and single records that together are records 1 … ``up_to``, in order.

        The last record is never from a pack: it is the one that the packs are checked against.
        """
        largest: dict[int, Pack] = {}
        for pack, size_bytes in self.packs().items() if up_to > BASE else ():
            if size_bytes > MAX_BYTES:
                continue
            if pack.last < up_to and (pack.first not in largest or pack.last > largest[pack.first].last):
                largest[pack.first] = pack
        parts: list[Pack | int] = []
        seq = 1
        while seq <= up_to:
            part = largest.get(seq)
            parts.append(part or seq)
            seq = part.last + 1 if part else seq + 1
        return parts

    def read(self, pack: Pack) -> list[Slot] | None:
        """The records of a pack, chained among themselves; None if it is not such a pack, or is not there.

        They are the journal's if and only if the record that follows the last one has its hash.
        """
        data = self._fetch(pack)
        return _unpack(data, pack) if data is not None and len(data) <= MAX_BYTES else None

    def differing(self, packs: Iterable[Pack], hashes: Sequence[str]) -> list[Pack]:
        """Those packs that are not the records whose sha256 are given, the first one's first; in order of their names.

        Every pack that lies there is looked at, also those that a larger one supersedes or no record follows.
        """
        there = sorted(packs, key=lambda pack: (pack.first, pack.last))
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="artifactsync-index") as pool:
            data = pool.map(self._fetch, there)
            return [
                pack
                for pack, found in zip(there, data, strict=True)
                if found is not None and not _is(pack, found, hashes)
            ]

    def take_along(self, other: RecordIndex, hashes: Sequence[str]) -> None:
        """Bring the good packs of the same journal from another remote, the largest of each span. Never fails.

        Args:
            other: Where they are.
            hashes: sha256 of every record that is here, in order.
        """
        try:
            present = self.packs()
            for pack in other.covering(len(hashes)):
                data = other._fetch(pack) if isinstance(pack, Pack) and pack not in present else None
                if isinstance(pack, Pack) and data is not None and _is(pack, data, hashes):
                    self._store.put(pack.key(self._layout), data)
        except ArtifactSyncError as error:
            _log.debug("the index of %s was not copied: %s", self._layout.run_name, error)

    def keep(self, seq: int) -> None:
        """Write the packs that are due when record ``seq`` is there, one hundred records at most. Never fails.

        A journal that has no packs yet, of an older version or after a failure, gets one with each call.
        """
        if seq - self._kept_up_to < BASE:
            return
        boundary = seq // BASE * BASE
        try:
            if not self._write_due(boundary):
                self._kept_up_to = boundary
        except ArtifactSyncError as error:
            _log.debug("the index of %s was not written: %s", self._layout.run_name, error)

    def remove_superseded(self, bad: Iterable[Pack] = ()) -> int:
        """Delete packs whose records are all in a larger one, and those that were found to be wrong.

        A reader that was about to read one reads the records in its place.

        Returns:
            How many were deleted.
        """
        packs, bad = self.packs(), set(bad)
        doomed = [
            pack
            for pack in packs
            if pack in bad or any(other != pack and other not in bad and other.covers(pack) for other in packs)
        ]
        if doomed:
            self._store.delete([pack.key(self._layout) for pack in doomed])
        return len(doomed)

    def _fetch(self, pack: Pack) -> bytes | None:
        """What lies there, cut if it is too long; None if nothing does."""
        try:
            return self._store.get(pack.key(self._layout), end=MAX_BYTES + 1)
        except ObjectNotFoundError:
            return None

    def _write_due(self, boundary: int) -> bool:
        """Write at most one pack of records, and what can be merged; whether more is to be done."""
        packs = self.packs()
        missing = [pack for pack in _grid(BASE, boundary) if not any(there.covers(pack) for there in packs)]
        if missing:
            packs |= self._write(missing[-1], [range(missing[-1].first, missing[-1].last + 1)])
        for size in (BASE * FAN**level for level in range(LEVELS - 1)):
            for merged in _grid(size * FAN, boundary):
                pieces = [Pack(first, first + size - 1) for first in range(merged.first, merged.last, size)]
                if any(there.covers(merged) for there in packs) or any(piece not in packs for piece in pieces):
                    continue
                if sum(packs[piece] for piece in pieces) <= MAX_BYTES:
                    packs |= self._write(merged, pieces)
        return len(missing) > 1

    def _write(self, pack: Pack, pieces: Sequence[Pack | range]) -> dict[Pack, int]:
        """Put a pack together from smaller ones, or from records; nothing is written that would not be used."""
        keys = [
            key
            for piece in pieces
            for key in (
                [piece.key(self._layout)] if isinstance(piece, Pack) else [self._layout.record(seq) for seq in piece]
            )
        ]

        def get(key: str) -> bytes:
            return self._store.get(key, end=MAX_BYTES + 1)

        data = b"".join(in_parallel(get, keys))
        if len(data) > MAX_BYTES or _unpack(data, pack) is None:
            _log.debug("records %d to %d of %s make no pack", pack.first, pack.last, self._layout.run_name)
            return {}
        self._store.put(pack.key(self._layout), data)
        return {pack: len(data)}


def in_parallel(call: Callable[[str], bytes], keys: Sequence[str]) -> list[bytes]:
    """``call`` for each key, several at a time, in order."""
    with ThreadPoolExecutor(min(_THREADS, max(1, len(keys))), thread_name_prefix="artifactsync-index") as pool:
        return list(pool.map(call, keys))


def _is(pack: Pack, data: bytes, hashes: Sequence[str]) -> bool:
    """Whether the bytes are the records of the pack, given the sha256 of each record of the journal."""
    lines = data.splitlines(keepends=True) if len(data) <= MAX_BYTES else []
    wanted = list(hashes[pack.first - 1 : pack.last])
    is_whole = len(wanted) == pack.last - pack.first + 1 == len(lines)
    return is_whole and [hashlib.sha256(line).hexdigest() for line in lines] == wanted


def _unpack(data: bytes, pack: Pack) -> list[Slot] | None:
    """The records of a pack, if they are the right ones and each follows from the one before."""
    lines = [line + b"\n" for line in data.split(b"\n")]
    if len(lines) != pack.last - pack.first + 2 or lines.pop() != b"\n":
        return None
    slots: list[Slot] = []
    for seq, line in enumerate(lines, start=pack.first):
        try:
            record = Record.decode(line, url="")
        except ArtifactSyncError:  # also of a newer format: the record itself is read, and says so
            return None
        if record.seq != seq or (slots and record.prev_sha256 != slots[-1].sha256):
            return None
        slots.append(Slot(record, hashlib.sha256(line).hexdigest()))
    return slots


def _grid(size: int, up_to: int) -> list[Pack]:
    return [Pack(first, first + size - 1) for first in range(1, up_to - size + 2, size)]


def _pack_of(name: str) -> Pack | None:
    """A pack by its name; None for any other object, and for spans that nobody writes."""
    found = _NAME.fullmatch(name)
    if not found:
        return None
    first, last = int(found[1]), int(found[2])
    sizes = [BASE * FAN**level for level in range(LEVELS)]
    size = last - first + 1
    return Pack(first, last) if size in sizes and (first - 1) % size == 0 else None
