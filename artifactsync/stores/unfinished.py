"""Uploads that were begun and never ended: an optional capability of a store.

They take space, are paid for, and no listing of objects shows them: parts of S3's multipart uploads, temporary files
of a folder. Stores whose server forgets such uploads by itself (GCS after a week, Azure too) have none.

Owns: the words, and the way through adapters to the store that knows. Does not own: how each store finds its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from artifactsync.stores.retry import RetryStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    from artifactsync.stores.protocol import Store


@dataclass(frozen=True, kw_only=True)
class UnfinishedUpload:
    """One upload that was begun."""

    key: str
    """Where its object would be, or the folder and name of its temporary file; below the store's root."""
    upload_id: str
    """What the store calls it."""
    started_at: datetime
    """Server time of its beginning, with time zone."""


@runtime_checkable
class HasUnfinished(Protocol):
    """A store that can find and give up unfinished uploads."""

    def unfinished_uploads(self, prefix: str = "") -> Iterator[UnfinishedUpload]:
        """Yield the uploads whose key starts with ``prefix``."""

    def abort_upload(self, upload: UnfinishedUpload) -> None:
        """Give it up; what was sent is deleted. One that has ended meanwhile is no error."""


def list_unfinished(store: Store, prefix: str = "") -> list[UnfinishedUpload]:
    """The unfinished uploads below ``prefix``; none if the store has no such thing."""
    inner, root, call = _innermost(store)
    if not isinstance(inner, HasUnfinished):
        return []
    has_unfinished = inner
    uploads = call(lambda: list(has_unfinished.unfinished_uploads(root + prefix)))
    return [replace(found, key=found.key[len(root) :]) for found in uploads]


def abort_unfinished(store: Store, upload: UnfinishedUpload) -> None:
    """Give up an upload that :func:`list_unfinished` found on the same store."""
    inner, root, call = _innermost(store)
    if isinstance(inner, HasUnfinished):
        has_unfinished = inner
        call(lambda: has_unfinished.abort_upload(replace(upload, key=root + upload.key)))


def _innermost(store: Store) -> tuple[object, str, Callable[[Callable[[], Any]], Any]]:
    """The store below all adapters, the prefix that they add to keys, and how patiently to ask it."""
    inner: Any = store
    root, call = "", _once
    while (below := getattr(inner, "store", None) or getattr(inner, "_store", None)) is not None:
        root = getattr(inner, "prefix", "") + root
        call = inner.call if isinstance(inner, RetryStore) else call
        inner = below
    return inner, root, call


def _once(request: Callable[[], Any]) -> Any:
    return request()
