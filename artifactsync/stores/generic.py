"""Any fsspec filesystem as a store.

Owns: keys as paths below a root, plain-prefix listings, fresh answers. Does not own: how to write so that a put is
whole (``generic_writers``), what errors mean (``generic_errors``).

Invariant: nothing is answered from a listing cache, and ``put_if_absent`` is refused where it cannot be atomic.

Limits: a listing is held in memory; a large body goes over a temporary file; the patience of s3fs and the like with
broken connections is their own. S3, GCS, Azure, files and memory have stores of their own, which do all of it better.
"""

from __future__ import annotations

import contextlib
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import fsspec
from fsspec.implementations.dirfs import DirFileSystem

from artifactsync.errors import (
    ArtifactSyncError,
    BucketNotFoundError,
    ConfigurationError,
    MissingPackageError,
    UnfencedStoreError,
    redact_url,
)
from artifactsync.stores.foreign_logs import FSSPEC, hide_secrets
from artifactsync.stores.generic_errors import translated
from artifactsync.stores.generic_writers import RenameWriter, writer_for
from artifactsync.stores.keys import split_key
from artifactsync.stores.local import TEMPORARY_PREFIX
from artifactsync.stores.object_errors import printable_cause
from artifactsync.stores.protocol import Body, BytesBody, ObjectInfo

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from fsspec.spec import AbstractFileSystem


class GenericStore:
    """The files of an fsspec filesystem below ``root``.

    Args:
        fs: A filesystem, or any fsspec URL.
        root: The folder in it (with its bucket, where there are any); a URL has its own.
        storage_options: For a URL: what its filesystem takes.

    Raises:
        ConfigurationError: no filesystem has this URL, or it does not take these options.
        MissingPackageError: the filesystem's package is not installed.
    """

    ordered_listing = True

    def __init__(
        self, fs: AbstractFileSystem | str, root: str = "", *, storage_options: Mapping[str, Any] | None = None
    ) -> None:
        if isinstance(fs, str):
            self._url = redact_url(fs).rstrip("/")
            fs, root = _open(fs, dict(storage_options or {}))
        else:
            url = fs.unstrip_protocol(root or fs.root_marker)
            self._url = redact_url(url if url.startswith("file:") else url.replace(":///", "://", 1)).rstrip("/")
        while isinstance(fs, DirFileSystem):  # its own names would hide what the filesystem below can do
            fs, root = fs.fs, fs.sep.join(part for part in (fs.path, root.lstrip("/")) if part)
        self._fs = fs
        self._root = str(fs._strip_protocol(root)).rstrip("/")  # noqa: SLF001 fsspec's documented way
        self._writer = writer_for(fs)

    def __repr__(self) -> str:
        return f"GenericStore({type(self._fs).__name__}, {self._url!r})"

    @property
    def url(self) -> str:
        """The root as a URL."""
        return self._url

    def get(self, key: str, *, start: int = 0, end: int | None = None) -> bytes:
        """Return the bytes ``[start, end)``. See ``Store.get``."""
        with self._errors(key):
            size_bytes = int(self._file_info(key)["size"])
            end = size_bytes if end is None else min(end, size_bytes)
            if start >= end:
                return b""
            # A whole object is read without a range: it may be replaced by a longer one between the two requests.
            part = {} if start == 0 and end == size_bytes else {"start": start, "end": end}
            return bytes(self._fs.cat_file(self._path(key), **part))

    def put(self, key: str, body: Body | bytes) -> ObjectInfo:
        """Write an object. See ``Store.put``."""
        return self._write(key, body, is_create=False)

    def put_if_absent(self, key: str, body: Body | bytes) -> ObjectInfo:
        """Write an object where the filesystem itself can do so only if there is none. See ``Store.put_if_absent``.

        Raises:
            UnfencedStoreError: it cannot.
        """
        if not self._writer.can_create:
            raise UnfencedStoreError(
                f"fsspec's {type(self._fs).__name__} has no atomic create-only write",
                hint="use a bucket or a local folder as the remote",
                url=f"{self.url}/{key}",
            )
        return self._write(key, body, is_create=True)

    def head(self, key: str) -> ObjectInfo:
        """Return what the filesystem knows. See ``Store.head``."""
        with self._errors(key):
            return _info(key, self._file_info(key))

    def list(self, prefix: str = "", *, start_after: str = "") -> Iterator[ObjectInfo]:
        """Yield the files whose key starts with ``prefix``, in order. See ``Store.list``."""
        with self._errors(prefix):
            folder = self._path(prefix.rpartition("/")[0]) if "/" in prefix else self._root
            self._fs.invalidate_cache()
            found = self._fs.find(folder, detail=True)
        cut = len(self._root) + 1 if self._root else 0
        by_key = {str(path)[cut:]: info for path, info in found.items() if info.get("type") == "file"}
        for key in sorted(by_key):
            is_ours = key.rpartition("/")[2].startswith(TEMPORARY_PREFIX)
            if key.startswith(prefix) and key > start_after and not is_ours:
                yield _info(key, by_key[key])

    def list_folders(self, prefix: str = "") -> Sequence[str]:
        """Return the names of the direct sub-folders that have a file. See ``Store.list_folders``."""
        with self._errors(prefix):
            self._fs.invalidate_cache()
            try:
                entries = self._fs.ls(self._path(prefix.rstrip("/")) if prefix else self._root, detail=True)
            except (FileNotFoundError, NotADirectoryError):
                return []
        names = {str(e["name"]).rstrip("/").rpartition("/")[2] for e in entries if e.get("type") == "directory"}
        has_empty_folders = isinstance(self._writer, RenameWriter)
        return sorted(n for n in names if not has_empty_folders or next(self.list(f"{prefix}{n}/"), None) is not None)

    def delete(self, keys: Iterable[str]) -> None:
        """Remove files, one after the other. See ``Store.delete``."""
        for key in keys:
            with self._errors(key), contextlib.suppress(FileNotFoundError):
                self._writer.remove(self._path(key))

    def copy(self, source: str, target: str) -> ObjectInfo:
        """Copy a file. See ``Store.copy``."""
        with self._errors(source):
            info = self._file_info(source)
            split_key(target, ours=TEMPORARY_PREFIX)
            self._writer.copy(self._path(source), self._path(target))
            return ObjectInfo(key=target, size_bytes=int(info["size"]))

    def close(self) -> None:
        """The filesystem is fsspec's, which shares it."""

    def _write(self, key: str, body: Body | bytes, *, is_create: bool) -> ObjectInfo:
        split_key(key, ours=TEMPORARY_PREFIX)
        source = BytesBody(body) if isinstance(body, bytes) else body
        with self._errors(key, is_create=is_create):
            try:
                self._writer.write(self._path(key), source, is_create=is_create)
            except FileNotFoundError as error:
                raise BucketNotFoundError(
                    f"{self.url} does not exist", hint="create it, or check the remote", url=self.url
                ) from error
        return ObjectInfo(key=key, size_bytes=source.size_bytes)

    def _file_info(self, key: str) -> dict[str, Any]:
        self._fs.invalidate_cache()
        info: dict[str, Any] = self._fs.info(self._path(key))
        if info.get("type") != "file":
            raise FileNotFoundError(key)
        return info

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}" if self._root else key

    @contextlib.contextmanager
    def _errors(self, key: str, *, is_create: bool = False) -> Iterator[None]:
        """Within: whatever the filesystem raises leaves as an error of ours."""
        try:
            yield
        except ArtifactSyncError:
            raise
        except Exception as error:  # noqa: BLE001 - every kind that a filesystem may raise
            raise translated(error, url=f"{self.url}/{key}", is_create=is_create) from printable_cause(error)


