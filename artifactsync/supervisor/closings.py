"""Which files were closed after they were written to, as the kernel tells it (inotify on Linux).

Owns: the kernel's notices, and the wait for them. Does not own: which folders are watched (``tree``), or whether a file
that was closed is whole (``structure``).

Invariant: what it says is a hint. A notice that never comes (network disks, another system, too many folders) costs
time and nothing else: whoever uses this looks for himself as well.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from artifactsync.supervisor.links import LINK_SUFFIX
from artifactsync.supervisor.tree import Seen

if TYPE_CHECKING:
    from collections.abc import Iterable

try:
    from inotify_simple import INotify, flags
except ImportError:  # not Linux
    INotify = flags = None

_log = logging.getLogger(__name__)


@dataclass
class Heard:
    """What happened since the last question."""

    files: set[str] = field(default_factory=set)
    """Paths below the run that were closed, or renamed to."""
    folders: set[tuple[str, str]] = field(default_factory=set)
    """Folders that are new: where they are, and where their files are below the run, which ends in ``/``."""
    is_all: bool = False
    """Notices were lost: anything may have happened."""

    def __bool__(self) -> bool:
        return bool(self.files or self.folders or self.is_all)


class Closings:
    """Listens to the folders that it is given, and sleeps until something is to be done.

    Args:
        use_kernel: Whether to ask the kernel at all.
    """

    def __init__(self, *, use_kernel: bool = True) -> None:
        self._folders: dict[int, tuple[str, str]] = {}
        self._closed: set[Seen] = set()
        self._wake_fd, self._waker_fd = os.pipe()
        for fd in (self._wake_fd, self._waker_fd):
            os.set_blocking(fd, False)
        self._inotify: Any = None
        if use_kernel and INotify is not None:
            with contextlib.suppress(OSError):  # too many instances on this machine
                self._inotify = INotify(nonblocking=True)
        self.is_listening = self._inotify is not None
        """Whether the kernel tells of every folder that it was asked for."""

    def listen(self, folder: str, prefix: str) -> None:
        """Hear of a folder's files from now on; of one that is known, under its new name."""
        if self._inotify is None:
            return
        mask = flags.CLOSE_WRITE | flags.MOVED_TO | flags.CREATE | flags.ONLYDIR | flags.DONT_FOLLOW
        try:
            self._folders[self._inotify.add_watch(folder, mask)] = (folder, prefix)
        except OSError as error:
            if self.is_listening and os.path.isdir(folder):  # noqa: PTH112 - it went away, mostly
                self.is_listening = False
                _log.info("the kernel does not tell of changes in %s (%s): it is looked at instead", folder, error)

    def wait(self, timeout_s: float) -> bool:
        """Sleep until a notice comes or somebody calls ``wake``, at most so long; says whether one came."""
        fds = [self._wake_fd, *([self._inotify] if self._inotify is not None else [])]
        waiting = select.poll()  # not ``select``, which knows no descriptor above 1023
        for fd in fds:
            waiting.register(fd, select.POLLIN)
        found = waiting.poll(max(0, int(timeout_s * 1000)))
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_fd, 4096)
        return any(fd != self._wake_fd for fd, _ in found)

    def wake(self) -> None:
        """End a sleep; from any thread."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._waker_fd, b"w")

    def hear(self) -> Heard:
        """Take in what the kernel has told, without waiting."""
        heard = Heard()
        for event in self._inotify.read(timeout=0) if self._inotify is not None else ():
            if event.mask & flags.Q_OVERFLOW:
                heard.is_all = True
            elif event.mask & flags.IGNORED:
                self._folders.pop(event.wd, None)
            elif event.wd in self._folders:
                folder, prefix = self._folders[event.wd]
                at = f"{folder}/{event.name}"
                if event.mask & flags.ISDIR:
                    heard.folders.add((at, f"{prefix}{event.name}/"))
                elif os.path.islink(at):  # noqa: PTH114 - whole as soon as it is there
                    if self._note(at):
                        heard.files.add(f"{prefix}{event.name}{LINK_SUFFIX}")
                elif not event.mask & flags.CREATE and self._note(at):
                    heard.files.add(prefix + event.name)
        return heard

    def is_closed(self, seen: Seen) -> bool:
        """Whether a file was closed as it looks, and not written to since."""
        return seen in self._closed

    def forget_others(self, seen: Iterable[Seen]) -> None:
        """Keep no more than what is said of these."""
        self._closed.intersection_update(seen)

    def close(self) -> None:
        """Listen no more. Idempotent."""
        if self._inotify is not None:
            self._inotify.close()
            self._inotify = None
        for fd in (self._wake_fd, self._waker_fd):
            if fd >= 0:
                os.close(fd)
        self._wake_fd = self._waker_fd = -1

    def _note(self, at: str) -> bool:
        """By what it looks like and not by its name: a file that is renamed after it was closed is closed."""
        try:
            self._closed.add(Seen.of(os.lstat(at)))
        except OSError:
            return False
        return True
