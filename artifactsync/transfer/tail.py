"""A growing file on its way, piece by piece: only what is new since the last time is sent.

Owns: what a segment is called, how segments form chains, and ``Tail``, which sends them. Does not own: who reads them,
and when the whole file takes their place (``journal.tails``); when a push runs (``queue``).

Invariants: a segment is sent only after the one before it is durable. Its name says which bytes it holds (their place,
their sha256) and which history it continues (``after``, which stands for every byte before it), so a listing alone
tells what belongs together, and bytes of two histories are never mixed.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from artifactsync.errors import FileChangedError, TransientStoreError
from artifactsync.transfer.hashing import READ_BYTES, open_file
from artifactsync.transfer.upload import UploadedFile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from artifactsync.naming.layout import RunLayout
    from artifactsync.stores.protocol import ObjectInfo, Store

SEGMENT_BYTES = 8 * 1024 * 1024
"""Longest segment, and what they are aligned to: it is held in memory while it is sent, and fetched as one part."""

ROOT = "0" * 16
"""What the first segment of a file comes after."""

_NAME = re.compile(r"([0-9]{20})-([0-9]{20})-([0-9a-f]{16})-([0-9a-f]{64})")
_SEAL = re.compile(r"~whole-([0-9]{20})-([0-9a-f]{64})")
_FINGER_BYTES = 64 * 1024  # read again before each push, at both ends of what was sent


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A piece of one history of a growing file."""

    path: str
    """The file, below the run's folder. Hostile input where it came from a listing."""
    generation: tuple[int, int]
    """The attempt, and which of its histories of the file."""
    start: int
    """Place of its first byte."""
    end: int
    """Place after its last byte; ``start`` for an empty one, which says that the file ends here."""
    after: str
    """The ``link`` of the segment before it, ``ROOT`` for the first."""
    sha256: str
    """Of its own bytes."""

    @property
    def link(self) -> str:
        """What stands for this segment and everything before it."""
        return hashlib.sha256(f"{self.after}-{self.start}-{self.end}-{self.sha256}".encode()).hexdigest()[: len(ROOT)]

    @property
    def name(self) -> str:
        """The last part of its key."""
        return f"{self.start:020d}-{self.end:020d}-{self.after}-{self.sha256}"

    def key(self, layout: RunLayout) -> str:
        """Its key below the store's root."""
        return layout.tail(self.path, self.generation, self.name)


@dataclass(frozen=True, kw_only=True)
class Seal:
    """Says that the plain object holds a generation up to a place, so that segments up to there are not needed."""

    path: str
    """The file, below the run's folder."""
    generation: tuple[int, int]
    """The newest generation that the plain object holds."""
    size_bytes: int
    """Length of the plain object."""
    sha256: str
    """Of the plain object."""

    @property
    def name(self) -> str:
        """The last part of its key; listed after every segment of its generation."""
        return f"~whole-{self.size_bytes:020d}-{self.sha256}"

    def key(self, layout: RunLayout) -> str:
        """Its key below the store's root."""
        return layout.tail(self.path, self.generation, self.name)


def read_name(layout: RunLayout, info: ObjectInfo) -> Segment | Seal | None:
    """What an object below ``layout.tails`` is; None if it is neither, or has not the length that it should have."""
    parts = layout.tail_of(info.key)
    if parts is None:
        return None
    path, generation, name = parts
    if (seal := _SEAL.fullmatch(name)) is not None:
        return Seal(path=path, generation=generation, size_bytes=int(seal[1]), sha256=seal[2])
    if (found := _NAME.fullmatch(name)) is None:
        return None
    start, end = int(found[1]), int(found[2])
    if not 0 <= end - start == info.size_bytes <= SEGMENT_BYTES:
        return None
    return Segment(path=path, generation=generation, start=start, end=end, after=found[3], sha256=found[4])


def chain_of(segments: Iterable[Segment], *, newer_than: tuple[tuple[int, int], int] | None = None) -> list[Segment]:
    """The newest history that is there without a gap, from the first byte on, in order.

    Args:
        segments: Those of one file.
        newer_than: A generation and a place in it; a history that ends there or before is passed over.

    Returns:
        Segments that follow each other, empty if there is no such history.
    """
    by_link = _reachable(segments)
    ends = [s for s in by_link.values() if newer_than is None or (s.generation, s.end) > newer_than]
    tip = max(ends, key=lambda s: (s.generation, s.end, s.start), default=None)
    return _back_from(tip, by_link) if tip else []