def _open(url: str, options: dict[str, Any]) -> tuple[Any, str]:
    """The filesystem of a URL, and the path in it."""
    shown = redact_url(url)
    hide_secrets(FSSPEC)
    try:
        fs, path = fsspec.core.url_to_fs(url, **{"use_listings_cache": False, **options})
    except ImportError as error:
        is_fsspec_advice = not isinstance(error, ModuleNotFoundError)
        hint = str(error) if is_fsspec_advice else f"pip install {error.name}"
        raise MissingPackageError(f"{shown} needs a Python package that is not there", hint=hint, url=url) from error
    except (ValueError, TypeError) as error:
        hint = "check the URL and the storage options; python -c 'import fsspec; print(fsspec.available_protocols())'"
        raise ConfigurationError(f"no filesystem opens {shown}: {error}", hint=hint, url=url) from printable_cause(
            error
        )
    except Exception as error:  # noqa: BLE001 - some connect at once
        raise translated(error, url=shown) from printable_cause(error)
    if isinstance(fs, DirFileSystem) and path == fs.path:
        path = ""  # fsspec gives the folder of dir::… twice
    return fs, path


def _info(key: str, info: Mapping[str, Any]) -> ObjectInfo:
    etag = info.get("ETag") or info.get("etag")
    return ObjectInfo(
        key=key, size_bytes=int(info["size"]), modified_at=_time_of(info), etag=str(etag) if etag else None
    )


def _time_of(info: Mapping[str, Any]) -> datetime | None:
    """The time of the last write, wherever and however the filesystem keeps it."""
    for name in ("LastModified", "updated", "mtime", "last_modified", "created"):
        value = info.get(name)
        if isinstance(value, int | float):
            return datetime.fromtimestamp(value, timezone.utc)
        if isinstance(value, str):
            with contextlib.suppress(ValueError):
                value = datetime.fromisoformat(value.replace("Z", "+00:00"))
        if isinstance(value, datetime):
            return value if value.tzinfo else value.replace(tzinfo=timezone.utc)
    return None
