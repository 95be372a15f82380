"""Weights that do not change from one checkpoint to the next go to a file of their own, which is sent once.

Owns: which tensors those are, how a state is divided, and how it is put together again. Does not own: the writing
(``saving``), or why a file with known bytes is not sent (``journal.reuse``).

What has not changed is known from a checksum of its bytes, taken of every snapshot; a checksum that lies costs a file
that is sent again, and never a wrong byte: a frozen file is known by the sha256 of the bytes that are in the snapshot
now. Both files are ordinary: ``torch.load`` opens each, with the same nested keys, and ``load_state_dict(...,
strict=False)`` takes each. Dividing is for large parts alone (:data:`LEAST_BYTES`); else one plain file is kept.

Invariant: ``join`` of what ``divide`` gave has the tensors, keys and numbers of the whole.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from artifactsync.checkpoint.image import tensors

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from artifactsync.checkpoint.image import Image

LEAST_BYTES = 32 * 1024 * 1024
"""A part that has not changed is worth a file of its own from this length: it saves seconds of upload, not requests."""
_LEAST_SHARE = 1 / 8  # and from this share of the state
NAMES = "artifactsync_frozen_files"
"""The key, in the file of what changes, of the names of the files beside it that hold the rest."""
_NAME = re.compile(r"frozen-rank[0-9]+-[0-9a-f]{16}\.pt")

_Path = tuple[Any, ...]


def frozen_name(rank: int, sha256: str) -> str:
    """Name of a file of unchanged weights."""
    return f"frozen-rank{rank}-{sha256[:16]}.pt"


def is_frozen_name(name: str) -> bool:
    """Whether a file of this name holds unchanged weights of another file."""
    return _NAME.fullmatch(name) is not None


class FrozenWatch:
    """Remembers the last checkpoint's checksums, and says what has not changed since. Not thread-safe."""

    def __init__(self) -> None:
        self._last: dict[_Path, tuple[int, int]] = {}
        self._groups: list[frozenset[_Path]] = []
        self.is_unchanged = False
        """Whether no tensor at all has changed since the snapshot before the last one looked at."""

    def look(self, state: Any, image: Image) -> list[frozenset[_Path]]:
        """Take the next checkpoint in, and return its unchanged parts: the places of the tensors in each.

        A part stays what it is while nothing in it changes, so that its file keeps its bytes.
        """
        marks: dict[_Path, tuple[int, int]] = {}
        together: dict[int, set[_Path]] = {}
        barred: set[int] = set()
        for path, tensor in tensors(state):
            address = tensor.untyped_storage().data_ptr() if tensor.device.type == "cpu" and not tensor.is_sparse else 0
            if address not in image.checksums:
                continue
            marks[path] = (image.checksums[address], tensor.untyped_storage().nbytes())
            together.setdefault(address, set()).add(path)
            if not _is_in_dicts(state, path):
                barred.add(address)
        same = {path for path, mark in marks.items() if self._last.get(path) == mark}
        self.is_unchanged = bool(marks) and same == set(marks) == set(self._last)
        self._last = marks
        loose = [paths for at, paths in together.items() if at not in barred and paths <= same]
        self._groups = [group for group in self._groups if group <= same and _is_closed(group, together.values())]
        taken = {path for group in self._groups for path in group}
        fresh = [paths for paths in loose if not paths & taken]
        fresh_bytes = sum(marks[next(iter(paths))][1] for paths in fresh)
        if fresh_bytes >= max(LEAST_BYTES, image.size_bytes * _LEAST_SHARE):
            self._groups.append(frozenset(path for paths in fresh for path in paths))
        return list(self._groups) if type(state) is dict and NAMES not in state else []


def divide(state: dict[Any, Any], groups: Iterable[frozenset[_Path]]) -> tuple[dict[Any, Any], list[dict[Any, Any]]]:
    """Divide a state into what changes, and one tree for each group of places."""
    every = list(groups)
    main = _without(state, {path for group in every for path in group}, ())
    parts = []
    for group in every:
        part: dict[Any, Any] = {}
        for path, tensor in tensors(state):  # in the state's order, so that the same part has the same bytes
            if path in group:
                _place(part, path, tensor)
        parts.append(part)
    assert isinstance(main, dict)
    return main, parts


def join(main: dict[Any, Any], parts: Iterable[Mapping[Any, Any]]) -> dict[Any, Any]:
    """Put a divided state together, in ``main``."""
    main.pop(NAMES, None)
    for part in parts:
        for path, tensor in tensors(part):
            _place(main, path, tensor)
    return main


def _is_in_dicts(state: Any, path: _Path) -> bool:
    """Whether only dicts lead to a place: a list would get a hole."""
    for key in path:
        if not isinstance(state, dict):
            return False
        state = state[key]
    return True


def _is_closed(group: frozenset[_Path], together: Iterable[set[_Path]]) -> bool:
    """Whether no tensor outside the group has come to share memory with one inside."""
    return all(paths <= group or not paths & group for paths in together)


def _without(value: Any, left_out: set[_Path], path: _Path) -> Any:
    if not isinstance(value, dict):
        return value
    kept = type(value)(
        (key, _without(item, left_out, (*path, key))) for key, item in value.items() if (*path, key) not in left_out
    )
    metadata = getattr(value, "_metadata", None)
    if metadata is not None:  # module versions, which load_state_dict needs
        kept._metadata = metadata  # type: ignore[attr-defined]  # noqa: SLF001  (torch's own contract)
    return kept


def _place(tree: dict[Any, Any], path: _Path, tensor: Any) -> None:
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = tensor
