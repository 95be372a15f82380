"""Links and other files that say which checkpoint is the newest, as many a script asks them when it starts.

Owns: which names are such files, what a link says, and how a link comes back. Does not own: when they are published
(``due``), or how they lie on the remote (``run``).

On the remote a link is a small text object, ``latest.pt.symlink``, with the path that it points to, below the run.

Invariants: a link that leaves the watched folders is not ours, and none is ever made that does; what the user has in
the place of a link stays.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import time
from typing import TYPE_CHECKING

from artifactsync.naming.layout import is_safe

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from artifactsync.supervisor.tree import Tree

LINK_SUFFIX = ".symlink"
"""Behind a link's own name: what stands for it in the run."""

POINTERS = frozenset({"latest", "latest_checkpoint", "last_checkpoint", "latest_checkpointed_iteration.txt"})
"""Text files that name the newest checkpoint beside them: those of DeepSpeed (``latest``), of Megatron-LM (the one in
``.txt``: a number), and of fvcore, so of detectron2 (``last_checkpoint``)."""

_MAX_BYTES = 4096
_MAX_ENTRIES = 5000


def is_pointer(path: str) -> bool:
    """Whether a path of the run only says where a checkpoint is."""
    return path.endswith(LINK_SUFFIX) or path.rpartition("/")[2] in POINTERS


def read_link(local: Path) -> tuple[str, os.stat_result] | None:
    """Where the link for which ``local`` stands leads in the end, and its own status; None if there is none."""
    link = _link_of(local)
    try:
        status = link.lstat()
    except OSError:
        return None
    return (os.path.realpath(link), status) if stat.S_ISLNK(status.st_mode) and link.exists() else None


def path_in(text_file: Path) -> str | None:
    """The path below the run that a link's text names; None where it is none, or one that leaves it: hostile input."""
    with text_file.open("rb") as file:
        text = file.read(_MAX_BYTES).decode(errors="replace")
    return text if is_safe(text) else None


def says(pointer: Path, name: str) -> bool:
    """Whether a text file names a file or folder beside it: by its name, or by the number in it."""
    try:
        with pointer.open("rb") as file:
            word = file.read(_MAX_BYTES).decode(errors="replace").strip().rpartition("/")[2]
    except OSError:
        return False
    if word.isdecimal():
        return [int(number) for number in re.findall(r"\d+", name)][-1:] == [int(word)]
    return word == name


def place_link(local: Path, target: Path, *, written_s: float) -> bool:
    """Make the link for which ``local`` stands, unless a newer one leads somewhere; says whether it is as told now.

    Args:
        local: The link's place, with its suffix.
        target: Where it leads.
        written_s: When it was written, on the wall clock: a process that was killed may have left a newer one.

    Raises:
        OSError: it cannot be made.
    """
    link = _link_of(local)
    if not target.exists() or (link.exists() and (not link.is_symlink() or link.lstat().st_mtime > written_s)):
        return False
    if not (link.is_symlink() and os.path.realpath(link) == os.path.realpath(target)):
        link.unlink(missing_ok=True)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(os.path.realpath(target), os.path.realpath(link.parent)))
    return True


class WaysOut:
    """Tells of folders that links hide and that have new checkpoints in them.

    They are not followed, as most such links lead to data.

    Args:
        tree: What is watched; it has noted its links that lead out.
        suffixes: Endings of checkpoints' names.
        tell: Says a line to the user, once for each link.
    """

    def __init__(self, tree: Tree, suffixes: tuple[str, ...], tell: Callable[[str], None]) -> None:
        self._tree, self._suffixes, self._tell = tree, suffixes, tell
        self._began_s = time.time()
        self._told_of: set[str] = set()

    def tell_of_new(self) -> None:
        """Look behind those links that were not told of yet: at the first thousands of files, and no further."""
        for path in sorted(self._tree.ways_out.copy() - self._told_of):
            if self._is_written_to(self._tree.local(path)):
                self._told_of.add(path)
                self._tell(f"{path} is a link out of what is watched: its checkpoints are NOT sent; add --watch {path}")

    def _is_written_to(self, folder: Path) -> bool:
        left = _MAX_ENTRIES
        for above, folders, names in os.walk(folder):
            left -= len(folders) + len(names)
            for name in names[:_MAX_ENTRIES]:
                with contextlib.suppress(OSError):
                    if name.endswith(self._suffixes) and os.lstat(f"{above}/{name}").st_mtime >= self._began_s:
                        return True
            if left < 0:
                break
        return False


def _link_of(local: Path) -> Path:
    return local.with_name(local.name.removesuffix(LINK_SUFFIX))
