"""One try of one upload: a file's bytes to a key.

Owns: ``send_file``, and what a create-only upload makes of an unclear answer. Does not own: trying again (``queue``).

Invariant: returns only if the store holds, at the key, exactly the bytes whose digest is returned.
"""

from __future__ import annotations

import contextlib
import hashlib
from typing import TYPE_CHECKING

from artifactsync.errors import (
    AlreadyExistsError,
    ObjectNotFoundError,
    TransientStoreError,
    UnfencedStoreError,
    UnknownOutcomeError,
)
from artifactsync.transfer.hashing import FileDigest
from artifactsync.transfer.upload import UploadedFile

if TYPE_CHECKING:
    from artifactsync.errors import ArtifactSyncError
    from artifactsync.stores.protocol import ObjectInfo, Store
    from artifactsync.transfer.being_written import GrowingBody
    from artifactsync.transfer.hashing import FileBody

_RANGE_BYTES = 8 * 1024 * 1024  # read back at a time


def send_file(store: Store, key: str, body: FileBody | GrowingBody, *, overwrite: bool) -> UploadedFile:
    """Send a body once.

    Args:
        store: Where to.
        key: Key below the store's root.
        body: The file.
        overwrite: False creates the object and never replaces one; if the very same bytes are there already, perhaps
            by an earlier try whose answer was lost, that is success.

    Raises:
        AlreadyExistsError: ``overwrite=False``, and other bytes are there.
        FileChangedError: the file changed while it was read.
        ArtifactSyncError: what the store raised.
    """
    info = store.put(key, body) if overwrite else _create(store, key, body)
    return confirmed(store, key, info, body.digest_now())


def confirmed(store: Store, key: str, info: ObjectInfo, digest: FileDigest) -> UploadedFile:
    """What was sent, if what the store says of it fits.

    Raises:
        TransientStoreError: it does not.
    """
    if info.size_bytes != digest.size_bytes:
        raise TransientStoreError(
            f"{store.url}/{key} has {info.size_bytes} bytes after an upload of {digest.size_bytes}",
            hint="another program may be writing the same key",
            url=f"{store.url}/{key}",
        )
    return UploadedFile(key, digest.size_bytes, digest.sha256, info.etag)


def _create(store: Store, key: str, body: FileBody | GrowingBody) -> ObjectInfo:
    try:
        return store.put_if_absent(key, body)  # whether it pays to ask first is the store's to know
    except UnfencedStoreError:  # too large to be created in one request: having looked is the best there is
        with contextlib.suppress(ObjectNotFoundError):
            return _checked(store, key, body, store.head(key))
        return store.put(key, body)
    except (AlreadyExistsError, UnknownOutcomeError) as error:
        try:
            info = store.head(key)
        except ObjectNotFoundError:
            raise TransientStoreError(
                f"{key} was neither created nor is it there: {error}", url=f"{store.url}/{key}"
            ) from error
        return _checked(store, key, body, info, error)


def _checked(
    store: Store, key: str, body: FileBody | GrowingBody, info: ObjectInfo, cause: ArtifactSyncError | None = None
) -> ObjectInfo:
    """Return what is at the key if it has the body's bytes."""
    digest = body.digest_now()
    if info.size_bytes == digest.size_bytes and _hash_object(store, key, info.size_bytes) == digest:
        return info
    raise AlreadyExistsError(
        f"{key} exists already on {store.url}, with other bytes",
        hint="choose another remote file name, or pass overwrite=True",
        url=f"{store.url}/{key}",
    ) from cause


def _hash_object(store: Store, key: str, size_bytes: int) -> FileDigest:
    digest = hashlib.sha256()
    offset = 0
    while offset < size_bytes:
        data = store.get(key, start=offset, end=min(offset + _RANGE_BYTES, size_bytes))
        if not data:
            break  # it is shorter by now: another writer's
        digest.update(data)
        offset += len(data)
    return FileDigest(offset, digest.hexdigest())
