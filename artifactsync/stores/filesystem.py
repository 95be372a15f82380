"""Any store as an fsspec filesystem: what pandas, torch, zarr and the like read and write through.

Owns: folders (a store has only keys) and the words of fsspec. Does not own: bytes (the store), open files
(``filesystem_files``).

Invariants: nothing is cached, and nothing is visible at a path before it is whole. A folder exists while it has a file.
No path leads out of the store, and no name in it leads out of the folder that it is fetched into: paths with an empty,
``.`` or ``..`` part or a NUL are refused, and keys that only such a path would name are not shown (``Run.artifacts``
shows them).
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from fsspec.callbacks import DEFAULT_CALLBACK
from fsspec.spec import AbstractFileSystem

from artifactsync.errors import AlreadyExistsError, ConfigurationError, ObjectNotFoundError, UnsafeKeyError
from artifactsync.stores.filesystem_files import FileBody, ReadFile, TextWriteFile, WriteFile
from artifactsync.stores.keys import why_refused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    from artifactsync.stores.protocol import Body, ObjectInfo, Store

_RANGE_BYTES = 8 * 2**20
_PATIENCE_KEYS = 1000  # a page of most services: a folder with more is jumped over when only its name is wanted
_LAST_CHARACTER = "\U0010ffff"


def _opened_again(kind: type[StoreFileSystem], reopen: Callable[[], Store]) -> StoreFileSystem:
    return kind(reopen(), reopen=reopen)


class StoreFileSystem(AbstractFileSystem):  # type: ignore[misc]  # fsspec ships no types
    """The keys of ``store`` as paths. Paths may begin with ``/`` or ``artifactsync-store://``; both mean the root.

    Args:
        store: Any store; stays open.
        reopen: Opens it again in another process: a function of a module, or a ``partial`` of one. Without it, the
            file system cannot be pickled.
    """

    protocol: ClassVar[str] = "artifactsync-store"
    root_marker: ClassVar[str] = ""
    cachable: ClassVar[bool] = False  # one per store, not one per arguments

    def __init__(self, store: Store, *, reopen: Callable[[], Store] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.store = store
        self._reopen = reopen

    def __reduce__(self) -> Any:
        """Ray, Dask and data loaders take a file system along to other processes; connections cannot go there."""
        if self._reopen is None:
            raise TypeError(f"the file system of {self.store.url} was made from an open store, and cannot be pickled")
        return _opened_again, (type(self), self._reopen)

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        stripped = super()._strip_protocol(path)
        return [p.lstrip("/") for p in stripped] if isinstance(stripped, list) else stripped.lstrip("/")

    def _key(self, path: Any) -> str:
        """The key of a path that a caller gave.

        Raises:
            UnsafeKeyError: the path leads elsewhere, or nowhere: it has an empty, ``.`` or ``..`` part, or a NUL.
        """
        key = str(self._strip_protocol(path))
        if key and (reason := why_refused(key)):
            hint = "use paths below the folder, such as checkpoints/model.pt"
            raise UnsafeKeyError(f"the path {key!r} {reason}", hint=hint, url=self.store.url)
        return key

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        """Return name, size and type of a file or folder."""
        del kwargs
        path = self._key(path)
        if not path:
            return _folder("")
        try:
            return _file(self.store.head(path))
        except ObjectNotFoundError:
            if next(iter(self.store.list(f"{path}/")), None) is None:
                raise
            return _folder(path)

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        """Return what is directly below a folder, or the file itself."""
        del kwargs
        path = self._key(path)
        entries = sorted(self._children(f"{path}/" if path else ""), key=lambda entry: str(entry["name"]))
        if not entries and path:
            entries = [_file(self.store.head(path))]
        return entries if detail else [entry["name"] for entry in entries]

    def find(
        self, path: str, maxdepth: int | None = None, withdirs: bool = False, detail: bool = False, **kwargs: Any
    ) -> Any:
        """Return all files below a folder; one listing, where depth and folders are not asked for."""
        if maxdepth is not None or withdirs:
            return super().find(path, maxdepth=maxdepth, withdirs=withdirs, detail=detail, **kwargs)
        path = self._key(path)
        listing = self.store.list(f"{path}/" if path else "")
        found = {info.key: _file(info) for info in listing if not why_refused(info.key)}
        if not found and path:
            with contextlib.suppress(ObjectNotFoundError):
                found = {path: _file(self.store.head(path))}
        return {name: found[name] for name in sorted(found)} if detail else sorted(found)

    def modified(self, path: str) -> datetime:
        """Return the time of the last write."""
        path = self._key(path)
        modified_at = self.store.head(path).modified_at
        if modified_at is None:
            raise ConfigurationError(f"{self.store.url} keeps no times", url=f"{self.store.url}/{path}")
        return modified_at

    def open(self, path: str, mode: str = "rb", block_size: int | None = None, **kwargs: Any) -> Any:
        """Open a file; see ``fsspec``. Modes: ``r``, ``w``, ``x``, ``a``, each with ``b`` or as text."""
        if "b" in mode or not set(mode) & set("wxa"):
            return super().open(path, mode, block_size, **kwargs)
        text = {name: kwargs.pop(name) for name in ("encoding", "errors", "newline") if name in kwargs}
        return TextWriteFile(super().open(path, mode.replace("t", "") + "b", block_size, **kwargs), **text)

    def _open(
        self, path: str, mode: str = "rb", block_size: int | None = None, autocommit: bool = True, **kwargs: Any
    ) -> Any:
        path = self._key(path)
        if mode == "rb":
            info = self.info(path)
            if info["type"] != "file":
                raise ObjectNotFoundError(f"{self.store.url}/{path} is a folder", url=f"{self.store.url}/{path}")
            kwargs.setdefault("cache_type", "readahead")
            return ReadFile(self, self.store, path, block_size=block_size or "default", size=info["size"], **kwargs)
        if mode not in {"wb", "xb", "ab"}:
            raise ConfigurationError(f"the mode {mode!r} is not possible on {self.store.url}", hint="use r, w, x or a")
        first = b""
        if mode == "xb" and self.isfile(path):  # told early; what counts is the put at the end
            raise AlreadyExistsError(f"{self.store.url}/{path} exists already", url=f"{self.store.url}/{path}")
        if mode == "ab":
            with contextlib.suppress(ObjectNotFoundError):
                first = self.store.get(path)
        put = self.store.put_if_absent if mode == "xb" else self.store.put
        return WriteFile(lambda body: put(path, body), first=first, autocommit=autocommit)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        """Return a file's bytes, or those of a range; negative positions count from the end."""
        del kwargs
        path = self._key(path)
        if (start or 0) < 0 or (end or 0) < 0:
            size_bytes = self.store.head(path).size_bytes
            start, end, _ = slice(start, end).indices(size_bytes)
        return self.store.get(path, start=start or 0, end=end)

    def pipe_file(self, path: str, value: Any, mode: str = "overwrite", **kwargs: Any) -> None:
        """Write a file; with ``mode="create"`` only if there is none, atomically.

        Raises:
            AlreadyExistsError: there is one (a FileExistsError).
        """
        del kwargs
        self._put(self._key(path), bytes(value), mode)

    def put_file(
        self, lpath: str | os.PathLike[str], rpath: str, callback: Any = DEFAULT_CALLBACK, mode: str = "overwrite",
        **kwargs: Any,
    ) -> None:  # fmt: skip
        """Upload a local file."""
        del kwargs
        if Path(lpath).is_dir():
            return
        with Path(lpath).open("rb") as file:
            size_bytes = os.fstat(file.fileno()).st_size
            callback.set_size(size_bytes)
            self._put(self._key(rpath), FileBody(file, size_bytes), mode)
        callback.absolute_update(size_bytes)

    def get_file(self, rpath: str, lpath: Any, callback: Any = DEFAULT_CALLBACK, **kwargs: Any) -> None:
        """Download a file; it appears at ``lpath`` when it is whole. ``Run.pull`` also verifies it."""
        if hasattr(lpath, "write"):
            super().get_file(rpath, lpath, callback=callback, **kwargs)
            return
        rpath, target = self._key(rpath), Path(lpath)
        info = self.info(rpath)
        if info["type"] == "directory":
            target.mkdir(parents=True, exist_ok=True)
            return
        callback.set_size(info["size"])
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".artifactsync-", dir=target.parent) as folder:
            temporary = Path(folder) / "part"
            with temporary.open("wb") as file:
                for start in range(0, info["size"], _RANGE_BYTES):
                    file.write(self.store.get(rpath, start=start, end=min(start + _RANGE_BYTES, info["size"])))
                    callback.absolute_update(file.tell())
            temporary.replace(target)

    def cp_file(self, path1: str, path2: str, **kwargs: Any) -> None:
        """Copy a file within the store."""
        del kwargs
        self.store.copy(self._key(path1), self._key(path2))

    def rm_file(self, path: str) -> None:
        """Remove a file."""
        self.store.delete([self._key(path)])

    def rm(self, path: Any, recursive: bool = False, maxdepth: int | None = None) -> None:
        """Remove files, and with ``recursive`` folders."""
        found = self.expand_path(path, recursive=recursive, maxdepth=maxdepth)
        self.store.delete([key for key in map(self._key, found) if key])

    def _put(self, path: str, body: Body | bytes, mode: str) -> None:
        if mode == "create":
            self.store.put_if_absent(path, body)
        else:
            self.store.put(path, body)

    def _children(self, prefix: str) -> Iterator[dict[str, Any]]:
        """Files and folders directly below ``prefix`` (ends in ``/``, or is empty)."""
        is_ordered = getattr(self.store, "ordered_listing", False)
        folders: set[str] = set()
        after: str | None = ""
        while after is not None:
            keys_inside, listing, after = 0, self.store.list(prefix, start_after=after), None
            for info in listing:
                name, slash, inside = info.key[len(prefix) :].partition("/")
                if why_refused(name):  # an empty one is the folder's own marker object, made by some consoles
                    continue
                if not slash:
                    yield _file(info)
                    continue
                if name not in folders and inside and why_refused(inside.removesuffix("/")):  # no path leads to it
                    continue
                keys_inside = 1 if name not in folders else keys_inside + 1
                if name not in folders:
                    folders.add(name)
                    yield _folder(prefix + name)
                if is_ordered and keys_inside > _PATIENCE_KEYS:
                    after = f"{prefix}{name}/{_LAST_CHARACTER}"
                    break


def _file(info: ObjectInfo) -> dict[str, Any]:
    return {
        "name": info.key,
        "size": info.size_bytes,
        "type": "file",
        "modified": info.modified_at,
        "etag": info.etag,
    }


def _folder(path: str) -> dict[str, Any]:
    return {"name": path, "size": 0, "type": "directory"}
