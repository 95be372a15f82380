"""A folder of this machine, or of a network file system, as a store.

Owns: durable, atomic files below one root. Does not own: what a safe artifact path is (``naming.layout``).

Invariants: a file appears at its key whole and fsynced, or not at all; no symbolic link below the root is ever
followed; the root is made by the first put, not by opening, and never again: where a root that was there is gone, or is
another folder (a mount that was lost), every request fails until it is back, and nothing lands on another disk. Why not
a ready-made local store: the known ones do not fsync, and fold or encode some keys.

Limits: POSIX only. An object cannot have another below it (``a`` and ``a/b``), as in any file system.
``put_if_absent`` needs hard links; where the file system has none it fails, and ``stores.probe`` says so.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import uuid
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from artifactsync.errors import TransientStoreError
from artifactsync.stores.keys import split_key, why_refused
from artifactsync.stores.local_errors import link_error, system_errors
from artifactsync.stores.protocol import Body, BytesBody, ObjectInfo
from artifactsync.stores.unfinished import UnfinishedUpload

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

TEMPORARY_PREFIX = ".artifactsync-tmp-"
"""Begins the names of files that are being written; they are no objects: hidden from ``list``, refused as keys."""

_CHUNK_BYTES = 1024 * 1024
_WRITE_BYTES = 256 * 1024
"""Written by one call at most. The longer a call, the larger the blocks of memory that the kernel takes for what it
writes, and blocks of 2 MiB are what a virtual machine gives back to its host while they are free: to have those again
took up to seven times as long as to fill them (docs/benchmarks.md)."""
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # O_NONBLOCK: a FIFO must not hang us
_GONE_RACES = 16  # a concurrent delete may remove the empty parent between its making and its use


class LocalStore:
    """Objects as files below ``root``.

    Args:
        root: The folder; need not exist.
    """

    ordered_listing = True

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(os.path.abspath(os.path.expanduser(root)))  # noqa: PTH100,PTH111 Path.resolve would follow links
        self._root_inode: int | None = None
        with contextlib.suppress(OSError):
            self._root_inode = self.root.stat().st_ino

    @property
    def url(self) -> str:
        """The root as a ``file://`` URL."""
        return f"file://{self.root}"

    def get(self, key: str, *, start: int = 0, end: int | None = None) -> bytes:
        """Return the bytes ``[start, end)``. See ``Store.get``."""
        with self._errors(key), self._open_object(key) as fd:
            size_bytes = os.fstat(fd).st_size
            end = size_bytes if end is None else min(end, size_bytes)
            return b"".join(_read_range(fd, start, end))

    def put(self, key: str, body: Body | bytes) -> ObjectInfo:
        """Write a file beside its target, fsync, rename, fsync the folder. See ``Store.put``."""
        with self._errors(key), self._written(key, body) as (folder, temporary, name):
            os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
            os.fsync(folder)
            return _info(key, os.stat(name, dir_fd=folder, follow_symlinks=False))

    def put_if_absent(self, key: str, body: Body | bytes) -> ObjectInfo:
        """Write a file beside its target, fsync, ``link(2)`` it there. See ``Store.put_if_absent``."""
        with self._errors(key), self._written(key, body) as (folder, temporary, name):
            try:
                os.link(temporary, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
            except OSError as error:
                # Over NFS an answer may be lost and the resent link then finds its own first success.
                if os.stat(temporary, dir_fd=folder, follow_symlinks=False).st_nlink < 2:  # noqa: PLR2004 two names
                    raise link_error(self.root, key, error) from error
            os.unlink(temporary, dir_fd=folder)
            os.fsync(folder)
            return _info(key, os.stat(name, dir_fd=folder, follow_symlinks=False))

    def head(self, key: str) -> ObjectInfo:
        """Return size, time and tag of a file. See ``Store.head``."""
        with self._errors(key), self._open_object(key) as fd:
            return _info(key, os.fstat(fd))

    def list(self, prefix: str = "", *, start_after: str = "") -> Iterator[ObjectInfo]:
        """Yield the files whose key starts with ``prefix``, in key order. See ``Store.list``."""
        folder = prefix.rpartition("/")[0]
        if folder and why_refused(folder):
            return
        yield from self._walk(f"{folder}/" if folder else "", prefix, start_after)

    def list_folders(self, prefix: str = "") -> Sequence[str]:
        """Return the names of the direct sub-folders. See ``Store.list_folders``."""
        folder = prefix.rstrip("/")
        if folder and why_refused(folder):
            return []
        return [name[:-1] for name, _ in self._entries(prefix) if name.endswith("/")]

    def delete(self, keys: Iterable[str]) -> None:
        """Unlink files, and the folders below the root that become empty. See ``Store.delete``."""
        for key in keys:
            with self._errors(key), contextlib.suppress(FileNotFoundError, NotADirectoryError):
                parts = split_key(key, ours=TEMPORARY_PREFIX)
                with self._open_folder(parts[:-1]) as folder:
                    if not stat.S_ISDIR(os.stat(parts[-1], dir_fd=folder, follow_symlinks=False).st_mode):
                        os.unlink(parts[-1], dir_fd=folder)
                self._remove_empty(parts[:-1])

    def copy(self, source: str, target: str) -> ObjectInfo:
        """Copy a file within the root. See ``Store.copy``."""
        with self._errors(source), self._open_object(source) as fd:
            return self.put(target, _OpenFileBody(fd))

    def unfinished_uploads(self, prefix: str = "") -> Iterator[UnfinishedUpload]:
        """Yield temporary files of puts that have not ended. See ``stores.unfinished``."""
        top = self.root / prefix.rpartition("/")[0]
        for parent, _, names, folder in os.fwalk(top, follow_symlinks=False) if top.is_dir() else ():
            for name in names:
                key = (Path(parent) / name).relative_to(self.root).as_posix()
                if name.startswith(TEMPORARY_PREFIX) and key.startswith(prefix):
                    with contextlib.suppress(FileNotFoundError):
                        at = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mtime
                        moment = datetime.fromtimestamp(at, tz=timezone.utc)
                        yield UnfinishedUpload(key=key, upload_id=name, started_at=moment)

    def abort_upload(self, upload: UnfinishedUpload) -> None:
        """Unlink a temporary file. See ``stores.unfinished``."""
        folder, _, name = upload.key.rpartition("/")
        with self._errors(upload.key), contextlib.suppress(FileNotFoundError, NotADirectoryError):
            if name.startswith(TEMPORARY_PREFIX):
                with self._open_folder(folder.split("/") if folder else []) as fd:
                    os.unlink(name, dir_fd=fd)

    def close(self) -> None:
        """Nothing is held open."""

    def _walk(self, folder: str, prefix: str, start_after: str) -> Iterator[ObjectInfo]:
        """Yield the files below ``folder`` (ending in ``/``, or empty) in key order."""
        for name, status in self._entries(folder):
            key = folder + name
            if key.endswith("/"):
                is_apart = not key.startswith(prefix) and not prefix.startswith(key)
                if not is_apart and (key > start_after or start_after.startswith(key)):
                    yield from self._walk(key, prefix, start_after)
            elif status is not None and key.startswith(prefix) and key > start_after:
                yield _info(key, status)

    def _entries(self, folder: str) -> Sequence[tuple[str, os.stat_result | None]]:
        """Files with their status, and folders (name ends in ``/``) of one folder, in key order."""
        entries: list[tuple[str, os.stat_result | None]] = []
        with (
            self._errors(folder),
            contextlib.suppress(FileNotFoundError),
            # A file, or a link, has nothing below it; but the root itself must be a folder.
            contextlib.suppress(NotADirectoryError) if folder and self.root.is_dir() else contextlib.nullcontext(),
            self._open_folder(folder.split("/")[:-1]) as fd,
            os.scandir(fd) as found,
        ):
            for entry in found:
                if entry.is_dir(follow_symlinks=False):
                    entries.append((entry.name + "/", None))
                elif entry.is_file(follow_symlinks=False) and not entry.name.startswith(TEMPORARY_PREFIX):
                    with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                        entries.append((entry.name, os.stat(entry.name, dir_fd=fd, follow_symlinks=False)))
        return sorted(entries, key=lambda item: item[0])

    @contextlib.contextmanager
    def _open_folder(self, parts: Sequence[str], *, create: bool = False) -> Iterator[int]:
        """Open a folder below the root, following no link; with ``create``, make what is missing, durably."""
        if create:
            self._make_root()
        try:
            fd = os.open(self.root, _FOLDER)
        except FileNotFoundError as error:
            if self._root_inode is not None:
                raise self._root_is_gone() from error
            raise
        try:
            self._recognise_root(fd)
            for part in parts:
                try:
                    below = os.open(part, _FOLDER | os.O_NOFOLLOW, dir_fd=fd)
                except FileNotFoundError:
                    if not create:
                        raise
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(part, dir_fd=fd)
                        os.fsync(fd)
                    below = os.open(part, _FOLDER | os.O_NOFOLLOW, dir_fd=fd)
                os.close(fd)
                fd = below
            yield fd
        finally:
            os.close(fd)

    def _recognise_root(self, fd: int) -> None:
        """Do nothing if the root is the folder that it was before.

        By inode alone: a network file system that is mounted again may have another device number.

        Raises:
            TransientStoreError: it is another one.
        """
        inode = os.fstat(fd).st_ino
        if self._root_inode is None:
            self._root_inode = inode
        elif inode != self._root_inode:
            raise self._root_is_gone()

    def _root_is_gone(self) -> TransientStoreError:
        return TransientStoreError(
            f"the folder {self.root} is not the one that was there before",
            hint="mount it again; or, if it was moved or made anew on purpose, start the process anew",
            url=self.url,
        )

    def _make_root(self) -> None:
        """Make the root and its missing parents, each fsynced into its own parent."""
        if self._root_inode is not None:
            return
        missing = []
        folder = self.root
        while not folder.exists() and not folder.is_symlink():
            missing.append(folder)
            folder = folder.parent
        for made in reversed(missing):
            with contextlib.suppress(FileExistsError):
                made.mkdir()
            parent = os.open(made.parent, _FOLDER)
            try:
                os.fsync(parent)
            finally:
                os.close(parent)

    @contextlib.contextmanager
    def _open_object(self, key: str) -> Iterator[int]:
        """Open a regular file for reading."""
        parts = split_key(key, ours=TEMPORARY_PREFIX)
        with self._open_folder(parts[:-1]) as folder:
            fd = os.open(parts[-1], _READ, dir_fd=folder)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise FileNotFoundError(errno.ENOENT, "not a regular file")
            yield fd
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def _written(self, key: str, body: Body | bytes) -> Iterator[tuple[int, str, str]]:
        """Write a durable temporary file; yield its folder, its name and its final name; remove what is left."""
        parts = split_key(key, ours=TEMPORARY_PREFIX)
        body = BytesBody(body) if isinstance(body, bytes) else body
        temporary = TEMPORARY_PREFIX + uuid.uuid4().hex
        with contextlib.ExitStack() as stack:
            folder, fd = self._create(parts[:-1], temporary, stack)
            try:
                try:
                    written = 0
                    for chunk in body.chunks(_CHUNK_BYTES):
                        _write_all(fd, chunk)
                        _begin_write_back(fd, written, len(chunk))
                        written += len(chunk)
                    os.fsync(fd)
                finally:
                    os.close(fd)
                yield folder, temporary, parts[-1]
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(temporary, dir_fd=folder)

    def _create(self, parts: Sequence[str], temporary: str, stack: contextlib.ExitStack) -> tuple[int, int]:
        """Create the temporary file; return the descriptors of its folder (closed by ``stack``) and of itself."""
        for races_left in reversed(range(_GONE_RACES)):
            with contextlib.ExitStack() as attempt:
                try:
                    folder = attempt.enter_context(self._open_folder(parts, create=True))
                    fd = os.open(temporary, _CREATE, 0o666, dir_fd=folder)
                except FileNotFoundError:
                    if not races_left:
                        raise
                    continue
                stack.push(attempt.pop_all())
                return folder, fd
        raise AssertionError  # the last race raises or returns

    def _remove_empty(self, parts: Sequence[str]) -> None:
        """Remove a folder and its parents below the root while they are empty."""
        for depth in range(len(parts), 0, -1):
            try:
                with self._open_folder(parts[: depth - 1]) as above:
                    os.rmdir(parts[depth - 1], dir_fd=above)
            except OSError:  # noqa: PERF203 not empty, or somebody else was first; each depth may fail
                return

    def _errors(self, key: str) -> contextlib.AbstractContextManager[None]:
        return system_errors(self.root, key)


class _OpenFileBody:
    """The bytes of an open file as a Body; does not own the descriptor."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.size_bytes = os.fstat(fd).st_size

    def chunks(self, chunk_bytes: int) -> Iterator[bytes]:
        """Yield the file's bytes."""
        for start in range(0, self.size_bytes, chunk_bytes):
            yield b"".join(_read_range(self._fd, start, min(start + chunk_bytes, self.size_bytes)))


def _read_range(fd: int, start: int, end: int) -> Iterator[bytes]:
    """Yield ``[start, end)`` of a file, or up to its end if it is shorter."""
    while start < end:
        chunk = os.pread(fd, min(end - start, 1 << 30), start)
        if not chunk:
            return
        yield chunk
        start += len(chunk)


def _write_all(fd: int, chunk: bytes) -> None:
    view = memoryview(chunk)
    while view:
        view = view[os.write(fd, view[:_WRITE_BYTES]) :]


def _begin_write_back(fd: int, start: int, length: int) -> None:
    """Have the disk begin now, so that fsync finds little left to do.

    ``DONTNEED`` starts the writing of dirty pages and drops clean ones alone.
    Source: torvalds/linux, mm/fadvise.c ``generic_fadvise``, read 2026-11.
    """
    with contextlib.suppress(OSError, AttributeError):
        os.posix_fadvise(fd, start, length, os.POSIX_FADV_DONTNEED)


def _info(key: str, status: os.stat_result) -> ObjectInfo:
    return ObjectInfo(
        key=key,
        size_bytes=status.st_size,
        modified_at=datetime.fromtimestamp(status.st_mtime, tz=timezone.utc),
        etag=f"{status.st_ino:x}-{status.st_mtime_ns:x}-{status.st_size:x}",
    )
