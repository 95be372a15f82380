"""Writing a file image to the disk, where it is either whole or not there.

Owns: the file's way to the disk and its sha256. Does not own: what is in it (``image``), or its name (``saving``).

Invariant: the final name appears by an atomic rename after fsync; a crash at any point leaves at most a hidden
temporary file beside it.
"""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from artifactsync.checkpoint.image import FileImage
from artifactsync.errors import DestinationError, DiskFullError
from artifactsync.transfer.being_written import FileBeingWritten

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from artifactsync.checkpoint.image import Image
    from artifactsync.checkpoint.snapshot import Snapshot

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
_WRITE_BACK_BYTES = 16 * 1024 * 1024  # so much is written before the disk is asked to begin


@dataclass(frozen=True)
class WrittenFile:
    """A file that is on disk, whole."""

    path: Path
    """Where it is."""
    size_bytes: int
    """Its length."""
    sha256: str
    """Hash of its bytes, taken while they were written."""


class FileWriting:
    """One file on its way to the disk. Making it opens a hidden file; ``run`` fills it and gives it its name.

    Args:
        image: What to write.
        path: Where; a file of that name is replaced.

    Raises:
        DiskFullError, DestinationError: no file can be made there.
    """

    def __init__(self, image: Image, path: Path) -> None:
        self._image, self._path = image, path
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._temporary.unlink(missing_ok=True)  # left by a killed process that had this one's number
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
            self._fd = os.open(self._temporary, flags, 0o666)
        except OSError as error:
            raise _failure(error, path) from error
        self.source = FileBeingWritten(self._fd, str(path), image.size_bytes)
        """For an upload that begins before the file is whole."""
        self._given_up: BaseException | None = None

    def give_up(self, reason: BaseException) -> None:
        """Stop as soon as possible: ``run`` raises ``reason``, unless the file is whole by then."""
        self._given_up = reason

    def run(
        self,
        when_whole: Callable[[WrittenFile], object] | None = None,
        *,
        confirm: Callable[[], object] = lambda: None,
    ) -> WrittenFile:
        """Write the file. The interpreter lock is free while it is hashed and written.

        Args:
            confirm: Called when the bytes are on the disk, and nothing has its name yet; raises if they are not what
                they should be.
            when_whole: Called when the file is whole and has its name, before those who send it are told.

        Raises:
            DiskFullError: no space left; nothing is at the path that was not there before.
            DestinationError: the file cannot be written there.
            BaseException: the reason for which it was given up.
        """
        digest = hashlib.sha256()
        hashing = threading.Thread(target=self._hash_into, args=(digest,), name="artifactsync-hash", daemon=True)
        try:
            try:
                is_apart = _start(hashing)
                self._write()
                os.fsync(self._fd)
                if is_apart:
                    hashing.join()
                else:
                    self._hash_into(digest)
                self._check()
                confirm()
                self._temporary.replace(self._path)
                _sync_folder(self._path.parent)
            finally:
                os.close(self._fd)
            written = WrittenFile(self._path, self._image.size_bytes, digest.hexdigest())
            if when_whole is not None:
                when_whole(written)
        except BaseException as error:
            self._given_up = self._given_up or error  # the hash is not needed any more
            self._temporary.unlink(missing_ok=True)
            ours = _failure(error, self._path) if isinstance(error, OSError) else error
            self.source.fail(ours)
            if ours is error:
                raise
            raise ours from error
        self.source.finish(written.sha256)
        return written

    def _write(self) -> None:
        done = begun = 0
        for data in self._image.slices():
            self._check()
            rest = data
            while rest:
                rest = rest[os.write(self._fd, rest) :]
            done += len(data)
            self.source.advance(len(data))
            if done - begun >= _WRITE_BACK_BYTES:
                _begin_write_back(self._fd, begun, done - begun)
                begun = done

    def _hash_into(self, digest: hashlib._Hash) -> None:
        for data in self._image.slices():
            if self._given_up is not None:
                return
            digest.update(data)

    def _check(self) -> None:
        if self._given_up is not None:
            raise self._given_up


def write_snapshot(snapshot: Snapshot, path: Path) -> WrittenFile:
    """Write a snapshot to ``path``, replacing a file of that name.

    The same state gives the same bytes. ``torch.load(path, weights_only=True, mmap=True)`` opens it.

    Raises:
        DiskFullError: no space left; nothing is at ``path`` that was not there before.
        DestinationError: the file cannot be written there.
    """
    snapshot.wait()
    writing = FileWriting(FileImage(snapshot.state), path)
    try:
        return writing.run()
    finally:
        writing.source.close()


def point_latest(link: Path, target: Path) -> None:
    """Make ``link`` a relative symlink to ``target`` in one step. Advisory: where symlinks cannot be made, it is left.

    A real file of that name is never replaced.
    """
    if link.exists() and not link.is_symlink():
        return
    temporary = link.with_name(f".{link.name}.{os.getpid()}.tmp")
    with suppress(OSError):
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(os.path.relpath(target, link.parent))
        temporary.replace(link)


def _start(thread: threading.Thread) -> bool:
    """Start a thread; False if the interpreter is ending, or the system has no thread left."""
    try:
        thread.start()
    except RuntimeError:
        return False
    return True


def _begin_write_back(fd: int, start: int, length: int) -> None:
    """Have the disk begin now, so that fsync finds little left to do; what is not yet written stays in memory.

    ``DONTNEED`` starts the writing of dirty pages and drops clean ones alone.
    Source: torvalds/linux, mm/fadvise.c ``generic_fadvise``, read 2026-11.
    """
    with suppress(OSError, AttributeError):
        os.posix_fadvise(fd, start, length, os.POSIX_FADV_DONTNEED)


def _sync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` survive a power cut, where the system can."""
    with suppress(OSError):
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _failure(error: OSError, path: Path) -> DiskFullError | DestinationError:
    if error.errno in _NO_SPACE:
        return DiskFullError(
            f"no space left on the disk of {path.parent}: the checkpoint {path.name} was not written",
            hint="free some space, or keep fewer local checkpoints (save_num_checkpoints_to_keep)",
            url=str(path),
        )
    return DestinationError(
        f"cannot write the checkpoint {path}: {error.strerror or error}",
        hint="choose a local_root in which files can be made",
        url=str(path),
    )