def chains_over(segments: Iterable[Segment], size_bytes: int) -> list[list[Segment]]:
    """One history for each way in which the first ``size_bytes`` may read, the newest first, without a gap."""
    by_link = _reachable(segments)
    ends = sorted((s for s in by_link.values() if s.start < size_bytes <= s.end), key=lambda s: s.generation)
    return [_back_from(tip, by_link) for tip in reversed(ends)]


def _back_from(tip: Segment | None, by_link: Mapping[str, Segment]) -> list[Segment]:
    chain: list[Segment] = []
    while tip is not None:
        chain.append(tip)
        tip = by_link.get(tip.after)
    return chain[::-1]


def _reachable(segments: Iterable[Segment]) -> dict[str, Segment]:
    """By link: every segment that has all the bytes before it."""
    followers = _by_predecessor(segments)
    by_link: dict[str, Segment] = {}
    waiting = [(0, ROOT)]
    while waiting:
        place = waiting.pop()
        for segment in followers.get(place, ()):
            known = by_link.get(segment.link)
            if known is None or known.generation < segment.generation:
                by_link[segment.link] = segment
            if known is None:
                waiting.append((segment.end, segment.link))
    return by_link


def _by_predecessor(segments: Iterable[Segment]) -> dict[tuple[int, str], list[Segment]]:
    followers: dict[tuple[int, str], list[Segment]] = defaultdict(list)
    for segment in segments:
        followers[segment.start, segment.after].append(segment)
    return followers


