"""The files below the watched folders, at one moment.

Owns: which files count, their paths below the run, and how two looks at one file compare. Does not own: when to look
(``watch``), or what a file is (``units``).

Invariant: nothing is opened, and what cannot be read is passed over. No link is followed; one that points to something
below the watched folders counts itself, under its name and ``LINK_SUFFIX``.
"""

from __future__ import annotations

import fnmatch
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from artifactsync.errors import ConfigurationError
from artifactsync.naming.layout import HOUSE_FOLDER, is_safe
from artifactsync.supervisor.links import LINK_SUFFIX, read_link

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_SKIPPED_FOLDERS = frozenset({"__pycache__", "node_modules", "lost+found"})
_SKIPPED_SUFFIXES = (".pyc", ".swp", ".tmp", ".temp", ".part", ".partial", ".lock", ".incomplete", "~")
_WANTED_HIDDEN = frozenset({".metadata"})  # of torch.distributed.checkpoint


@dataclass(frozen=True)
class Seen:
    """What shows that a file is still the one that was looked at."""

    inode: int
    """Its number on its file system."""
    size: int
    """Its length in bytes."""
    mtime_ns: int
    """When it was last written to."""

    @classmethod
    def of(cls, found: os.stat_result) -> Seen:
        """From what ``os.stat`` says."""
        return cls(found.st_ino, found.st_size, found.st_mtime_ns)


@dataclass(frozen=True)
class Root:
    """A watched folder."""

    folder: Path
    """Absolute."""
    prefix: str
    """Where its files are below the run: empty, or a path that ends in ``/``."""


