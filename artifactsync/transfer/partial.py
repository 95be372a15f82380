"""A file that is still arriving: hidden, locked, and able to go on where it stopped.

Owns: ``PartialFile``: the temporary file beside the destination, and the moment it becomes visible. Does not own:
fetching (``downloader``), what the record of its parts says (``held``).

Invariants: the destination's name shows either what was there before or the whole new file; a file under a lock is
written by one process only; a range counts as held only if its checksum still fits.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import stat
import sys
import threading
from hashlib import sha256
from typing import TYPE_CHECKING

from artifactsync.errors import AlreadyExistsError
from artifactsync.transfer.folder import local_error
from artifactsync.transfer.held import Held, part_line, prefix_line, read_held

if sys.platform != "win32":
    import fcntl

if TYPE_CHECKING:
    from collections.abc import Mapping

    from artifactsync.transfer.folder import Folder

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_PLENTY = 4  # times the length of the file
_NAME_BYTES = 200  # of the destination's name in the temporary name, so that the whole stays below 255


class PartialFile:
    """The temporary file of one download.

    Args:
        folder: The destination's folder.
        name: The destination's name in it.
        source: What tells this download from others to the same name: the object's URL.

    Raises:
        DestinationError: it cannot be made there.
        DiskFullError: no space is left.
    """

    def __init__(self, folder: Folder, name: str, source: str) -> None:
        self._folder = folder
        self._name = name
        self.path = folder.path / name
        self._is_published = False
        self._is_known = True  # by its name to the next download of the same object
        self._is_resumable = False
        short = name.encode()[:_NAME_BYTES].decode(errors="ignore")
        token = sha256(source.encode(errors="surrogatepass")).hexdigest()[:12]
        self.temporary = f".{short}.artifactsync-{token}.part"
        try:
            fd = self._open_locked()
            if fd is None:  # another process is downloading the same object to the same place
                self.temporary = f".{short}.artifactsync-{secrets.token_hex(6)}.part"
                fd = folder.open_file(self.temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL)
                _lock(fd)
                self._is_known = False
        except OSError as error:
            raise local_error(error, self.path) from error
        self.fd = fd
        self._record_name = f"{self.temporary}.ranges"
        self._record_fd = -1
        self._writing = threading.Lock()

    @property
    def is_resumable(self) -> bool:
        """Whether what is here is worth keeping after a failure: only if a later download would find it."""
        return self._is_resumable and self._is_known

    @is_resumable.setter
    def is_resumable(self, value: bool) -> None:
        self._is_resumable = value

    def reset(self) -> None:
        """Begin with an empty file."""
        os.ftruncate(self.fd, 0)

    def held_parts(self, identity: Mapping[str, object], part_bytes: int, size_bytes: int) -> Held:
        """What an earlier download of the very same object left here whole.

        Afterwards the file has its full length and its record is open for more.

        Args:
            identity: What makes the object the same one: anything that JSON can say.
            part_bytes: Length of every part but the last.
            size_bytes: Length of the object.

        Raises:
            DiskFullError: the file's full length does not fit on the disk.
        """
        header = json.dumps({"version": 2, "part_bytes": part_bytes, **identity}, sort_keys=True)
        try:
            held = self._read_record(header, part_bytes, size_bytes)
            if not held:
                os.ftruncate(self.fd, 0)
            _allocate(self.fd, size_bytes)
            self._folder.unlink(self._record_name)
            self._record_fd = self._folder.open_file(self._record_name, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            os.write(self._record_fd, f"{header}\n{held.lines()}".encode())
        except OSError as error:
            raise local_error(error, self.path) from error
        return held

    def write(self, data: bytes, offset: int) -> None:
        """Write bytes at an offset. Thread-safe for different offsets.

        Raises:
            DiskFullError: no space is left.
        """
        view = memoryview(data)
        try:
            while view:
                # One at a time: the kernel does no more in one file, and those who wait for it there burn a core.
                with self._writing:
                    written = os.pwrite(self.fd, view, offset)
                view, offset = view[written:], offset + written
        except OSError as error:
            raise local_error(error, self.path) from error

    def note(self, part: int, crc: int) -> None:
        """Note that ``part`` is whole and has this CRC32. Thread-safe."""
        self._note(part_line(part, crc))

    def note_leading(self, parts: int, sha256_hex: str) -> None:
        """Note that the first ``parts`` are whole and have, together, this sha256. Thread-safe."""
        self._note(prefix_line(parts, sha256_hex))

    def _note(self, line: str) -> None:
        if self._record_fd < 0:
            return
        try:
            os.write(self._record_fd, line.encode())  # whole or not at all, also between threads
        except OSError as error:
            raise local_error(error, self.path) from error

    def forget_held(self) -> None:
        """Close and remove the record of parts: the file is whole, or must be fetched anew."""
        fd, self._record_fd = self._record_fd, -1
        if fd >= 0:
            os.close(fd)
        self._drop_record()

    def read(self, length: int, offset: int) -> bytes:
        """Read back what was written."""
        return os.pread(self.fd, length, offset)

    def publish(self, *, overwrite: bool, syncs_folder: bool = True) -> None:
        """Make the bytes durable and then visible under the destination's name.

        Args:
            overwrite: Whether what is there is replaced.
            syncs_folder: Whether the name is durable on return, or the caller sees to that for many at once.

        Raises:
            AlreadyExistsError: something is there and ``overwrite`` is False.
            DestinationError: a folder is there.
            DiskFullError: no space is left.
        """
        at = self._folder.fd
        try:
            os.fsync(self.fd)
            self._drop_record()
            if overwrite:
                os.replace(self.temporary, self._name, src_dir_fd=at, dst_dir_fd=at)
            else:
                self._publish_new(at)
        except FileExistsError as error:
            raise AlreadyExistsError(
                f"{self.path} exists already", hint="pass overwrite=True to replace it", url=str(self.path)
            ) from error
        except OSError as error:
            raise local_error(error, self.path) from error
        self._is_published = True
        if syncs_folder:
            self._folder.sync()

    def discard(self) -> None:
        """Remove the temporary file and its record, unless it was published: the name may be another's by now."""
        if self._is_published:
            return
        with contextlib.suppress(OSError):
            self._folder.unlink(self.temporary)
        self._drop_record()

    def close(self) -> None:
        """Close and unlock the file; what is there stays for the next try."""
        for fd in (self.fd, self._record_fd):
            if fd >= 0:
                os.close(fd)
        self.fd = self._record_fd = -1

    def _open_locked(self) -> int | None:
        """Open the temporary file and lock it; None if another process holds it."""
        while True:
            fd = -1
            try:
                fd = self._folder.open_file(self.temporary, os.O_RDWR | os.O_CREAT)
                if not _lock(fd):
                    os.close(fd)
                    return None
                found, held = self._folder.stat(self.temporary), os.fstat(fd)
                if found is not None and found.st_ino == held.st_ino:
                    if stat.S_ISREG(held.st_mode) and held.st_nlink == 1:
                        return fd
                    self._folder.unlink(self.temporary)  # a pipe, or a second name of some file: not ours
                os.close(fd)  # renamed or removed by its owner before we had the lock
            except OSError:
                if fd >= 0:
                    os.close(fd)
                    raise
                found = self._folder.stat(self.temporary)
                if found is None or not stat.S_ISLNK(found.st_mode):
                    raise
                self._folder.unlink(self.temporary)  # a planted link

    def _read_record(self, header: str, part_bytes: int, size_bytes: int) -> Held:
        try:
            fd = self._folder.open_file(self._record_name, os.O_RDONLY)
        except OSError:
            return Held()
        with open(fd, encoding="utf-8", errors="replace") as record:  # noqa: PTH123 - a descriptor
            first, *lines = record.read().split("\n")
        if first != header:
            return Held()
        return read_held(
            lines,
            lambda part: os.pread(self.fd, min(part_bytes, size_bytes - part * part_bytes), part * part_bytes),
            count=-(-size_bytes // part_bytes),
        )

    def _publish_new(self, at: int) -> None:
        try:
            os.link(self.temporary, self._name, src_dir_fd=at, dst_dir_fd=at, follow_symlinks=False)
        except FileExistsError:
            raise
        except OSError:  # no hard links on this file system: the check is the best there is
            if self._folder.stat(self._name) is not None:
                raise FileExistsError(self._name) from None
            os.replace(self.temporary, self._name, src_dir_fd=at, dst_dir_fd=at)
        else:
            os.unlink(self.temporary, dir_fd=at)

    def _drop_record(self) -> None:
        with contextlib.suppress(OSError):
            self._folder.unlink(self._record_name)


def _lock(fd: int) -> bool:
    """Lock a file against other processes; False if one holds it."""
    if sys.platform == "win32":  # two downloads to one place at a time are on their own there
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def _allocate(fd: int, size_bytes: int) -> None:
    """Reserve the space now, so that a full disk is known before hours of download.

    Not where there is room many times over: in a file system in memory that takes a quarter of a second for each GiB,
    in which nothing is fetched yet, and one without such a call is written to twice.
    """
    if size_bytes == 0 or os.fstat(fd).st_size == size_bytes:
        return
    try:
        if not _is_there_plenty(fd, size_bytes):
            os.posix_fallocate(fd, 0, size_bytes)
    except (AttributeError, OSError) as error:
        if isinstance(error, OSError) and error.errno in _NO_SPACE:
            raise
    os.ftruncate(fd, size_bytes)


def _is_there_plenty(fd: int, size_bytes: int) -> bool:
    try:
        room = os.fstatvfs(fd)
    except (AttributeError, OSError):
        return False
    return room.f_bavail * room.f_frsize > _PLENTY * size_bytes
