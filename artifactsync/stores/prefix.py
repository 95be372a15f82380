"""A part of a store as a store.

Invariant: every key of this store is ``prefix`` + ``/`` + the key within; nothing outside is seen or touched.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from artifactsync.stores.ahead import begin_get, begin_put, can_begin

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from artifactsync.stores.origin import Origin
    from artifactsync.stores.protocol import Body, ObjectInfo, Store


class PrefixStore:
    """The objects of ``store`` below ``prefix``.

    Args:
        store: Where they are.
        prefix: Without slashes at its ends; not empty.
    """

    def __init__(self, store: Store, prefix: str) -> None:
        self.store = store
        self.prefix = prefix.strip("/") + "/"
        self.ordered_listing: bool = getattr(store, "ordered_listing", False)
        self.can_begin = can_begin(store)
        self.origin: Origin | None = None
        """What ``open_store`` made it from, if another process could."""

    @property
    def url(self) -> str:
        """The root as a URL."""
        return f"{self.store.url.rstrip('/')}/{self.prefix[:-1]}"

    def get(self, key: str, *, start: int = 0, end: int | None = None) -> bytes:
        """See ``Store.get``."""
        return self.store.get(self.prefix + key, start=start, end=end)

    def put(self, key: str, body: Body | bytes) -> ObjectInfo:
        """See ``Store.put``."""
        return self._inside(self.store.put(self.prefix + key, body))

    def begin_get(self, key: str, *, start: int, end: int) -> Callable[[], bytes] | None:
        """See ``stores.ahead``."""
        return begin_get(self.store, self.prefix + key, start=start, end=end)

    def begin_put(self, key: str, data: bytes, *, sha256: str) -> Callable[[], ObjectInfo] | None:
        """See ``stores.ahead``."""
        info = begin_put(self.store, self.prefix + key, data, sha256=sha256)
        return None if info is None else lambda: self._inside(info())

    def put_if_absent(self, key: str, body: Body | bytes) -> ObjectInfo:
        """See ``Store.put_if_absent``."""
        return self._inside(self.store.put_if_absent(self.prefix + key, body))

    def head(self, key: str) -> ObjectInfo:
        """See ``Store.head``."""
        return self._inside(self.store.head(self.prefix + key))

    def list(self, prefix: str = "", *, start_after: str = "") -> Iterator[ObjectInfo]:
        """See ``Store.list``."""
        after = self.prefix + start_after if start_after else ""
        for info in self.store.list(self.prefix + prefix, start_after=after):
            if len(info.key) > len(self.prefix):  # the folder's own marker object, made by some consoles, is not in it
                yield self._inside(info)

    def list_folders(self, prefix: str = "") -> Sequence[str]:
        """See ``Store.list_folders``."""
        return self.store.list_folders(self.prefix + prefix)

    def delete(self, keys: Iterable[str]) -> None:
        """See ``Store.delete``."""
        self.store.delete(self.prefix + key for key in keys)

    def copy(self, source: str, target: str) -> ObjectInfo:
        """See ``Store.copy``."""
        return self._inside(self.store.copy(self.prefix + source, self.prefix + target))

    def close(self) -> None:
        """Close the store within."""
        self.store.close()

    def _inside(self, info: ObjectInfo) -> ObjectInfo:
        return dataclasses.replace(info, key=info.key[len(self.prefix) :])
