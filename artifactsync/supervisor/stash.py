"""Checkpoints on their way are held fast: neither their deletion nor their next version takes their bytes away.

Owns: hard links to files that are being sent, and copies where a file is known to be rewritten in place. Does not own:
which files (``checkpoints``).

Invariant: what was taken is what was looked at, or :class:`FileChangedError` is raised; nothing of it outlives the
process that took it for long, as the next attempt clears it away. What a later attempt took is its own: the process
before it may still be ending, in the same folder.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
from typing import TYPE_CHECKING

from artifactsync.errors import DestinationError, FileChangedError
from artifactsync.supervisor.tree import Seen

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_FICLONE = 0x40049409  # Linux: a copy that shares its blocks, where the file system can
_COPY_BYTES = 8 * 1024 * 1024


class Stash:
    """A folder of our own on the same disk as the files.

    Args:
        above: The folder in which every attempt has its own; those of earlier ones are removed.
        attempt: Number of this one; None for a process that owns no run, and takes nothing.

    Raises:
        DestinationError: it cannot be made.
    """

    def __init__(self, above: Path, attempt: int | None) -> None:
        self._above, self._folder = above, above / f"{attempt}"
        self._numbers = itertools.count(1)
        if attempt is None:
            return
        folder = self._folder
        try:
            for old in above.glob("*"):
                if not old.name.isdecimal() or int(old.name) <= attempt:
                    shutil.rmtree(old, ignore_errors=True)
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DestinationError(
                f"no folder can be made at {folder}: {error.strerror}", hint="check the owner of the working folder"
            ) from error

    def take(self, files: Iterable[tuple[Path, Seen]], *, copy: bool) -> list[tuple[Path, Seen]]:
        """Hold files as they are now.

        Args:
            files: Each with what it looked like when it was found whole.
            copy: They are rewritten in place, so a link to them would change too.

        Returns:
            For each, where it is held, and what that must look like until it is sent.

        Raises:
            FileChangedError: one is not any more what it looked like.
            OSError: the disk is full.
        """
        taken: list[tuple[Path, Seen]] = []
        try:
            for local, seen in files:
                held = self._folder / str(next(self._numbers))
                taken.append((held, seen))
                taken[-1] = (held, self._take_one(local, seen, held, copy=copy))
        except BaseException:
            self.release(held for held, _ in taken)
            raise
        return taken

    def write(self, text: str) -> tuple[Path, Seen]:
        """Hold a text of our own: where, and what that must look like until it is sent.

        Raises:
            OSError: the disk is full.
        """
        held = self._folder / str(next(self._numbers))
        held.write_text(text)
        return held, Seen.of(held.stat())

    def release(self, held: Iterable[Path]) -> None:
        """Let go of files that were taken."""
        for file in held:
            with contextlib.suppress(OSError):
                file.unlink()

    def close(self) -> None:
        """Let go of all."""
        shutil.rmtree(self._folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # another attempt has its own there
            self._above.rmdir()

    def _take_one(self, local: Path, seen: Seen, held: Path, *, copy: bool) -> Seen:
        try:
            if not copy:
                try:
                    os.link(local, held)
                except FileNotFoundError:
                    raise
                except OSError:  # another disk, or one without links
                    copy = True
            if copy:
                with local.open("rb") as source, held.open("xb") as target:
                    _copy(source.fileno(), target.fileno())
                    found = Seen.of(os.fstat(source.fileno()))
            else:
                found = Seen.of(held.stat())
        except FileNotFoundError as error:
            raise FileChangedError(f"{local} is not there any more") from error
        if found != seen:
            raise FileChangedError(f"{local} was written to after it was found whole")
        return Seen.of(held.stat())


def check_unchanged(held: Path, seen: Seen) -> None:
    """Do nothing if a held file is still what it was.

    Raises:
        FileChangedError: somebody has written to it.
    """
    try:
        found = Seen.of(held.stat())
    except OSError as error:
        raise FileChangedError(f"{held} is not there any more") from error
    if found != seen:
        raise FileChangedError("a checkpoint's file was written to while it was sent")


def _copy(source: int, target: int) -> None:
    with contextlib.suppress(ImportError, OSError):
        import fcntl  # noqa: PLC0415 - not on Windows

        fcntl.ioctl(target, _FICLONE, source)
        return
    offset = 0
    while data := os.pread(source, _COPY_BYTES, offset):
        view = memoryview(data)
        while view:
            view = view[os.write(target, view) :]
        offset += len(data)
