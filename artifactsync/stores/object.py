"""Object stores through obstore: S3 and its likes, Azure Blob Storage, and memory.

Owns: requests and their bodies. Does not own: credentials (``credentials``), patience (``retry``).
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import obstore
from obstore.exceptions import AlreadyExistsError as ObstoreExistsError

from artifactsync.errors import AlreadyExistsError, ObjectNotFoundError, UnsafeKeyError
from artifactsync.stores.protocol import Body, ObjectInfo

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

_memory: dict[str, Any] = {}
_memory_lock = threading.Lock()


class ObjectStore:
    """An obstore store."""

    ordered_listing = True

    def __init__(self, inner: Any, url: str) -> None:
        self._inner = inner
        self._url = url

    @property
    def url(self) -> str:
        """The root as a URL."""
        return self._url

    def get(self, key: str, *, start: int = 0, end: int | None = None) -> bytes:
        """See ``Store.get``."""
        size_bytes = self.head(key).size_bytes
        end = size_bytes if end is None else min(end, size_bytes)
        if start >= end:
            return b""
        return bytes(obstore.get_range(self._inner, key, start=start, end=end))

    def put(self, key: str, body: Body | bytes) -> ObjectInfo:
        """See ``Store.put``."""
        return self._put(key, body, "overwrite")

    def put_if_absent(self, key: str, body: Body | bytes) -> ObjectInfo:
        """See ``Store.put_if_absent``."""
        try:
            return self._put(key, body, "create")
        except ObstoreExistsError as error:
            raise AlreadyExistsError(f"{self._url}/{key} exists already", url=f"{self._url}/{key}") from error

    def _put(self, key: str, body: Body | bytes, mode: Any) -> ObjectInfo:
        self._check(key)
        data = body if isinstance(body, bytes) else b"".join(body.chunks(8 << 20))
        result = obstore.put(self._inner, key, data, mode=mode, use_multipart=False)
        return ObjectInfo(key=key, size_bytes=len(data), etag=result["e_tag"])

    def head(self, key: str) -> ObjectInfo:
        """See ``Store.head``."""
        self._check(key)
        try:
            return _info(obstore.head(self._inner, key))
        except FileNotFoundError as error:
            raise ObjectNotFoundError(f"{self._url}/{key} does not exist", url=f"{self._url}/{key}") from error

    def list(self, prefix: str = "", *, start_after: str = "") -> Iterator[ObjectInfo]:
        """See ``Store.list``."""
        folder = prefix.rpartition("/")[0]
        for chunk in obstore.list(self._inner, folder or None, offset=start_after or None):
            for meta in chunk:
                if meta["path"].startswith(prefix):
                    yield _info(meta)

    def list_folders(self, prefix: str = "") -> Sequence[str]:
        """See ``Store.list_folders``."""
        found = obstore.list_with_delimiter(self._inner, prefix.rstrip("/") or None)["common_prefixes"]
        return [name.rstrip("/").rpartition("/")[2] for name in found]

    def delete(self, keys: Iterable[str]) -> None:
        """See ``Store.delete``."""
        obstore.delete(self._inner, list(keys))

    def copy(self, source: str, target: str) -> ObjectInfo:
        """See ``Store.copy``."""
        self.head(source)
        obstore.copy(self._inner, source, target)
        return self.head(target)

    def close(self) -> None:
        """Connections go with the object."""

    def _check(self, key: str) -> None:
        if not key or any(part in {"", ".", ".."} for part in key.split("/")):
            raise UnsafeKeyError(f"the key {key!r} has an empty, '.' or '..' part")


def memory_store(name: str) -> ObjectStore:
    """The store of that name in this process's memory."""
    from obstore.store import MemoryStore  # noqa: PLC0415

    with _memory_lock:
        inner = _memory.setdefault(name, None) or MemoryStore()
        _memory[name] = inner
    return ObjectStore(inner, f"memory://{name}")


def _info(meta: Any) -> ObjectInfo:
    return ObjectInfo(
        key=meta["path"], size_bytes=meta["size"], modified_at=meta["last_modified"], etag=meta.get("e_tag")
    )
