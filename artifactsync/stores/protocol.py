"""The one interface through which bytes reach a remote.

Owns: the words ``Store``, ``ObjectInfo``, ``Body`` and ``Capabilities``. Does not own: retries, limits,
prefixes and faults (each a Store itself, in this package), keys (``naming.layout``), hashing (``transfer``).

Invariant: every implementation and every adapter passes ``artifactsync.testing.StoreContract``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from datetime import datetime


@dataclass(frozen=True, kw_only=True)
class ObjectInfo:
    """What a store says of one object."""

    key: str
    """The key below the store's root, with ``/`` between its parts. Hostile input: never a path."""
    size_bytes: int
    """Length of the object."""
    modified_at: datetime | None = None
    """Server time of the last write, with time zone. Informs, never decides."""
    etag: str | None = None
    """The store's own tag. Not a version: the same bytes may have the same tag."""


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """What a store was *seen* to do (``stores.probe``); never guessed from its scheme."""

    put_if_absent: bool
    """A second ``put_if_absent`` of a key fails and leaves the first bytes in place."""
    reason: str = ""
    """Why ``put_if_absent`` is False: what was sent and what came back."""
    unsoundness: str = ""
    """How what is read differs from what was written; empty where it does not."""


class Body(Protocol):
    """The bytes of one upload; can be read again from the start for each try."""

    @property
    def size_bytes(self) -> int:
        """Exact length."""

    def chunks(self, chunk_bytes: int) -> Iterator[bytes]:
        """Yield the bytes in order, each but the last exactly ``chunk_bytes`` long.

        Each call starts anew. May be called from any thread, one iteration at a time.

        Raises:
            FileChangedError: the bytes changed while they were read; the upload must not be completed.
        """


@dataclass(frozen=True)
class BytesBody:
    """A Body of bytes in memory."""

    data: bytes

    @property
    def size_bytes(self) -> int:
        """Exact length."""
        return len(self.data)

    def chunks(self, chunk_bytes: int) -> Iterator[bytes]:
        """Yield slices of the bytes."""
        for start in range(0, len(self.data), chunk_bytes):
            yield self.data[start : start + chunk_bytes]


@runtime_checkable
class Store(Protocol):
    """Objects under one root. Thread-safe; every method may block.

    Keys are ``str`` with ``/`` between parts, never beginning or ending with ``/``. Implementations MUST:

    - make a put visible as a whole or not at all: no reader ever sees a part of an object;
    - be read-after-write consistent for ``get``, ``head`` and ``list``;
    - raise only ``ArtifactSyncError``s, each with the key's URL, none with a secret in it;
    - never retry a ``put_if_absent`` by themselves (the caller reads back: ``stores.create_once``).
      Idempotent requests may be retried inside, but ``RetryStore`` above is what promises it.

    Common errors of all methods: ``CredentialsError``, ``PermissionDeniedError``, ``BucketNotFoundError``,
    ``RemoteUnreachableError`` and ``TransientStoreError`` (both: surely not applied, or idempotent).
    """

    @property
    def url(self) -> str:
        """The root as a URL, without secrets; for messages."""

    def get(self, key: str, *, start: int = 0, end: int | None = None) -> bytes:
        """Return the bytes ``[start, end)`` of an object; all from ``start`` when ``end`` is None.

        A range beyond the end is cut; an empty range gives ``b""``.

        Raises:
            ObjectNotFoundError: no such key.
        """

    def put(self, key: str, body: Body | bytes) -> ObjectInfo:
        """Write an object, replacing what was there. Idempotent.

        Memory stays below a fixed number of parts however large the body.

        Raises:
            FileChangedError: from the body; nothing became visible.
        """

    def put_if_absent(self, key: str, body: Body | bytes) -> ObjectInfo:
        """Write an object if and only if the key does not exist. Atomic against every other writer.

        Raises:
            AlreadyExistsError: the key exists (its bytes are untouched). May also mean that an earlier,
                lost answer to this same write was a success: read back.
            UnknownOutcomeError: the answer was lost or makes no sense; the write may have been applied.
        """

    def head(self, key: str) -> ObjectInfo:
        """Return what the store knows of an object.

        Raises:
            ObjectNotFoundError: no such key.
        """

    def list(self, prefix: str = "", *, start_after: str = "") -> Iterator[ObjectInfo]:
        """Yield every object whose key starts with ``prefix``, a plain string prefix.

        In key order where the store has one; only keys greater than ``start_after`` if given. Hostile keys come
        through as they are; none of them makes the listing fail.
        """

    def list_folders(self, prefix: str = "") -> Sequence[str]:
        """Return the names of the direct sub-folders of the folder ``prefix`` (``""`` or ending in ``/``)."""

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; a key that is not there is no error. Idempotent."""

    def copy(self, source: str, target: str) -> ObjectInfo:
        """Copy an object within the store, replacing the target.

        Raises:
            ObjectNotFoundError: no such source.
        """

    def close(self) -> None:
        """Release connections. Idempotent; the store must not be used afterwards."""
