"""The sha256 of a file whose parts arrive in any order.

Owns: ``InOrder``. Does not own: the file (``partial``), fetching (``downloader``).

Invariants: every byte is hashed once, in order; nobody waits for the hashing but who does it, and that is one thread at
a time. So the line is never idle because a processor is busy: on a busy machine that made a download three times as
long. Parts that had to wait and for which there was no room in memory are read back from the file.
"""

from __future__ import annotations

import hashlib
import threading
from typing import TYPE_CHECKING

from artifactsync.transfer.hashing import READ_BYTES, FileDigest

if TYPE_CHECKING:
    from artifactsync.transfer.partial import PartialFile

_KEPT_PARTS = 4  # in memory, of those that wait to be hashed


class InOrder:
    """The sha256 of a file whose parts arrive in any order. Thread-safe."""

    def __init__(self, partial: PartialFile, part_bytes: int, size_bytes: int) -> None:
        self._partial = partial
        self._part_bytes = part_bytes
        self._size_bytes = size_bytes
        self._lock = threading.Lock()
        self._digest = hashlib.sha256()
        self._waiting: dict[int, bytes | None] = {}
        self._kept = 0
        self._next = 0
        self._is_hashing = False

    def add(self, part: int, data: bytes | None = None) -> None:
        """``part`` is in the file; ``data`` are its bytes if they are at hand.

        Hashes what can be hashed now, unless another thread is at it, which then does this part too.
        """
        with self._lock:
            if data is not None and part != self._next:
                data = data if self._kept < _KEPT_PARTS else None
                self._kept += data is not None
            self._waiting[part] = data
            if self._is_hashing or self._next not in self._waiting:
                return
            self._is_hashing = True
        while self._hash_next():
            pass

    def digest(self) -> FileDigest:
        """The digest, when every ``add`` has returned."""
        return FileDigest(self._size_bytes, self._digest.hexdigest())

    def _hash_next(self) -> bool:
        """Hash the next part if it is there; else hashing ends, and False is returned."""
        with self._lock:
            part = self._next
            self._is_hashing = part in self._waiting
            if not self._is_hashing:
                return False
            data = self._waiting.pop(part)
        if data is None:
            self._read_back(part)
        else:
            self._digest.update(data)
        with self._lock:
            self._next += 1
            self._kept = sum(each is not None for each in self._waiting.values())
        return True

    def _read_back(self, part: int) -> None:
        offset = part * self._part_bytes
        end = min(offset + self._part_bytes, self._size_bytes)
        while offset < end and (data := self._partial.read(min(READ_BYTES, end - offset), offset)):
            self._digest.update(data)
            offset += len(data)
