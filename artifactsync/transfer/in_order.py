"""The sha256 of a file whose parts arrive in any order.

Owns: ``InOrder``. Does not own: the file (``partial``), fetching (``downloader``).

Invariant: every byte is hashed once, in order; at most the parts that came early are read a second time.
"""

from __future__ import annotations

import hashlib
import threading
from typing import TYPE_CHECKING

from artifactsync.transfer.hashing import READ_BYTES, FileDigest

if TYPE_CHECKING:
    from artifactsync.transfer.partial import PartialFile


class InOrder:
    """The sha256 of a file whose parts arrive in any order; parts that came early are read back from the file."""

    def __init__(self, partial: PartialFile, part_bytes: int, size_bytes: int) -> None:
        self._partial = partial
        self._part_bytes = part_bytes
        self._size_bytes = size_bytes
        self._lock = threading.Lock()
        self._digest = hashlib.sha256()
        self._early: set[int] = set()
        self._next = 0

    def add(self, part: int, data: bytes | None = None) -> None:
        """``part`` is in the file; ``data`` are its bytes if they are at hand."""
        with self._lock:
            self._early.add(part)
            while self._next in self._early:
                self._early.remove(self._next)
                if self._next == part and data is not None:
                    self._digest.update(data)
                else:
                    self._read_back(self._next)
                self._next += 1

    def digest(self) -> FileDigest:
        """The digest, when every part was added."""
        return FileDigest(self._size_bytes, self._digest.hexdigest())

    def _read_back(self, part: int) -> None:
        offset = part * self._part_bytes
        end = min(offset + self._part_bytes, self._size_bytes)
        while offset < end and (data := self._partial.read(min(READ_BYTES, end - offset), offset)):
            self._digest.update(data)
            offset += len(data)
