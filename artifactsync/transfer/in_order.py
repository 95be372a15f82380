"""The sha256 of a file whose parts arrive in any order.

Owns: ``InOrder``. Does not own: the file and what is noted of it (``partial``), fetching (``downloader``), memory
(``places``).

Invariants: every byte is hashed once, in order, by one thread; who brings parts never waits for it. What is hashed is
noted beside the file with its sha256, which costs nothing more; what waits for an earlier part for long is noted with a
CRC32 of its own, while there is nothing to hash. So of what was in the file, a killed download loses what came in its
last tenth of a second, or what the processor had not caught up with.
"""

from __future__ import annotations

import contextlib
import threading
import time
import zlib
from typing import TYPE_CHECKING

from artifactsync.errors import ArtifactSyncError
from artifactsync.transfer.hashing import READ_BYTES, FileDigest

if TYPE_CHECKING:
    from artifactsync.transfer.held import Held
    from artifactsync.transfer.partial import PartialFile
    from artifactsync.transfer.places import Places

_PATIENCE_S = 0.1  # so long a part may be missing before those after it are noted


class InOrder:
    """The sha256 of a file whose parts arrive in any order.

    Args:
        partial: The file.
        part_bytes: Length of every part but the last.
        size_bytes: Length of the file.
        held: What is in it already.
        places: Memory for parts that wait. Those for which there is none are read back from the file.
    """

    def __init__(self, partial: PartialFile, part_bytes: int, size_bytes: int, held: Held, places: Places) -> None:
        self._partial = partial
        self._part_bytes = part_bytes
        self._size_bytes = size_bytes
        self._digest = held.digest.copy()
        self._places = places
        self._changed = threading.Condition()
        self._waiting: dict[int, tuple[bytes, memoryview | None] | None] = dict.fromkeys(held.others)
        self._noted = set(held.others)
        self._idle_since_s: float | None = None
        self._is_stopped = False
        self.front = held.leading
        """So many parts are hashed."""

    def add(self, part: int, data: bytes, place: memoryview | None = None) -> None:
        """``part`` is in the file, and these are its bytes; ``place`` is given back. Thread-safe."""
        kept = (data, place) if self._places.may_keep() else None
        if kept is None and place is not None:
            self._places.give(place)
        with self._changed:
            self._waiting[part] = kept
            self._changed.notify_all()
            idle_s = 0.0 if self._idle_since_s is None else time.monotonic() - self._idle_since_s
        if part != self.front and idle_s > _PATIENCE_S:
            self.note_waiting()

    def stop(self) -> None:
        """No more parts will come: ``hash_next`` is to end. Thread-safe."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify_all()

    def hash_next(self) -> bool:
        """Wait for the next part and hash it; False once stopped. One thread at a time."""
        with self._changed:
            self._idle_since_s = time.monotonic()
            while self.front not in self._waiting and not self._is_stopped:
                self._changed.wait()
            self._idle_since_s = None
            if self._is_stopped:
                return False
            kept = self._waiting.pop(self.front)
        if kept is None:
            self._read_back(self.front)
        else:
            self._digest.update(kept[0])
            self._free(kept)
        self.front += 1
        self._partial.note_leading(self.front, self._digest.copy().hexdigest())
        return True

    def note_waiting(self) -> None:
        """Note the parts that are in the file and not hashed. Thread-safe."""
        with self._changed:
            parts = [part for part in self._waiting if part not in self._noted]
            self._noted.update(parts)
        for part in parts:
            self._partial.note(part, zlib.crc32(self._read(part)))

    def close(self) -> None:
        """Give back the memory of parts that were not hashed, and note those parts if they can be of use."""
        if self._partial.is_resumable:
            with contextlib.suppress(ArtifactSyncError):  # a full disk, for one, which has been said already
                self.note_waiting()
        with self._changed:
            for kept in self._waiting.values():
                if kept is not None:
                    self._free(kept)
            self._waiting.clear()

    def _free(self, kept: tuple[bytes, memoryview | None]) -> None:
        if kept[1] is not None:
            self._places.give(kept[1])
        self._places.done()

    def digest(self) -> FileDigest:
        """The digest, when every part is hashed."""
        return FileDigest(self._size_bytes, self._digest.hexdigest())

    def _read_back(self, part: int) -> None:
        offset = part * self._part_bytes
        end = min(offset + self._part_bytes, self._size_bytes)
        while offset < end and (data := self._partial.read(min(READ_BYTES, end - offset), offset)):
            self._digest.update(data)
            offset += len(data)

    def _read(self, part: int) -> bytes:
        start = part * self._part_bytes
        return self._partial.read(min(self._part_bytes, self._size_bytes - start), start)
