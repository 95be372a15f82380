"""Reading a local file once: its bytes for an upload and its sha256 in the same pass.

Owns: ``FileDigest``, ``hash_file``, ``FileBody``. Does not own: when a file is uploaded again (``queue``), or how the
bytes travel (``stores``).

Invariant: a ``FileBody`` whose iteration ended without ``FileChangedError`` gave bytes that the file held all at once:
the file is stat'ed before and after on one descriptor, and the last chunk is handed out only after the second look.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import queue
import stat
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from artifactsync.errors import FileChangedError, ObjectNotFoundError, UploadError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from typing_extensions import Self

READ_BYTES = 4 * 1024 * 1024
"""How much is read at a time for a hash alone: large enough that the interpreter lock is hardly ever held."""

_BEHIND_CHUNKS = 2
"""A file of more chunks than this is hashed by a second thread, which is at most so many chunks behind: sha256 is the
slowest part of an upload (docs/benchmarks.md), and with it in line with the reading neither goes at full speed."""

_RACY_S = 0.02
"""A file written less than this ago may be written again without a new mtime: kernels before 6.13 take file times
from a clock that ticks every 1 to 10 ms. Source: torvalds/linux, fs/inode.c ``current_time``, read 2026-11."""


@dataclass(frozen=True)
class FileDigest:
    """What a file's bytes are known by."""

    size_bytes: int
    """Length of the file."""
    sha256: str
    """sha256 of all of its bytes, in lower-case hex."""


def hash_file(path: str | os.PathLike[str] | int) -> FileDigest:
    """Return the length and sha256 of a file. The interpreter lock is free nearly all the time.

    Args:
        path: A path, or an open descriptor, whose position is neither used nor moved.

    Raises:
        ObjectNotFoundError: there is no file at ``path``, or it is a folder.
    """
    if isinstance(path, int):
        return _hash_descriptor(path)
    fd = open_file(path)
    try:
        return _hash_descriptor(fd)
    finally:
        os.close(fd)


def _hash_descriptor(fd: int) -> FileDigest:
    digest = hashlib.sha256()
    offset = 0
    while data := os.pread(fd, READ_BYTES, offset):
        digest.update(data)
        offset += len(data)
    return FileDigest(offset, digest.hexdigest())


def open_file(path: str | os.PathLike[str]) -> int:
    """Open a regular file for reading and return its descriptor.

    Raises:
        ObjectNotFoundError: nothing is there, or something else than a file.
        UploadError: it is there and cannot be read.
    """
    try:
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ObjectNotFoundError(
            f"there is no file at {os.fspath(path)}", hint="upload a file once it has been written"
        ) from error
    except OSError as error:
        raise UploadError(f"cannot read {os.fspath(path)}: {error.strerror}", hint="check its permissions") from error
    mode = os.fstat(fd).st_mode
    if stat.S_ISREG(mode):
        return fd
    os.close(fd)
    if stat.S_ISDIR(mode):
        raise ObjectNotFoundError(
            f"{os.fspath(path)} is a folder, not a file", hint="upload its files one by one, or use Run.push for a tree"
        )
    raise ObjectNotFoundError(f"{os.fspath(path)} is not a regular file", hint="only regular files can be uploaded")


class _Sha256:
    """A sha256 that is computed, if it is to be so, by a thread of its own, while the next bytes are read and sent."""

    def __init__(self, *, is_behind: bool) -> None:
        self._digest = hashlib.sha256()
        self._waiting: queue.Queue[bytes | None]
        self._thread: threading.Thread | None = None
        if is_behind:
            self._waiting = queue.Queue(_BEHIND_CHUNKS)
            thread = threading.Thread(target=self._work, name="artifactsync-hash", daemon=True)
            with contextlib.suppress(RuntimeError):  # the interpreter is ending and starts no more threads
                thread.start()
                self._thread = thread

    def update(self, data: bytes) -> None:
        """Hash more; may wait until what came before is hashed."""
        if self._thread is None:
            self._digest.update(data)
        else:
            self._waiting.put(data)

    def hexdigest(self) -> str:
        """The hash of all; no more comes after it."""
        self._end()
        return self._digest.hexdigest()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def _end(self) -> None:
        if self._thread is not None:
            self._waiting.put(None)
            self._thread.join()
            self._thread = None

    def _work(self) -> None:
        while (data := self._waiting.get()) is not None:
            self._digest.update(data)


