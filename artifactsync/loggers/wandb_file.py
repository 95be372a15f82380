"""Reading the ``.wandb`` files that W&B writes: which metrics of which steps they hold.

Owns: the framing (LevelDB's log format) and what of its records matters here. Does not own: writing them (W&B).

Invariant: a file that a killed process left is read up to its last whole record.

Source: https://github.com/google/leveldb/blob/main/doc/log_format.md and wandb 0.31's ``wandb_internal.proto``,
November 2026.
"""

from __future__ import annotations

import importlib
import json
import struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_BLOCK_BYTES = 32 * 1024
_IDENT_BYTES = 7  # ":W&B", a magic number, a version
_HEADER = struct.Struct("<IHB")  # checksum, length, type
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


def read_records(path: Path) -> Iterator[Any]:
    """The records of a file, oldest first, as ``wandb_internal_pb2.Record``."""
    for _, record in _records(path, _IDENT_BYTES):
        yield record


class HistoryReader:
    """Reads the rows of metrics of a file that grows: each call of ``read`` gives what is new.

    Args:
        path: The ``.wandb`` file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._position = _IDENT_BYTES

    def read(self) -> list[tuple[int, dict[str, Any]]]:
        """Step, and values by name; W&B's own (``_runtime`` and the like) left out."""
        rows = []
        for end, record in _records(self._path, self._position):
            self._position = end
            if record.WhichOneof("record_type") != "history":
                continue
            history = record.history
            values = {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in history.item}
            step = history.step.num if history.HasField("step") else values.get("_step", 0)
            rows.append((int(step), {name: value for name, value in values.items() if not name.startswith("_")}))
        return rows


def read_history(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """All rows of metrics of a file: see :class:`HistoryReader`."""
    return HistoryReader(path).read()


def _records(path: Path, position: int) -> Iterator[tuple[int, Any]]:
    """Each whole record from a place on, with the place after it."""
    messages: Any = importlib.import_module("wandb.proto.wandb_internal_pb2")  # an optional package
    with path.open("rb") as file:
        file.seek(position)
        data = file.read()
    for end, frame in _frames(data, position):
        record = messages.Record()
        record.ParseFromString(frame)
        yield end, record


def _frames(data: bytes, base: int) -> Iterator[tuple[int, bytes]]:
    """Whole records of ``data``, which begins at ``base`` of the file, each with the place after it."""
    position, parts = base, b""
    while position + _HEADER.size <= base + len(data):
        left_in_block = _BLOCK_BYTES - position % _BLOCK_BYTES
        if left_in_block < _HEADER.size:
            position += left_in_block
            continue
        _, length, kind = _HEADER.unpack_from(data, position - base)
        start, position = position + _HEADER.size, position + _HEADER.size + length
        if position > base + len(data) or kind not in {_FULL, _FIRST, _MIDDLE, _LAST}:
            return
        piece = data[start - base : position - base]
        parts = piece if kind in {_FULL, _FIRST} else parts + piece
        if kind in {_FULL, _LAST}:
            yield position, parts
