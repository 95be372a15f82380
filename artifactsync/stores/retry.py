"""Trying again: the one place that decides how often, how long and after which pause.

Owns: patience. Does not own: which error is worth it (each store says so by raising ``TransientStoreError``), nor
create-only writes, which are never resent blindly (``create_once``).

Invariant: only idempotent requests are sent again, each after a jittered pause that is never shorter than what the
server asked for in ``Retry-After``.
"""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from artifactsync.errors import (
    ArtifactSyncError,
    ConfigurationError,
    RemoteUnreachableError,
    TransientStoreError,
    UnknownOutcomeError,
)
from artifactsync.stores.ahead import begin_get, begin_put, can_begin

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from artifactsync.stores.origin import Origin
    from artifactsync.stores.protocol import Body, ObjectInfo, Store

_Result = TypeVar("_Result")

own_jitter = random.Random().random  # noqa: S311 - pauses, no secrets
"""A source of our own: a draw from the ``random`` module in the background would change what training draws next."""


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """How patient one request is."""

    max_attempts: int = 8
    """Tries in all, the first included. 1: no second try."""
    deadline_s: float = 60.0
    """No new try begins this long after the first one began, in seconds."""
    base_delay_s: float = 0.2
    """Upper bound of the first pause; it doubles with each try (full jitter), in seconds."""
    max_delay_s: float = 10.0
    """No pause of ours is longer, in seconds; a server's ``Retry-After`` may be, up to the deadline."""
    unanswered_deadline_s: float = 8.0
    """The deadline in place of ``deadline_s`` while the remote has never answered anything at all: a remote that was
    never heard of is more likely wrong than busy, and a user waits in front of it. In seconds."""

    def pause_s(self, attempt: int, error: ArtifactSyncError, jitter: Callable[[], float] = own_jitter) -> float:
        """Seconds to wait after failure number ``attempt`` (1, 2 …)."""
        ceiling = min(self.max_delay_s, self.base_delay_s * 2.0 ** min(attempt - 1, 30))
        asked = getattr(error, "retry_after_s", None) or 0.0
        return float(max(asked, ceiling * jitter()))


class RetryStore:
    """``store`` with idempotent requests sent again after transient errors.

    Args:
        store: What may fail.
        policy: How patient.
        sleep: Waits that many seconds; a test passes its own.
        clock: Monotonic seconds; a test passes its own.
    """

    def __init__(
        self,
        store: Store,
        policy: RetryPolicy | None = None,
        *,
        sleep: Callable[[float], object] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.store = store
        self.policy = policy or RetryPolicy()
        self.ordered_listing: bool = getattr(store, "ordered_listing", False)
        self.can_begin = can_begin(store)
        self.origin: Origin | None = None
        """What ``open_store`` made it from, if another process could."""
        self._closed = threading.Event()
        self._sleep = sleep or self._closed.wait  # close() ends every pause
        self._clock = clock
        self._was_answered = False
        self._trouble: dict[str, str] = {}  # shared with the views of ``pausing``

    @property
    def trouble(self) -> str | None:
        """What the newest request failed of that is sent again; None if it succeeded."""
        return self._trouble.get("newest") or getattr(self.store, "trouble", None)

    @property
    def url(self) -> str:
        """The root as a URL."""
        return self.store.url

    def get(self, key: str, *, start: int = 0, end: int | None = None) -> bytes:
        """See ``Store.get``."""
        return self._retry(lambda: self.store.get(key, start=start, end=end))

    def put(self, key: str, body: Body | bytes) -> ObjectInfo:
        """See ``Store.put``; the body is read anew for each try."""
        return self._retry(lambda: self.store.put(key, body))

    def begin_get(self, key: str, *, start: int, end: int) -> Callable[[], bytes] | None:
        """See ``stores.ahead``; asked once, for who asks again is whoever waits for the answer."""
        return begin_get(self.store, key, start=start, end=end)

    def begin_put(self, key: str, data: bytes, *, sha256: str) -> Callable[[], ObjectInfo] | None:
        """See ``stores.ahead``; sent once."""
        return begin_put(self.store, key, data, sha256=sha256)

    def put_if_absent(self, key: str, body: Body | bytes) -> ObjectInfo:
        """See ``Store.put_if_absent``: passed on once, never sent again."""
        if self._closed.is_set():  # or create_once, which tries it again and again, would go on for hours
            raise ConfigurationError(f"{self.url} is closed", url=f"{self.url}/{key}")
        try:
            info = self.store.put_if_absent(key, body)
        except (TransientStoreError, UnknownOutcomeError) as error:
            self._trouble["newest"] = str(error)
            raise
        self._was_answered = True
        self._trouble.clear()
        return info

    def head(self, key: str) -> ObjectInfo:
        """See ``Store.head``."""
        return self._retry(lambda: self.store.head(key))

    def list(self, prefix: str = "", *, start_after: str = "") -> Iterator[ObjectInfo]:
        """See ``Store.list``; a listing that breaks off goes on after the last key that it gave."""
        seen: set[str] = set()
        last = start_after
        pending: Iterator[ObjectInfo] | None = None

        def advance() -> ObjectInfo | None:
            nonlocal pending
            if pending is None:
                pending = iter(self.store.list(prefix, start_after=last))
            try:
                return next(pending, None)
            except ArtifactSyncError:
                pending = None
                raise

        while (info := self._retry(advance)) is not None:
            if self.ordered_listing:
                last = info.key
            elif info.key in seen:
                continue
            else:
                seen.add(info.key)
            yield info

    def list_folders(self, prefix: str = "") -> Sequence[str]:
        """See ``Store.list_folders``."""
        return self._retry(lambda: self.store.list_folders(prefix))

    def delete(self, keys: Iterable[str]) -> None:
        """See ``Store.delete``."""
        every = list(keys)
        self._retry(lambda: self.store.delete(every))

    def copy(self, source: str, target: str) -> ObjectInfo:
        """See ``Store.copy``."""
        return self._retry(lambda: self.store.copy(source, target))

    def call(self, request: Callable[[], _Result]) -> _Result:
        """Send an idempotent request that ``Store`` has no word for, as patiently as the others."""
        return self._retry(request)

    def pausing(self, pause: Callable[[float], object]) -> RetryStore:
        """The same store with the same patience, which pauses in another way; ``give_up`` of this one ends both."""
        view = RetryStore(self.store, self.policy, sleep=pause, clock=self._clock)
        view._closed, view._trouble = self._closed, self._trouble
        return view

    def give_up(self) -> None:
        """End pauses, and try nothing again; the store within stays open."""
        self._closed.set()

    def close(self) -> None:
        """Give up, and close the store within."""
        self.give_up()
        self.store.close()

    def _retry(self, request: Callable[[], _Result]) -> _Result:
        began = self._clock()
        attempt = 0
        while True:
            attempt += 1
            try:
                result = request()
            except TransientStoreError as error:
                self._trouble["newest"] = str(error)
                if not isinstance(error, RemoteUnreachableError):
                    self._was_answered = True
                pause_s = self.policy.pause_s(attempt, error)
                deadline_s = self.policy.deadline_s
                if not self._was_answered:
                    deadline_s = min(deadline_s, self.policy.unanswered_deadline_s)
                is_late = self._clock() - began + pause_s > deadline_s
                if attempt >= self.policy.max_attempts or is_late or self._closed.is_set():
                    raise
                self._sleep(pause_s)
            except ArtifactSyncError:
                self._was_answered = True
                raise
            else:
                self._was_answered = True
                self._trouble.clear()
                return result
