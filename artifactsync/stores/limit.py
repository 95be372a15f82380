"""A store that takes no more than its share of the line.

Owns: bytes per second and requests at a time. Does not own: what goes first (``transfer.queue``).

Invariant: over any time the bytes passed are at most ``bytes_per_s`` times it, plus a chunk for each request in flight.
A chunk leaves in one burst and the pause follows: the average is held, not each second.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING

from artifactsync.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from artifactsync.stores.protocol import Body, ObjectInfo, Store


class Pace:
    """A schedule on which bytes may pass; shared by all who pass the same line. Thread-safe.

    Args:
        bytes_per_s: The rate.
        sleep: Waits that many seconds; a test passes its own.
        clock: Monotonic seconds; a test passes its own.
    """

    def __init__(
        self,
        bytes_per_s: float,
        *,
        sleep: Callable[[float], object] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not bytes_per_s > 0:
            raise ConfigurationError(f"a bandwidth limit of {bytes_per_s} bytes per second lets nothing pass")
        self.bytes_per_s = float(bytes_per_s)
        self._sleep = sleep
        self._clock = clock
        self._lock = threading.Lock()
        self._free_at_s = 0.0

    def take(self, size_bytes: int) -> None:
        """Wait for the line to be free, then occupy it for ``size_bytes``."""
        with self._lock:
            now_s = self._clock()
            begin_s = max(now_s, self._free_at_s)
            self._free_at_s = begin_s + size_bytes / self.bytes_per_s
        if begin_s > now_s:
            self._sleep(begin_s - now_s)


class LimitStore:
    """``store`` with a bandwidth limit, a limit of concurrent requests, or both.

    Args:
        store: What to limit.
        bytes_per_s: Bytes of object data, up and down together; None: no limit.
        max_concurrency: Requests at a time; None: no limit.
        pace: In place of ``bytes_per_s``, to share one line between stores.
    """

    def __init__(
        self,
        store: Store,
        *,
        bytes_per_s: float | None = None,
        max_concurrency: int | None = None,
        pace: Pace | None = None,
    ) -> None:
        self.store = store
        self.ordered_listing: bool = getattr(store, "ordered_listing", False)
        self._pace = Pace(bytes_per_s) if pace is None and bytes_per_s is not None else pace
        if max_concurrency is not None and max_concurrency < 1:
            raise ConfigurationError(f"max_concurrency is {max_concurrency}: no request would ever begin")
        self._slots = None if max_concurrency is None else threading.BoundedSemaphore(max_concurrency)

    @property
    def url(self) -> str:
        """The root as a URL."""
        return self.store.url

    def get(self, key: str, *, start: int = 0, end: int | None = None) -> bytes:
        """See ``Store.get``; its bytes count when they are here, so the next request waits for them."""
        with self._slot():
            if self._pace:
                self._pace.take(0)
            data = self.store.get(key, start=start, end=end)
        if self._pace:
            self._pace.take(len(data))
        return data

    def put(self, key: str, body: Body | bytes) -> ObjectInfo:
        """See ``Store.put``."""
        with self._slot():
            return self.store.put(key, self._limited(body))

    def put_if_absent(self, key: str, body: Body | bytes) -> ObjectInfo:
        """See ``Store.put_if_absent``."""
        with self._slot():
            return self.store.put_if_absent(key, self._limited(body))

    def head(self, key: str) -> ObjectInfo:
        """See ``Store.head``."""
        with self._slot():
            return self.store.head(key)

    def list(self, prefix: str = "", *, start_after: str = "") -> Iterator[ObjectInfo]:
        """See ``Store.list``; holds a slot only while it waits for the next key."""
        found = iter(self.store.list(prefix, start_after=start_after))
        while True:
            with self._slot():
                info = next(found, None)
            if info is None:
                return
            yield info

    def list_folders(self, prefix: str = "") -> Sequence[str]:
        """See ``Store.list_folders``."""
        with self._slot():
            return self.store.list_folders(prefix)

    def delete(self, keys: Iterable[str]) -> None:
        """See ``Store.delete``."""
        with self._slot():
            self.store.delete(keys)

    def copy(self, source: str, target: str) -> ObjectInfo:
        """See ``Store.copy``; the bytes do not pass here."""
        with self._slot():
            return self.store.copy(source, target)

    def close(self) -> None:
        """Close the store within."""
        self.store.close()

    def _slot(self) -> contextlib.AbstractContextManager[object]:
        return self._slots if self._slots is not None else contextlib.nullcontext()

    def _limited(self, body: Body | bytes) -> Body | bytes:
        if self._pace is None:
            return body
        if isinstance(body, bytes):
            self._pace.take(len(body))
            return body
        return _LimitedBody(body, self._pace)


class _LimitedBody:
    """A Body whose chunks wait for their turn."""

    def __init__(self, body: Body, pace: Pace) -> None:
        self._body = body
        self._pace = pace

    @property
    def size_bytes(self) -> int:
        """Exact length."""
        return self._body.size_bytes

    def chunks(self, chunk_bytes: int) -> Iterator[bytes]:
        """Yield the chunks of the body, each when the line is free."""
        for chunk in self._body.chunks(chunk_bytes):
            self._pace.take(len(chunk))
            yield chunk