class FileBody:
    """A file as the body of an upload, hashed while it is read. A ``stores.protocol.Body``.

    The length is fixed when the body is made. Nothing is read before the store asks for it, and at most one chunk is
    held. The body owns its descriptor: close it, or use it in a ``with``.

    Args:
        source: A path, or an open descriptor (it is duplicated; its position is neither used nor moved).
        growing: The file is append-only: exactly its length at this moment is sent, and bytes appended later are no
            change. Without it, any change of length or modification time while reading is one.
        on_read: Called with the length of each chunk before it is handed out, on the store's thread; may block (a
            bandwidth limit) or raise (an abort).
        name: What messages call it; the path, unless given.

    Raises:
        ObjectNotFoundError: there is no file at the path.
    """

    def __init__(
        self,
        source: str | Path | int,
        *,
        growing: bool = False,
        on_read: Callable[[int], None] | None = None,
        name: str = "",
    ) -> None:
        self._fd = os.dup(source) if isinstance(source, int) else open_file(source)
        self._name = name or (f"descriptor {source}" if isinstance(source, int) else os.fspath(source))
        self._growing = growing
        self._on_read = on_read
        self._before = os.fstat(self._fd)
        self._digest: FileDigest | None = None

    @property
    def size_bytes(self) -> int:
        """Exact length of what is sent."""
        return self._before.st_size

    @property
    def digest(self) -> FileDigest | None:
        """The digest of the bytes of the last whole iteration; None before there was one."""
        return self._digest

    def chunks(self, chunk_bytes: int) -> Iterator[bytes]:
        """Yield the file's bytes in order, each chunk but the last exactly ``chunk_bytes`` long.

        Raises:
            FileChangedError: the file changed since the body was made.
        """
        self._settle()
        offset, size = 0, self.size_bytes
        with _Sha256(is_behind=size > _BEHIND_CHUNKS * chunk_bytes) as digest:
            while True:
                data = self._read(min(chunk_bytes, size - offset), offset)
                digest.update(data)
                offset += len(data)
                is_last = offset == size
                if is_last:
                    self._check_unchanged()
                    self._digest = FileDigest(size, digest.hexdigest())
                if self._on_read is not None:
                    self._on_read(len(data))
                if data:
                    yield data
                if is_last:
                    return

    def read(self) -> bytes:
        """All of the bytes at once, of a file that is small.

        Raises:
            FileChangedError: the file changed since the body was made.
        """
        self._settle()
        data = self._read(self.size_bytes, 0)
        self._check_unchanged()
        self._digest = FileDigest(len(data), hashlib.sha256(data).hexdigest())
        if self._on_read is not None:
            self._on_read(len(data))
        return data

    def digest_now(self) -> FileDigest:
        """The digest of what the body sends, reading the file if no iteration was whole yet.

        Raises:
            FileChangedError: the file changed since the body was made.
        """
        if self._digest is None:
            on_read, self._on_read = self._on_read, None
            try:
                for _ in self.chunks(READ_BYTES):
                    pass
            finally:
                self._on_read = on_read
        assert self._digest is not None
        return self._digest

    def close(self) -> None:
        """Close the descriptor. Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self, length: int, offset: int) -> bytes:
        data = os.pread(self._fd, length, offset)
        if len(data) == length:
            return data
        pieces = [data]  # a short read: a signal, a network file system, or the file was cut
        missing = length - len(data)
        while missing:
            data = os.pread(self._fd, missing, offset + length - missing)
            if not data:
                raise self._changed(f"it ended after {offset + length - missing} of {self.size_bytes} bytes")
            pieces.append(data)
            missing -= len(data)
        return b"".join(pieces)

    def _settle(self) -> None:
        """Let a file that was written this instant grow old enough that another write would show in its mtime."""
        age_s = time.time() - self._before.st_mtime_ns / 1e9
        if not self._growing and age_s < _RACY_S:  # below 0 where the clock was set back, or is not the file server's
            time.sleep(min(_RACY_S, _RACY_S - age_s))

    def _check_unchanged(self) -> None:
        before, after = self._before, os.fstat(self._fd)
        if self._growing:
            if after.st_size < before.st_size:
                raise self._changed(f"it shrank from {before.st_size} to {after.st_size} bytes")
            return
        if after.st_size != before.st_size:
            raise self._changed(f"it went from {before.st_size} to {after.st_size} bytes")
        if after.st_mtime_ns != before.st_mtime_ns:
            raise self._changed("it was written to")

    def _changed(self, what: str) -> FileChangedError:
        return FileChangedError(
            f"{self._name} changed while it was read: {what}",
            hint="write to another name and rename it when it is whole, or upload it as growing if it is append-only",
        )
