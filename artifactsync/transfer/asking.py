"""Questions to a store about one wanted object, asked again for as long as it makes sense.

Owns: ``Wanted``, and ``Asker``: ranges and lengths that are checked against what is known. Does not own: what becomes
of the bytes (``downloader``).

Invariant: what is returned has the length that was asked for; a store that cannot be asked raises within the policy's
deadline, and soon after ``is_stopped`` is set.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from artifactsync.errors import (
    DamagedError,
    MissingBytesError,
    ObjectNotFoundError,
    RemoteUnreachableError,
    TransientStoreError,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from artifactsync.stores.protocol import ObjectInfo, Store
    from artifactsync.stores.retry import RetryPolicy
    from artifactsync.transfer.clock import Clock

_Result = TypeVar("_Result")


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """An object, and what is known of it beforehand."""

    key: str
    """Key below the store's root."""
    size_bytes: int | None = None
    """The length it must have; None takes it as it is."""
    sha256: str | None = None
    """The sha256 it must have, in hex; None takes it as it is."""


class Asker:
    """Asks one store. Thread-safe.

    Args:
        store: Whom.
        retry: How often and how long one question is asked.
        clock: The ``time`` module, or a ``FakeClock``.
    """

    def __init__(self, store: Store, retry: RetryPolicy, clock: Clock) -> None:
        self._store = store
        self._retry = retry
        self._clock = clock
        self._was_answered = False
        self.is_stopped = False
        """Set it to let running questions fail soon."""

    def head(self, wanted: Wanted) -> ObjectInfo:
        """What the store knows of an object.

        Raises:
            MissingBytesError: it is not there although it is known, or shorter than known.
            DamagedError: it is longer than known.
        """
        info: ObjectInfo = self._patiently(wanted, lambda: self._store.head(wanted.key))
        if wanted.size_bytes is not None and info.size_bytes != wanted.size_bytes:
            error = MissingBytesError if info.size_bytes < wanted.size_bytes else DamagedError
            raise error(
                f"{self.url_of(wanted)} has {info.size_bytes} bytes, not the recorded {wanted.size_bytes}",
                hint="the object is damaged: use an older checkpoint",
                url=self.url_of(wanted),
            )
        return info

    def get(self, wanted: Wanted, start: int, end: int, *, beyond: int = 0) -> bytes:
        """Get a range, all of it; with ``beyond``, look whether there are bytes after it."""

        def ask() -> bytes:
            data = self._store.get(wanted.key, start=start, end=end + beyond)
            if len(data) < end - start:
                self.head(wanted)  # an object that is too short stays so: to ask again would only take time
                raise _ShortRangeError(
                    f"{self.url_of(wanted)} gave {len(data)} bytes of the range {start}-{end}", url=self.url_of(wanted)
                )
            if len(data) > end - start:
                raise DamagedError(
                    f"{self.url_of(wanted)} is longer than the recorded {wanted.size_bytes} bytes",
                    hint="the object is damaged: use an older checkpoint",
                    url=self.url_of(wanted),
                )
            return data

        try:
            return self._patiently(wanted, ask)
        except _ShortRangeError as error:
            raise MissingBytesError(
                error.message, hint="the object is shorter than it should be", url=self.url_of(wanted)
            ) from error

    def _patiently(self, wanted: Wanted, request: Callable[[], _Result]) -> _Result:
        began_s = self._clock.monotonic()
        attempt = 0
        while True:
            attempt += 1
            if self.is_stopped:
                raise TransientStoreError(f"the download of {self.url_of(wanted)} was stopped")
            try:
                result = request()
            except ObjectNotFoundError as error:
                if wanted.sha256 is None and wanted.size_bytes is None:
                    raise
                raise MissingBytesError(
                    f"{self.url_of(wanted)} is not there", hint="use an older checkpoint", url=self.url_of(wanted)
                ) from error
            except TransientStoreError as error:
                pause_s = self._retry.pause_s(attempt, error)
                is_late = self._clock.monotonic() - began_s + pause_s > self._retry.deadline_s
                is_unheard = isinstance(error, RemoteUnreachableError) and not self._was_answered
                if attempt >= self._retry.max_attempts or is_late or is_unheard:
                    raise
                self._clock.sleep(pause_s)
            else:
                self._was_answered = True
                return result

    def url_of(self, wanted: Wanted) -> str:
        """Its URL, for messages."""
        return f"{self._store.url.rstrip('/')}/{wanted.key}"


class _ShortRangeError(TransientStoreError):
    """A range that broke off."""
