"""Local folders that downloads write to, held open so that nothing can be swapped underneath.

Owns: ``Folder``, and what a failing file system call means (``local_error``). Does not own: what is written.

Invariant: below the folder that the user named, no symbolic link is ever followed: every step down is an ``openat``
with ``O_NOFOLLOW`` from the folder above.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import TYPE_CHECKING

from artifactsync.errors import ArtifactSyncError, DestinationError, DiskFullError, StoreError

if TYPE_CHECKING:
    from pathlib import Path

    from typing_extensions import Self

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_OPEN_FOLDER = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0)
NOFOLLOW = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
"""Flags for opening a file: not through a link, not into child processes."""


def local_error(error: OSError, path: Path) -> ArtifactSyncError:
    """What a failed call on a local path means; raise it ``from`` the error."""
    if error.errno in _FULL:
        return DiskFullError(
            f"no space left for {path}: {error.strerror}",
            hint="free some space, or choose another destination; nothing was left at that name",
            url=str(path),
        )
    if error.errno in {errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTEMPTY}:
        return DestinationError(
            f"cannot write {path}: {error.strerror}", hint="choose another destination", url=str(path)
        )
    if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
        return DestinationError(
            f"may not write {path}: {error.strerror}", hint="choose a destination you may write to", url=str(path)
        )
    return StoreError(f"cannot write {path}: {error.strerror or error}", url=str(path))


class Folder:
    """An open local folder.

    Args:
        path: The folder, made with its parents if it is not there. Links in it are the user's own and are followed.

    Raises:
        DestinationError: it is a file, or may not be made.
        DiskFullError: there is no space for it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        """For messages."""
        try:
            path.mkdir(parents=True, exist_ok=True)
            self.fd = os.open(path, _OPEN_FOLDER)
        except (FileExistsError, NotADirectoryError) as error:
            blocker = next((p for p in (path, *path.parents) if p.exists() and not p.is_dir()), path)
            raise DestinationError(
                f"{path} cannot be a folder: {blocker} is a file",
                hint="choose another destination, or move that file away",
                url=str(path),
            ) from error
        except FileNotFoundError as error:
            raise DestinationError(
                f"no folder can be made at {path}", hint="choose another destination", url=str(path)
            ) from error
        except OSError as error:
            raise local_error(error, path) from error

    def child(self, name: str) -> Folder:
        """Open (or make) a folder in this one.

        Raises:
            DestinationError: a file or a symbolic link has that name.
        """
        path = self.path / name
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, dir_fd=self.fd)
            fd = os.open(name, _OPEN_FOLDER | NOFOLLOW, dir_fd=self.fd)
        except (NotADirectoryError, FileNotFoundError) as error:
            raise self._refused(name, error) from error
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise self._refused(name, error) from error
            raise local_error(error, path) from error
        folder = Folder.__new__(Folder)
        folder.path, folder.fd = path, fd
        return folder

    def descend(self, parts: tuple[str, ...]) -> Folder:
        """Open (or make) a folder some levels below; the caller closes it."""
        folder = self.again()
        for part in parts:
            with folder:
                folder = folder.child(part)
        return folder

    def again(self) -> Folder:
        """The same folder, opened once more."""
        folder = Folder.__new__(Folder)
        folder.path, folder.fd = self.path, os.dup(self.fd)
        return folder

    def stat(self, name: str) -> os.stat_result | None:
        """What is at ``name``, a link not followed; None if nothing is."""
        try:
            return os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise local_error(error, self.path / name) from error

    def open_file(self, name: str, flags: int) -> int:
        """Open a file in this folder, never through a link; made readable and writable as the umask allows."""
        return os.open(name, flags | NOFOLLOW, 0o666, dir_fd=self.fd)

    def unlink(self, name: str) -> None:
        """Remove a file; that it is not there is no error."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self.fd)

    def sync(self) -> None:
        """Make names in this folder durable."""
        with contextlib.suppress(OSError):  # some file systems cannot sync a folder
            os.fsync(self.fd)

    def close(self) -> None:
        """Close it. Idempotent."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _refused(self, name: str, error: OSError) -> DestinationError:
        found = self.stat(name)
        what = "a symbolic link" if found and stat.S_ISLNK(found.st_mode) else "a file"
        return DestinationError(
            f"{self.path / name} is {what} where a folder must be ({error.strerror})",
            hint="move it away, or choose another destination",
            url=str(self.path / name),
        )
