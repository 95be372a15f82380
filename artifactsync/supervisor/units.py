"""Which files make one checkpoint, and when all of it is there.

Owns: the rules for torch.distributed.checkpoint, Hugging Face, Lightning and plain files, and those that a user gives.
Does not own: whether a single file is whole (``structure``), or what is done with a checkpoint (``checkpoints``).

A *unit* is what its framework writes as one: a folder (``checkpoint-500/``, a folder of ``.distcp`` files) or a file.
Units whose names differ in their numbers alone are a *family*: ``checkpoint-500`` and ``checkpoint-1000``, but not
``last.ckpt`` and ``best.ckpt``.

Invariant: a unit with a sign of completeness of its own (``.metadata``, ``trainer_state.json``) is never taken for
complete without it.
"""

from __future__ import annotations

import fnmatch
import re
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from artifactsync.supervisor.links import LINK_SUFFIX, is_pointer, says
from artifactsync.supervisor.structure import is_whole, missing_shards, step_inside, tells_whether_whole

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from artifactsync.supervisor.tree import Seen, Tree

FILE_SUFFIXES = (".pt", ".pth", ".ckpt", ".safetensors", ".pth.tar", ".pt.tar")
"""Files that are checkpoints wherever they lie."""

HUGGING_FACE_SIGN = "trainer_state.json"
"""Hugging Face's Trainer writes it last."""

DCP_SIGN = ".metadata"
"""torch.distributed.checkpoint renames it to this name when every rank has written."""

_NUMBERED_FOLDER = re.compile(r"checkpoint[-_]\d+")
_STEP = re.compile(
    r"(?:^|[^a-z])(?:global[-_]?step|step|iteration|iter|checkpoint|ckpt|batch|ba)s?[-_=]?(\d{1,15})(?!\d)",
    re.IGNORECASE,
)
_EPOCH = re.compile(r"(?:^|[^a-z])(?:epoch|ep)s?[-_=]?(\d{1,15})(?!\d)", re.IGNORECASE)
_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class Unit:
    """Files that their framework wrote as one checkpoint."""

    path: str
    """The folder, or the file, below the run."""
    files: tuple[tuple[str, Seen], ...]
    """Each file's path, and what it looked like."""
    is_folder: bool
    """Whether the unit is everything in a folder."""

    @property
    def family(self) -> str:
        """What it shares with the units that it follows and that follow it."""
        *above, name = self.path.split("/")
        return "/".join(
            [*(_NUMBER.sub("#", part) if _is_of_a_step(part) else part for part in above), _NUMBER.sub("#", name)]
        )

    @property
    def is_pointer(self) -> bool:
        """Whether it only says which of the others is the newest."""
        return not self.is_folder and is_pointer(self.path)

    @property
    def name(self) -> str:
        """What to call it: the name of the folder, or of the file without its ending."""
        last = self.path.rpartition("/")[2]
        suffix = max((s for s in FILE_SUFFIXES if last.endswith(s)), key=len, default="")
        return last if self.is_folder else last.removesuffix(suffix) or last

    @property
    def newest_ns(self) -> int:
        """When it was last written to."""
        return max(seen.mtime_ns for _, seen in self.files)

    @property
    def size_bytes(self) -> int:
        """Length of all its files."""
        return sum(seen.size for _, seen in self.files)


