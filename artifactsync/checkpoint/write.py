"""Writing a snapshot to an ordinary ``.pt`` file that is either whole or not there.

Owns: the file's way to the disk and its sha256. Does not own: what is in it (``snapshot``), or its name
(``state_io``).

Invariant: the final name appears by an atomic rename after fsync; a crash at any point leaves at most a hidden
temporary file beside it.
"""

from __future__ import annotations

import errno
import hashlib
import os
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from artifactsync.errors import DestinationError, DiskFullError

if TYPE_CHECKING:
    from pathlib import Path

    from artifactsync.checkpoint.snapshot import Snapshot

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}


@dataclass(frozen=True)
class WrittenFile:
    """A file that is on disk, whole."""

    path: Path
    """Where it is."""
    size_bytes: int
    """Its length."""
    sha256: str
    """Hash of its bytes, taken while they were written."""


class _HashingFile:
    """The file object that ``torch.save`` writes to. The interpreter lock is free while it hashes and writes."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._hash = hashlib.sha256()
        self.size_bytes = 0
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self._hash.update(view)
        done = 0
        try:
            while done < len(view):
                done += os.write(self._fd, view[done:])
        except OSError as error:  # torch reports a failing writer as a RuntimeError of its own
            self.error = error
            raise
        self.size_bytes += done
        return done

    def flush(self) -> None:
        """Nothing is buffered here."""

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def write_snapshot(snapshot: Snapshot, path: Path) -> WrittenFile:
    """Write a snapshot to ``path``, replacing a file of that name.

    The same state gives the same bytes. ``torch.load(path, weights_only=True, mmap=True)`` opens it.

    Raises:
        DiskFullError: no space left; nothing is at ``path`` that was not there before.
        DestinationError: the file cannot be written there.
    """
    snapshot.wait()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)  # left by a killed process that had this one's number
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), 0o666)
    except OSError as error:
        raise _failure(error, path) from error
    file = _HashingFile(fd)
    try:
        try:
            torch.save(snapshot.state, file)  # type: ignore[arg-type]  # write and flush are all it uses
            os.fsync(fd)
        finally:
            os.close(fd)
        temporary.replace(path)
        _sync_folder(path.parent)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        cause = file.error or error
        if isinstance(cause, OSError):
            raise _failure(cause, path) from cause
        raise
    return WrittenFile(path, file.size_bytes, file.hexdigest())


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
