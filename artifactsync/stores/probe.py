"""Finding out what a store really does, by doing it.

Owns: the test for a true put-if-absent, and for what every reader relies on: that what was written is read, listed
and measured as written, at once, under its own name. Does not own: what follows from it (``journal`` refuses).

Invariant: nothing is believed from a scheme, a name or a status code alone: the bytes are read back.
"""

from __future__ import annotations

import contextlib
import uuid
from typing import TYPE_CHECKING

from artifactsync.errors import (
    AlreadyExistsError,
    ArtifactSyncError,
    DiskFullError,
    ObjectNotFoundError,
    StoreError,
    TransientStoreError,
    UnfencedStoreError,
    UnknownOutcomeError,
)
from artifactsync.stores.protocol import Capabilities

if TYPE_CHECKING:
    from artifactsync.stores.protocol import Store

_BODY_BYTES = 64 * 1024  # a store that cuts bodies would hardly cut a short one
_TRIES = 3  # of each write while its answers get lost


def probe(store: Store, key: str) -> Capabilities:
    """Write ``key``, try to create it again with other bytes, read it back, delete it.

    Args:
        store: The store in question.
        key: A scratch key that nobody else uses (``RunLayout.probe``).

    Raises:
        AccessError, BucketNotFoundError, TransientStoreError: the store could not be asked.
    """
    first, second = (f"artifactsync probe {uuid.uuid4().hex}\n".encode() for _ in range(2))
    try:
        reason = _find_fault(store, key, first, second)
        return Capabilities(
            put_if_absent=not reason, reason=reason, unsoundness=_find_unsoundness(store, f"{key}-sound")
        )
    finally:
        with contextlib.suppress(ArtifactSyncError):  # leftover scratch objects harm nobody
            store.delete([key, f"{key}-sound"])


def _find_unsoundness(store: Store, key: str) -> str:  # noqa: PLR0911 one return for each fault
    """Say how what was written differs from what is read; nothing if it does not."""
    data = uuid.uuid4().bytes * (_BODY_BYTES // 16)
    if _read(store, key) is not None:
        return "a new key has bytes"
    store.put(key, data)
    found = _read(store, key)
    if found is None:
        return "an object that was just written cannot be read: it was seen missing before, and reads are stale"
    if found != data:
        return f"{len(data)} bytes were written, and other bytes ({len(found)} of them) are read"
    infos = [store.head(key), store.head(key), *(info for info in store.list(key) if info.key == key)]
    if len(infos) < 3:  # noqa: PLR2004 two answers and one line of the listing
        return "an object that was just written is not in the listing"
    if wrong := next((info for info in infos if info.size_bytes != len(data)), None):
        return f"{len(data)} bytes were written, and the store says that the object is {wrong.size_bytes} bytes long"
    if infos[0].etag != infos[1].etag:
        return "the ETag of an object changes from one answer to the next, though its bytes do not"
    folder, slash, name = key.rpartition("/")
    if store.url.startswith(("file:", "/")):
        return ""  # a laptop's disk may be so, and its user knows it
    if _read(store, f"{folder}{slash}{name.upper()}") is not None:
        return "an object is also found under its name in upper case: keys that differ in case are one"
    return ""


def _find_fault(store: Store, key: str, first: bytes, second: bytes) -> str:
    """Say what is wrong with ``put_if_absent``; nothing if it is right."""
    try:
        _create(store, key, first)
    except (TransientStoreError, DiskFullError):
        raise
    except (StoreError, UnfencedStoreError) as error:
        return f"a create-only write of a new key failed: {error.message}"
    if _read(store, key) != first:
        return "a create-only write of a new key was answered with success, but its bytes are not there"
    try:
        was_refused = not _create(store, key, second)
    except (TransientStoreError, DiskFullError):
        raise
    except StoreError as error:
        return f"a create-only write of an existing key was answered strangely: {error.message}"
    now = _read(store, key)
    if now == first and was_refused:
        return ""
    answered = "refused" if was_refused else "answered with success"
    kept = "the first bytes were kept" if now == first else "the first bytes were overwritten"
    return f"a create-only write (If-None-Match: * or its like) of an existing key was {answered}, and {kept}"


def _create(store: Store, key: str, data: bytes) -> bool:
    """Whether ``put_if_absent`` succeeded; a lost answer is asked for again."""
    for tries_left in reversed(range(_TRIES)):
        try:
            store.put_if_absent(key, data)
        except AlreadyExistsError:  # noqa: PERF203 each try may fail by itself
            return _read(store, key) == data  # an earlier, lost answer may have been a success
        except UnknownOutcomeError:
            if not tries_left:
                raise
        else:
            return True
    raise AssertionError  # the last try raises or returns


def _read(store: Store, key: str) -> bytes | None:
    try:
        return store.get(key)
    except ObjectNotFoundError:
        return None
