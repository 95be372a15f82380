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
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from artifactsync.checkpoint.image import FileImage
from artifactsync.errors import ArtifactSyncError, DestinationError, DiskFullError
from artifactsync.transfer.being_written import FileBeingWritten
from artifactsync.transfer.courier import the_courier
from artifactsync.transfer.delivery import COURIER_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from artifactsync.checkpoint.image import Image
    from artifactsync.checkpoint.snapshot import Snapshot
    from artifactsync.transfer.courier import FileHash

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
_WRITE_BYTES = 16 * 1024 * 1024  # written between two looks at the clock, about
_CALL_BYTES = 1024 * 1024
"""Written by one call, unless that keeps the writer waiting. The longer a call, the larger the blocks of memory that
the kernel takes for the file, and blocks of 2 MiB are what a virtual machine gives back to its host while they are
free: to have those again took up to nine times as long as to fill them (docs/benchmarks.md)."""
_WAITED_S = 0.04
"""So long without a core for one round of such calls, and all that follow are as long as can be: a loop that never lets
go of the interpreter lock by itself takes it for 5 ms after each. Source: ``sys.getswitchinterval``, read 2026-11."""
_MOST_SLICES = 512  # in one call. Source: IOV_MAX of limits.h is 1024 on Linux, read 2026-11
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
        hashes_beside: Whether the process beside this one (``transfer.courier``), if there is one, hashes a large
            file, from the page cache; else a thread of this one does, from the image.

    Raises:
        DiskFullError, DestinationError: no file can be made there.
    """

    def __init__(self, image: Image, path: Path, *, hashes_beside: bool = False) -> None:
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
        self._hash_beside: FileHash | None = None
        if hashes_beside and image.size_bytes >= COURIER_BYTES and the_courier().is_ready:
            with suppress(ArtifactSyncError):
                self._hash_beside = the_courier().hash(self._fd, image.size_bytes)

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
                is_apart = self._hash_beside is None and _start(hashing)
                self._write()
                os.fsync(self._fd)
                if is_apart:
                    hashing.join()
                sha256 = digest.hexdigest() if is_apart else self._late_hash(digest)
                self._check()
                confirm()
                self._temporary.replace(self._path)
                _sync_folder(self._path.parent)
            finally:
                os.close(self._fd)
                if self._hash_beside is not None:
                    self._hash_beside.close()
            written = WrittenFile(self._path, self._image.size_bytes, sha256)
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
        call_bytes = _CALL_BYTES
        for batch in _batches(self._image.slices()):
            self._check()
            began_s, cpu_s = time.perf_counter(), time.thread_time()
            left = batch
            while left:
                left = _behind(left, os.writev(self._fd, _front(left, call_bytes)))
            if time.perf_counter() - began_s - (time.thread_time() - cpu_s) > _WAITED_S:
                call_bytes = 2 * _WRITE_BYTES  # whatever is in a batch
            count_bytes = sum(map(len, batch))
            done += count_bytes
            self.source.advance(count_bytes)
            if self._hash_beside is not None:
                self._hash_beside.advance(done)
            if done - begun >= _WRITE_BACK_BYTES:
                _begin_write_back(self._fd, begun, done - begun)
                begun = done

    def _late_hash(self, digest: hashlib._Hash) -> str:
        """The hash, where no thread of this process took it while the file was written."""
        if self._hash_beside is not None:
            try:
                return self._hash_beside.hexdigest(self._check)
            except ArtifactSyncError:
                self._check()  # it was given up; else that process is gone
        self._hash_into(digest)
        return digest.hexdigest()

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


def _batches(slices: Iterable[memoryview]) -> Iterator[list[memoryview]]:
    """Put slices together: each call of the system takes the interpreter lock from training once."""
    batch: list[memoryview] = []
    length = 0
    for data in slices:
        batch.append(data)
        length += len(data)
        if length >= _WRITE_BYTES or len(batch) == _MOST_SLICES:
            yield batch
            batch, length = [], 0
    if batch:
        yield batch


def _front(batch: list[memoryview], most_bytes: int) -> list[memoryview]:
    """The first bytes of a batch, at most so many."""
    front: list[memoryview] = []
    for data in batch:
        if len(data) >= most_bytes:
            return [*front, data[:most_bytes]]
        front.append(data)
        most_bytes -= len(data)
    return front


def _behind(batch: list[memoryview], count_bytes: int) -> list[memoryview]:
    """What is left of a batch behind so many bytes."""
    for number, data in enumerate(batch):
        if count_bytes < len(data):
            return [data[count_bytes:], *batch[number + 1 :]]
        count_bytes -= len(data)
    return []


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
