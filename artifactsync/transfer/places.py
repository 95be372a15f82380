"""Memory for the parts of downloads, used again and again.

Owns: ``Places``. Does not own: what is put there (``downloader``), or when it is done with (``in_order``).
"""

from __future__ import annotations

import contextlib
import mmap
import threading


class Places:
    """Memory for parts: those that are being fetched, and some that wait to be hashed. Thread-safe.

    Args:
        size_bytes: Of each.
        kept: So many may wait, over all files.
    """

    def __init__(self, size_bytes: int, kept: int) -> None:
        self._size_bytes = size_bytes
        self._room = threading.BoundedSemaphore(kept)
        self._free: list[memoryview] = []

    def take(self) -> memoryview:
        """A place that nobody uses; ``give`` it back."""
        try:
            return self._free.pop()
        except IndexError:
            return self._make()

    def give(self, place: memoryview) -> None:
        """Nobody uses it any more."""
        self._free.append(place)

    def may_keep(self) -> bool:
        """Whether one more part may wait in memory; if so, ``done`` is to follow."""
        return self._room.acquire(blocking=False)

    def done(self) -> None:
        """A part that waited needs no memory any more."""
        self._room.release()

    def _make(self) -> memoryview:
        if not hasattr(mmap, "MADV_HUGEPAGE"):
            return memoryview(bytearray(self._size_bytes))
        place = mmap.mmap(-1, self._size_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with contextlib.suppress(OSError):  # a kernel without them
            place.madvise(mmap.MADV_HUGEPAGE)  # one fault for 2 MiB, and not for each 4 KiB
        return memoryview(place)