class Tail:
    """Sends what is new of one growing file. One ``send`` at a time.

    A file that was cut or rewritten since is found out by its length, by what is at both ends of what was sent, and by
    being another file; then a new generation begins after the longest piece that is still the same.

    Args:
        layout: The run's keys.
        path: Where the file is, below the run's folder.
        attempt: The attempt that writes; its segments are its own.
    """

    def __init__(self, layout: RunLayout, path: str, *, attempt: int) -> None:
        self._layout, self._path, self._attempt = layout, path, attempt
        self._number = 0
        self._tip: Segment | None = None  # what is durable ends with it
        self._trying: Segment | None = (
            None  # may be there: repeated, never extended, and given up only with its history
        )
        self._digest = hashlib.sha256()  # of what is durable
        self._finger: tuple[object, ...] | None = None
        self.is_sealed = False
        """Whether the plain object holds all that was sent."""

    @property
    def generation(self) -> tuple[int, int]:
        """The history that is being written."""
        return self._attempt, self._number

    @property
    def durable_bytes(self) -> int:
        """How much of the file is on the remote."""
        return self._tip.end if self._tip else 0

    def send(self, store: Store, source: str | int, on_read: Callable[[int], None] = lambda _: None) -> UploadedFile:
        """Send what the file has beyond what is durable; its length at the beginning counts.

        Args:
            store: Where to.
            source: The file, or an open descriptor, which is neither moved nor closed.
            on_read: See ``FileBody``.

        Raises:
            FileChangedError: the file was cut while it was read.
            ArtifactSyncError: what the store raised; calling again goes on.
        """
        fd = os.dup(source) if isinstance(source, int) else open_file(source)
        try:
            size = os.fstat(fd).st_size
            is_new = self._finger is None or self._finger != self._look(fd) or not self._can_repeat(fd)
            if is_new:
                self._begin_generation(store, fd, size)
            while self.durable_bytes < size or is_new or self._trying:
                self._send_one(store, fd, size, on_read)
                is_new = False
                self._finger = self._look(fd)
        finally:
            os.close(fd)
        return UploadedFile(self._layout.artifact(self._path), self.durable_bytes, self._digest.hexdigest())

    def _send_one(self, store: Store, fd: int, size: int, on_read: Callable[[int], None]) -> None:
        start = self.durable_bytes
        end = self._trying.end if self._trying else min(size, (start // SEGMENT_BYTES + 1) * SEGMENT_BYTES)
        data = _read(fd, start, end)
        if len(data) < end - start:
            self._finger = None
            raise FileChangedError(
                f"{self._path} was cut to less than {end} bytes while it was read",
                hint="append to a log, and never rewrite it in place",
            )
        segment = Segment(
            path=self._path,
            generation=self.generation,
            start=start,
            end=end,
            after=self._tip.link if self._tip else ROOT,
            sha256=hashlib.sha256(data).hexdigest(),
        )
        on_read(len(data))
        self._trying = segment
        key = segment.key(self._layout)
        info = store.put(key, data)
        if info.size_bytes != len(data):
            raise TransientStoreError(
                f"{store.url}/{key} has {info.size_bytes} bytes after an upload of {len(data)}", url=store.url
            )
        self._tip, self._trying, self.is_sealed = segment, None, False
        self._digest.update(data)

    def _begin_generation(self, store: Store, fd: int, size: int) -> None:
        """Find what of the file is on the remote already, by hash, and go on after it."""
        prefix = self._layout.tail(self._path, (0, 0), "").removesuffix(f"{0:06d}-{0:06d}/")
        known = [read_name(self._layout, info) for info in store.list(prefix)]
        segments = [s for s in known if isinstance(s, Segment) and s.path == self._path]
        numbers = [s.generation[1] for s in known if s and s.path == self._path and s.generation[0] == self._attempt]
        self._number = max([self._number, *numbers]) + 1
        self._tip, self._trying, self._digest = None, None, hashlib.sha256()
        followers = _by_predecessor(segments)
        while True:
            place = (self._tip.end, self._tip.link) if self._tip else (0, ROOT)
            fitting = (s for s in sorted(followers.get(place, ()), key=lambda s: -s.end) if s.start < s.end <= size)
            found = next((s for s in fitting if self._is_the_same(fd, s)), None)
            if found is None:
                return
            self._tip = found

    def _is_the_same(self, fd: int, segment: Segment) -> bool:
        """Whether the file has the segment's bytes in that place; they are taken as durable then."""
        data = _read(fd, segment.start, segment.end)
        if hashlib.sha256(data).hexdigest() != segment.sha256:
            return False
        self._digest.update(data)
        return True

    def _can_repeat(self, fd: int) -> bool:
        """Whether the segment that may be there, its answer lost, still has the bytes of the file."""
        tried = self._trying
        return tried is None or hashlib.sha256(_read(fd, tried.start, tried.end)).hexdigest() == tried.sha256

    def _look(self, fd: int) -> tuple[object, ...]:
        """What shows that a file still begins with what was sent."""
        found, end = os.fstat(fd), self.durable_bytes
        ends = _read(fd, 0, min(end, _FINGER_BYTES)) + _read(fd, max(0, end - _FINGER_BYTES), end)
        return found.st_dev, found.st_ino, min(found.st_size, end), hashlib.sha256(ends).hexdigest()


def segments_of(layout: RunLayout, objects: Iterable[ObjectInfo]) -> tuple[dict[str, list[Segment]], dict[str, Seal]]:
    """Sort a listing: the segments of each path, and the newest seal of each."""
    segments: dict[str, list[Segment]] = defaultdict(list)
    seals: dict[str, Seal] = {}
    for info in objects:
        found = read_name(layout, info)
        if isinstance(found, Segment):
            segments[found.path].append(found)
        elif found is not None:
            known = seals.get(found.path)
            if known is None or (known.generation, known.size_bytes) < (found.generation, found.size_bytes):
                seals[found.path] = found
    return segments, seals


def _read(fd: int, start: int, end: int) -> bytes:
    """The bytes of a range, fewer if the file ends before."""
    pieces: list[bytes] = []
    while start < end and (data := os.pread(fd, min(READ_BYTES, end - start), start)):
        pieces.append(data)
        start += len(data)
    return b"".join(pieces)


def place_of(chain: Sequence[Segment], offset: int) -> int:
    """The number of the segment that holds the byte at ``offset``."""
    low, high = 0, len(chain)
    while low < high:
        middle = (low + high) // 2
        if chain[middle].end <= offset:
            low = middle + 1
        else:
            high = middle
    return low
