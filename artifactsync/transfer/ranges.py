"""Some ranges of one object, into memory or to their place in a local file.

Owns: ``RangeReader``. Does not own: which ranges (``checkpoint.pt_part``), or whether their bytes are right: a
hash of the whole object says nothing of a part, so the caller must know another check.

Invariant: what is returned or written has the length that was asked for.
"""

from __future__ import annotations

import os
import time
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING

from artifactsync.stores.retry import RetryPolicy
from artifactsync.stores.runtime import in_the_foreground
from artifactsync.transfer.asking import Asker, Wanted
from artifactsync.transfer.downloader import MAX_PARTS, PART_BYTES
from artifactsync.transfer.folder import local_error

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from artifactsync.stores.protocol import Store
    from artifactsync.transfer.clock import Clock

_NEAR_BYTES = 64 * 1024
"""Ranges with less than this between them are asked for as one: a request takes longer than so many bytes."""


class RangeReader:
    """Reads one object by ranges.

    Args:
        store: Where from.
        key: Key below the store's root.
        size_bytes: Its length; asked for if None.
        retry: How often and how long one range is tried.
        clock: The ``time`` module, or a ``FakeClock``.

    Raises:
        ObjectNotFoundError: no such object, and its length was not known.
    """

    def __init__(
        self,
        store: Store,
        key: str,
        *,
        size_bytes: int | None = None,
        retry: RetryPolicy | None = None,
        clock: Clock = time,
    ) -> None:
        self._asker = Asker(store, retry or RetryPolicy(max_attempts=5), clock)
        if size_bytes is None:
            size_bytes = self._asker.head(Wanted(key=key)).size_bytes
        self._wanted = Wanted(key=key, size_bytes=size_bytes)
        self.size_bytes = size_bytes
        """Length of the object."""
        self.url = self._asker.url_of(self._wanted)
        """For messages."""

    def read(self, start: int, end: int) -> bytes:
        """The bytes ``[start, end)``, in one request.

        Raises:
            MissingBytesError: the object is not there, or shorter.
        """
        return self._asker.get(self._wanted, start, end) if end > start else b""

    def bring(self, ranges: Iterable[tuple[int, int]], fd: int, path: Path) -> None:
        """Write ranges to the same places of an open file: several requests at a time, 64 MiB in memory at most.

        Args:
            ranges: ``(start, end)`` each; those that lie close together come with what is between them.
            fd: The file.
            path: Its name, for messages.

        Raises:
            MissingBytesError: the object is not there, or shorter.
            DiskFullError, DestinationError: the file cannot be written.
        """
        parts = [
            (at, min(at + PART_BYTES, end)) for start, end in _joined(ranges) for at in range(start, end, PART_BYTES)
        ]
        if not parts:
            return

        def fetch(part: tuple[int, int]) -> None:
            start, end = part
            view = memoryview(self._asker.get(self._wanted, start, end))
            try:
                while view:
                    written = os.pwrite(fd, view, start)
                    view, start = view[written:], start + written
            except OSError as error:
                raise local_error(error, path) from error

        with in_the_foreground(), ThreadPoolExecutor(min(MAX_PARTS, len(parts)), "artifactsync-ranges") as threads:
            futures = [threads.submit(fetch, part) for part in parts]
            try:
                done, _ = wait(futures, return_when=FIRST_EXCEPTION)
                for future in done:
                    future.result()
            except BaseException:
                self._asker.is_stopped = True
                for future in futures:
                    future.cancel()
                raise


def _joined(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    joined: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if joined and start - joined[-1][1] < _NEAR_BYTES:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end))
        elif end > start:
            joined.append((start, end))
    return joined