class Rules:
    """Tells checkpoints from other files.

    Args:
        patterns: A user's own, of files or folders below the run: each match is a unit.
    """

    def __init__(self, patterns: Sequence[str] = ()) -> None:
        self._patterns = tuple(pattern.removesuffix("/") for pattern in patterns)
        self._signed: set[str] = set()  # families of folders of which one had its sign

    def units(self, seen: Mapping[str, Seen]) -> list[Unit]:
        """Sort files into units; what is in none is no checkpoint's file."""
        folders = _folders_of_shards(seen)
        in_folders: dict[str, list[str]] = defaultdict(list)
        units: list[Unit] = []
        pointers: list[Unit] = []
        for path in seen:
            folder = self._folder_of(path, folders)
            if folder is not None:
                in_folders[folder].append(path)
            elif is_pointer(path):
                pointers.append(Unit(path, ((path, seen[path]),), is_folder=False))
            elif path.endswith(FILE_SUFFIXES) or self._matches(path):
                units.append(Unit(path, ((path, seen[path]),), is_folder=False))
        for folder, paths in in_folders.items():
            units.append(Unit(folder, tuple((path, seen[path]) for path in sorted(paths)), is_folder=True))
        above = {unit.path[: at + 1] for unit in units for at, letter in enumerate(unit.path) if letter == "/"} | {""}
        return units + [each for each in pointers if units and each.path[: each.path.rfind("/") + 1] in above]

    def is_complete(
        self, unit: Unit, tree: Tree, *, quiet_s: float, settle_s: float, is_over: bool, is_closed: bool = False
    ) -> bool:
        """Whether all of a unit is there, and nobody is writing to it any more.

        Args:
            unit: The unit.
            tree: Where its files are.
            quiet_s: Seconds since anything of it changed.
            settle_s: How long what shows its end must have been left alone.
            is_over: The command has ended well: what it wrote is whole.
            is_closed: The kernel says that its writer has closed it, and it did not change since.
        """
        if unit.is_folder:
            names = {path[len(unit.path) + 1 :] for path, _ in unit.files}
            is_sharded = any(name.endswith(".distcp") for name in names)
            has_sign = (
                any(n.rpartition("/")[2] == DCP_SIGN for n in names) if is_sharded else HUGGING_FACE_SIGN in names
            )
            if has_sign:
                self._signed.add(unit.family)
            elif is_sharded or unit.family in self._signed:
                return False
            if is_sharded and not _is_sign_last(unit):  # the folder is being written anew over an older checkpoint
                return False
            patience_s = settle_s if has_sign else 30 * settle_s
            is_known = has_sign and is_closed
        else:
            is_telling = unit.is_pointer or tells_whether_whole(tree.local(unit.path))
            patience_s = settle_s if is_telling or is_closed else 5 * settle_s
            is_known = is_telling and is_closed
        if quiet_s < (0.0 if is_over or is_known else patience_s):
            return False
        return all(self._is_file_whole(path, tree) for path, _ in unit.files)

    def sign_of(self, unit: Unit) -> Seen | None:
        """The file of a folder that is written last, if it is there."""
        for sign in (DCP_SIGN, HUGGING_FACE_SIGN):
            for path, seen in unit.files:
                if path == f"{unit.path}/{sign}":
                    return seen
        return None

    def _is_file_whole(self, path: str, tree: Tree) -> bool:
        local = tree.local(path)
        if path.endswith(f"/{DCP_SIGN}"):
            return not missing_shards(local)
        if is_pointer(path):
            return path.endswith(LINK_SUFFIX) or local.stat().st_size > 0
        return not path.endswith(FILE_SUFFIXES) or is_whole(local)

    def _folder_of(self, path: str, folders: set[str]) -> str | None:
        """The outermost folder above a path that is a unit."""
        parts = path.split("/")
        for end in range(1, len(parts)):
            folder = "/".join(parts[:end])
            if folder in folders or _NUMBERED_FOLDER.fullmatch(parts[end - 1]) or self._matches(folder):
                return folder
        return None

    def _matches(self, path: str) -> bool:
        return any(fnmatch.fnmatchcase(path, pattern) for pattern in self._patterns)


def _is_of_a_step(folder: str) -> bool:
    """Whether a folder is numbered by steps or epochs, as ``step_500`` and ``500`` are, and ``fold1`` is not."""
    return folder.isdigit() or bool(_STEP.search(folder) or _EPOCH.search(folder))


def _is_sign_last(unit: Unit) -> bool:
    written = [(path.rpartition("/")[2] == DCP_SIGN, seen.mtime_ns) for path, seen in unit.files]
    sign_ns = max((at for is_sign, at in written if is_sign), default=0)
    return all(at <= sign_ns for _, at in written)


def step_of(unit: Unit, tree: Tree) -> int | None:
    """The step that a unit is of: its files say so, else its name does; None where neither does."""
    above, _, name = unit.path.rpartition("/")
    by_name = _STEP.findall(name) or _STEP.findall(above.rpartition("/")[2])
    if by_name:
        return int(by_name[-1])
    if not unit.is_folder and (inside := step_inside(tree.local(unit.path))) is not None:
        return inside
    if unit.is_folder and any(path == f"{unit.path}/{HUGGING_FACE_SIGN}" for path, _ in unit.files):
        inside = step_inside(tree.local(f"{unit.path}/{HUGGING_FACE_SIGN}"))
        if inside is not None:
            return inside
    by_name = _EPOCH.findall(name) or re.findall(r"(?<![\d.])(\d{1,15})(?![\d.])", name)
    return int(by_name[-1]) if by_name else None


def newest_of_each_family(units: Iterable[Unit]) -> list[Unit]:
    """Of each family the unit that was written last: what a restart needs."""
    newest: dict[str, Unit] = {}
    for unit in units:
        known = newest.get(unit.family)
        if known is None or (known.newest_ns, known.path) < (unit.newest_ns, unit.path):
            newest[unit.family] = unit
    return sorted(newest.values(), key=lambda unit: unit.newest_ns)


def pointed_at(pointers: Iterable[Unit], units: Sequence[Unit], tree: Tree) -> list[Unit]:
    """Those of ``units`` that are named by one of ``pointers``: without them it would lead nowhere."""
    found: dict[str, Unit] = {}
    for pointer in pointers:
        link = tree.link(pointer.path) if pointer.path.endswith(LINK_SUFFIX) else None
        above = pointer.path[: pointer.path.rfind("/") + 1]
        for unit in units:
            if unit.is_pointer:
                continue
            if link is not None:
                is_named = f"{unit.path}/".startswith(f"{link[0]}/") or link[0].startswith(f"{unit.path}/")
            else:
                name = unit.path[len(above) :].partition("/")[0]
                is_named = unit.path.startswith(above) and says(tree.local(pointer.path), name)
            if is_named:
                found[unit.path] = unit
    return list(found.values())


def _folders_of_shards(seen: Mapping[str, Seen]) -> set[str]:
    """Folders with files of a distributed checkpoint; the folder above them where it is a part of a greater one."""
    return {path.rpartition("/")[0] for path in seen if path.endswith(".distcp") and "/" in path}
