"""An object of one store as the body of an upload to another, hashed on its way.

Owns: ``RelayBody``, ``remote_sha256``. Does not own: what is copied (``journal.copying``).

Invariant: the last chunk is handed out only after all bytes had the expected length and sha256, so a store that gets
a ``RelayBody`` never makes damaged bytes visible. At most two chunks are in memory.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from artifactsync.errors import DamagedError, MissingBytesError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from artifactsync.stores.protocol import Store

_READ_BYTES = 8 * 1024 * 1024


class RelayBody:
    """The bytes of ``key`` in ``store``. A ``stores.protocol.Body``.

    Args:
        store: Where they come from.
        key: Which object.
        size_bytes: Its length; of an object that has grown since, only so much is sent.
        sha256: The hash that they must have; None takes them as they are.
        on_progress: Told of bytes as they are handed out, and with a negative number when they begin anew.
    """

    def __init__(
        self,
        store: Store,
        key: str,
        size_bytes: int,
        *,
        sha256: str | None = None,
        on_progress: Callable[[int], None] | None = None,
    ) -> None:
        self._store, self._key, self._sha256 = store, key, sha256
        self._on_progress = on_progress
        self._passed_bytes = 0
        self.size_bytes = size_bytes

    def chunks(self, chunk_bytes: int) -> Iterator[bytes]:
        """Yield the bytes in order; each call starts anew.

        Raises:
            MissingBytesError: the object is shorter than it was.
            DamagedError: its bytes are not the known ones.
        """
        self._progress(-self._passed_bytes)
        digest, passed = hashlib.sha256(), 0
        for data in read_ahead(self._store, self._key, self.size_bytes, chunk_bytes):
            digest.update(data)
            passed += len(data)
            if passed == self.size_bytes:
                self._check(digest.hexdigest())
            self._progress(len(data))
            yield data
        if not self.size_bytes:
            self._check(digest.hexdigest())

    def _check(self, sha256: str) -> None:
        if self._sha256 not in (None, sha256):
            raise DamagedError(
                f"{self._key} has other bytes than were committed",
                hint="see `artifactsync verify RUN --deep`",
                url=f"{self._store.url}/{self._key}",
            )

    def _progress(self, count_bytes: int) -> None:
        self._passed_bytes += count_bytes
        if self._on_progress and count_bytes:
            self._on_progress(count_bytes)


def read_ahead(store: Store, key: str, size_bytes: int, chunk_bytes: int) -> Iterator[bytes]:
    """Yield an object's first ``size_bytes`` in chunks; the next one is fetched while one is used.

    Raises:
        MissingBytesError: it is shorter.
    """
    starts = range(0, size_bytes, chunk_bytes)
    with ThreadPoolExecutor(1, "artifactsync-read-ahead") as thread:

        def fetch(start: int) -> bytes:
            return store.get(key, start=start, end=min(start + chunk_bytes, size_bytes))

        ahead = thread.submit(fetch, 0) if starts else None
        for start in starts:
            assert ahead is not None, "there is one for each start"
            data = ahead.result()
            if len(data) != min(chunk_bytes, size_bytes - start):
                raise MissingBytesError(
                    f"{key} ends after {start + len(data)} of {size_bytes} bytes",
                    hint="see `artifactsync verify RUN --deep`",
                    url=f"{store.url}/{key}",
                )
            ahead = thread.submit(fetch, start + chunk_bytes) if start + chunk_bytes < size_bytes else None
            yield data


def remote_sha256(store: Store, key: str, size_bytes: int) -> str:
    """The sha256 of an object's first ``size_bytes``, read in pieces.

    Raises:
        MissingBytesError: it is shorter.
    """
    digest = hashlib.sha256()
    for data in read_ahead(store, key, size_bytes, _READ_BYTES):
        digest.update(data)
    return digest.hexdigest()
