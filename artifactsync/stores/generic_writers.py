"""How each kind of fsspec filesystem is written to, so that a put is seen as a whole or not at all.

Owns: the writers and the choice among them. Does not own: keys, errors, reading (``generic``).

Invariant: a writer claims ``create`` only where the filesystem itself makes it atomic. fsspec's own default for
``mode="create"`` looks first and writes then, so two writers may both win: it is never used.

Read in the sources of fsspec 2026.9, s3fs 2026.9 and gcsfs 2026.10: s3fs sends ``If-None-Match: *`` (also when it
completes a multipart upload), gcsfs sends ``ifGenerationMatch=0``, the local filesystem has ``link``; memory, ftp,
sftp, smb, webdav and all others have nothing.
"""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
import uuid
from typing import TYPE_CHECKING, Any, Protocol

from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.spec import AbstractFileSystem

from artifactsync.stores.local import TEMPORARY_PREFIX

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from artifactsync.stores.protocol import Body

_CHUNK_BYTES = 8 * 2**20
_SMALL_BYTES = 2**20  # put from memory; larger bodies go over a temporary file, and are sent from it in parts
_RACES = 16  # a concurrent delete may remove the empty parent between its making and its use


class Writer(Protocol):
    """One way of writing."""

    can_create: bool
    """Whether ``write(…, is_create=True)`` is atomic."""

    def write(self, path: str, body: Body, *, is_create: bool) -> None:
        """Write a whole object at ``path``; FileExistsError if ``is_create`` and there is one."""

    def copy(self, source: str, target: str) -> None:
        """Copy an object."""

    def remove(self, path: str) -> None:
        """Remove an object; FileNotFoundError if there is none."""


def writer_for(fs: Any) -> Writer:
    """The writer for a filesystem."""
    if isinstance(fs, LocalFileSystem):
        return LocalWriter(fs)
    if isinstance(fs, MemoryFileSystem):
        return MemoryWriter(fs)
    family = {kind.__module__.partition(".")[0] for kind in type(fs).__mro__}
    if family & {"s3fs", "gcsfs"}:
        return ServiceWriter(fs, can_create=True)
    has_rename = getattr(type(fs), "mv", None) is not AbstractFileSystem.mv and not getattr(fs, "async_impl", False)
    return RenameWriter(fs) if has_rename else ServiceWriter(fs, can_create=False)


class ServiceWriter:
    """For object stores: one request, or a multipart upload, that is visible when it is complete.

    Args:
        fs: The filesystem.
        can_create: Whether its ``mode="create"`` is a condition that the service itself checks.
    """

    def __init__(self, fs: Any, *, can_create: bool) -> None:
        self._fs = fs
        self.can_create = can_create

    def write(self, path: str, body: Body, *, is_create: bool) -> None:
        """Put from memory, or from a temporary file where it is large."""
        options = {"mode": "create"} if is_create else {}
        if body.size_bytes <= _SMALL_BYTES:
            self._fs.pipe_file(path, b"".join(body.chunks(_CHUNK_BYTES)), **options)
            return
        with tempfile.NamedTemporaryFile(prefix="artifactsync-") as file:
            for chunk in body.chunks(_CHUNK_BYTES):
                file.write(chunk)
            file.flush()
            self._fs.put_file(file.name, path, **options)

    def copy(self, source: str, target: str) -> None:
        """Let the service copy."""
        self._fs.cp_file(source, target)

    def remove(self, path: str) -> None:
        """Remove."""
        self._fs.rm_file(path)


class MemoryWriter(ServiceWriter):
    """For fsspec's memory filesystem: an object appears when its bytes are there, but only if put in one piece."""

    def __init__(self, fs: Any) -> None:
        super().__init__(fs, can_create=False)

    def write(self, path: str, body: Body, *, is_create: bool) -> None:
        """Put from memory."""
        del is_create  # never asked for: can_create is False
        if self._fs.isdir(path):
            raise FileExistsError(errno.EEXIST, "a folder has this name", path)
        self._fs.pipe_file(path, b"".join(body.chunks(_CHUNK_BYTES)))


class RenameWriter:
    """For filesystems with folders: a hidden file beside the target, then a rename."""

    can_create = False

    def __init__(self, fs: Any) -> None:
        self._fs = fs

    def write(self, path: str, body: Body, *, is_create: bool) -> None:
        """Write beside, then rename."""
        with self._beside(path) as temporary:
            self._write_file(temporary, body)
            self._publish(temporary, path, is_create=is_create)

    def copy(self, source: str, target: str) -> None:
        """Copy beside, then rename."""
        if not self._fs.isfile(source):
            raise FileNotFoundError(source)
        with self._beside(target) as temporary:
            self._in_folder(temporary, lambda: self._fs.cp_file(source, temporary))
            self._publish(temporary, target, is_create=False)

    def remove(self, path: str) -> None:
        """Remove a file, never a folder."""
        if not self._fs.isfile(path):
            raise FileNotFoundError(path)
        self._fs.rm_file(path)

    @contextlib.contextmanager
    def _beside(self, path: str) -> Iterator[str]:
        """A hidden name beside ``path``; what is left there at the end is removed."""
        temporary = f"{path.rpartition('/')[0]}/{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
        try:
            yield temporary
        finally:
            with contextlib.suppress(OSError):
                self._fs.rm_file(temporary)

    def _in_folder(self, path: str, write: Callable[[], object]) -> None:
        """Write at ``path``, making its folder."""
        folder = path.rpartition("/")[0]
        for tries_left in reversed(range(_RACES)):
            self._fs.makedirs(folder, exist_ok=True)
            try:
                write()
            except FileNotFoundError:
                if not tries_left:
                    raise
            else:
                return

    def _write_file(self, path: str, body: Body) -> None:
        def write() -> None:
            with self._fs.open(path, "wb") as file:
                for chunk in body.chunks(_CHUNK_BYTES):
                    file.write(chunk)
                self._sync(file)

        self._in_folder(path, write)

    def _sync(self, file: Any) -> None:
        """Nothing more than a close can be asked of a filesystem in general."""

    def _publish(self, temporary: str, path: str, *, is_create: bool) -> None:
        del is_create  # never asked for: can_create is False
        if self._fs.isdir(path):
            raise FileExistsError(errno.EEXIST, "a folder has this name", path)  # some would move the file into it
        self._fs.mv(temporary, path)


class LocalWriter(RenameWriter):
    """For fsspec's local filesystem: as above, with fsync, and with ``link`` where it must not replace."""

    can_create = True

    def remove(self, path: str) -> None:
        """Remove a file and the folders that become empty."""
        super().remove(path)
        with contextlib.suppress(OSError):  # the first that is not empty ends it
            while True:
                path = path.rpartition("/")[0]
                self._fs.rmdir(path)

    def _sync(self, file: Any) -> None:
        file.flush()
        os.fsync(file.fileno())

    def _publish(self, temporary: str, path: str, *, is_create: bool) -> None:
        if is_create:
            self._fs.link(temporary, path)
        else:
            super()._publish(temporary, path, is_create=False)