class Tree:
    """The watched folders.

    Args:
        work_dir: The working folder: files keep their paths below it.
        watched: Folders to watch; none given watches the working folder.
        exclude: Shell patterns of paths below the run that are left alone.
        remote: URL of the remote: one that is a folder below a watched one is never mirrored into itself.

    Raises:
        ConfigurationError: two folders would be one on the remote, or a watched one is below the remote.
    """

    def __init__(
        self, work_dir: Path, watched: Sequence[Path] = (), *, exclude: Sequence[str] = (), remote: str = ""
    ) -> None:
        self._remote = unquote(urlsplit(remote).path) if remote.startswith("file://") else ""
        self.work_dir = Path(os.path.abspath(work_dir))  # noqa: PTH100 - resolve() follows links
        self._exclude = tuple(exclude)
        roots: dict[str, Root] = {}
        for each in watched or [self.work_dir]:
            folder = Path(os.path.abspath(self.work_dir / each))  # noqa: PTH100
            is_inside = folder.is_relative_to(self.work_dir)
            name = folder.relative_to(self.work_dir).as_posix() if is_inside else folder.name
            prefix = "" if name in {".", ""} else f"{name}/"
            other = roots.setdefault(prefix, Root(folder, prefix))
            if other.folder != folder:
                raise ConfigurationError(
                    f"{other.folder} and {folder} would both become {prefix} in the run",
                    hint="watch one of them, or a folder above both",
                )
        for root in roots.values():
            if any(self._is_remote(str(folder)) for folder in (root.folder, *root.folder.parents)):
                raise ConfigurationError(
                    f"{root.folder} is watched, and the remote {self._remote} holds it: it would be copied into itself",
                    hint="choose a remote that is not above what is watched",
                )
        self.roots = tuple(roots.values())
        """What is watched."""
        self.ways_out: set[str] = set()
        """Paths below the run of links to folders that are not watched, as the looks found them."""
        self.nameless: frozenset[str] = frozenset()
        """Paths of files that count but for their names, which no run can have, at the last look at all."""

    def local(self, path: str) -> Path:
        """Where a path of the run is on this disk."""
        for root in self.roots:
            if root.prefix and path.startswith(root.prefix) and not root.folder.is_relative_to(self.work_dir):
                return root.folder / path[len(root.prefix) :]
        return self.work_dir / path

    def look(self, on_folder: Callable[[str, str], None] | None = None) -> dict[str, Seen]:
        """Every file that counts, by its path below the run.

        Args:
            on_folder: Called with each folder before it is looked at, and with where its files are below the run.
        """
        seen: dict[str, Seen] = {}
        nameless: set[str] = set()
        for root in self.roots:
            seen.update(self._walk(str(root.folder), root.prefix, on_folder, nameless))
        self.nameless = frozenset(nameless)
        return seen

    def look_into(self, folder: str, prefix: str, on_folder: Callable[[str, str], None]) -> dict[str, Seen]:
        """The same of one folder that is new below a watched one; empty where it is none that counts."""
        path = prefix.removesuffix("/")
        if not os.path.isdir(folder) or not self._is_wanted(folder, path):  # noqa: PTH112
            return {}
        return dict(self._walk(folder, prefix, on_folder, set()))

    def look_at(self, path: str) -> Seen | None:
        """One file; None if it is none that counts, or not there."""
        if not self.counts(path.removesuffix(LINK_SUFFIX)):
            return None
        link = self.link(path) if path.endswith(LINK_SUFFIX) else None
        try:
            status = self.local(path).lstat()
        except OSError:
            return link[1] if link is not None else None
        return Seen.of(status) if stat.S_ISREG(status.st_mode) else None

    def link(self, path: str) -> tuple[str, Seen] | None:
        """The path below the run that a link points to, and what it looks like itself; None if that is no such link."""
        found = read_link(self.local(path))
        if found is None:
            return None
        target, status = found
        for root in self.roots:
            top = os.path.realpath(root.folder)
            if target.startswith(top + os.sep):
                below = root.prefix + os.path.relpath(target, top).replace(os.sep, "/")
                return (below, Seen.of(status)) if self.counts(below) else None
        return None

    def counts(self, path: str) -> bool:
        """Whether a file of this path is any business of ours."""
        return self._is_wanted_file(path) and is_safe(path)

    def _is_wanted_file(self, path: str) -> bool:
        name = path.rpartition("/")[2]
        if name.endswith(_SKIPPED_SUFFIXES) or (name.startswith(".") and name not in _WANTED_HIDDEN):
            return False
        return not any(fnmatch.fnmatchcase(path, pattern) for pattern in self._exclude)

    def _walk(
        self, top: str, top_prefix: str, on_folder: Callable[[str, str], None] | None, nameless: set[str]
    ) -> Iterator[tuple[str, Seen]]:
        waiting = [(top, top_prefix)]
        while waiting:
            folder, prefix = waiting.pop()
            if on_folder is not None:
                on_folder(folder, prefix)
            for entry in _entries(folder):
                path = prefix + entry.name
                try:
                    if entry.is_dir(follow_symlinks=False):
                        if self._is_wanted(entry.path, path):
                            waiting.append((entry.path, f"{path}/"))
                    elif self._is_wanted_file(path):
                        if is_safe(path):
                            yield from self._entry(entry, path)
                        elif entry.is_file(follow_symlinks=False):
                            nameless.add(path)
                except OSError:
                    continue

    def _entry(self, entry: os.DirEntry[str], path: str) -> Iterator[tuple[str, Seen]]:
        if entry.is_symlink():
            if (link := self.link(path + LINK_SUFFIX)) is not None:
                yield path + LINK_SUFFIX, link[1]
            elif entry.is_dir():
                self.ways_out.add(path)
            return
        status = entry.stat(follow_symlinks=False)
        if stat.S_ISREG(status.st_mode):
            yield path, Seen.of(status)

    def _is_wanted(self, folder: str, path: str) -> bool:
        """Whether a folder's files are any business of ours."""
        if not _is_wanted_folder(path.rpartition("/")[2]) or self._is_excluded_folder(path):
            return False
        return not self._is_remote(folder)

    def _is_remote(self, folder: str) -> bool:
        """Whether the remote is this folder, by whatever name."""
        if not self._remote:
            return False
        try:
            return Path(folder).samefile(self._remote)
        except OSError:  # one of them is not there
            return False

    def _is_excluded_folder(self, path: str) -> bool:
        return any(fnmatch.fnmatchcase(f"{path}/", pattern) for pattern in self._exclude)


def _entries(folder: str) -> list[os.DirEntry[str]]:
    """What is in a folder; nothing if it went away, is not ours to read, or is a virtual environment."""
    try:
        with os.scandir(folder) as entries:
            found = list(entries)
    except OSError:
        return []
    return [] if any(entry.name == "pyvenv.cfg" for entry in found) else found


def _is_wanted_folder(name: str) -> bool:
    return not name.startswith(".") and name not in _SKIPPED_FOLDERS and name != HOUSE_FOLDER
