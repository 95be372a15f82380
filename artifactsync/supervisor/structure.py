"""Whether a checkpoint's file is whole, and which step it says it is of, by its bytes; nothing is ever unpickled.

Owns: the shapes of zip archives (``torch.save``), safetensors, and the metadata of torch.distributed.checkpoint. Does
not own: which files belong together (``units``).

Invariant: no code of a file is run; a pickle is read as a list of its words and numbers.
"""

from __future__ import annotations

import json
import os
import pickletools
import struct
import zipfile
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

STEP_KEYS = ("global_step", "global_steps", "iteration", "num_updates", "step", "steps")
"""Names under which trainers keep the number of steps in a checkpoint, the surest first: those of Lightning, DeepSpeed,
Megatron, fairseq and plain loops."""

_ZIP_MAGIC, _ZIP_END = b"PK\x03\x04", b"PK\x05\x06"
_ZIP_END_BYTES = 22
_ZIP_TAIL_BYTES = _ZIP_END_BYTES + 65_535  # the record at the end, and the longest comment behind it
_MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit
_MAX_PICKLE_BYTES = 16 * 1024 * 1024  # beyond, the step is not looked for: tensors' bytes are never in there
_MAX_STEP = 2**53 - 1


def is_whole(path: Path) -> bool:
    """Whether a checkpoint's file is all there, as far as its format tells; a format that does not tell is believed.

    Args:
        path: A file; of ``.safetensors`` the header is compared with the length, a zip must have its directory.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size == 0:
                return False
            if path.suffix == ".safetensors":
                return _is_safetensors_whole(file, size)
            head = file.read(4)
            if head != _ZIP_MAGIC:
                # A bare pickle or another format: being closed, and left alone, is all there is to know.
                return not _ZIP_MAGIC.startswith(head)
            file.seek(max(0, size - _ZIP_TAIL_BYTES))
            tail = file.read()
            end = tail.rfind(_ZIP_END)
            if end < 0 or len(tail) < end + _ZIP_END_BYTES:
                return False
        with zipfile.ZipFile(path) as archive:  # reads the directory, and compares its place with the length
            return bool(archive.infolist())
    except (OSError, ValueError, zipfile.BadZipFile, struct.error):
        return False


def tells_whether_whole(path: Path) -> bool:
    """Whether the file's format shows that it is whole."""
    if path.suffix == ".safetensors":
        return True
    try:
        with path.open("rb") as file:
            return file.read(4) == _ZIP_MAGIC
    except OSError:
        return False


def missing_shards(metadata: Path) -> list[str]:
    """Files that the ``.metadata`` of a distributed checkpoint names and that are not beside it."""
    try:
        if metadata.stat().st_size > _MAX_PICKLE_BYTES:
            return []
        words = {word for word in _words(metadata.read_bytes()) if isinstance(word, str) and word.endswith(".distcp")}
    except OSError:
        return [metadata.name]
    return sorted(word for word in words if "/" not in word and not (metadata.parent / word).is_file())


def step_inside(path: Path) -> int | None:
    """The number of steps that a checkpoint's file says it is of; None if it says none that is understood."""
    try:
        if path.suffix == ".safetensors":
            return _step_of(_safetensors_metadata(path).items())
        if path.suffix == ".json":
            found = json.loads(path.read_bytes())
            return _step_of(found.items()) if isinstance(found, dict) else None
        with zipfile.ZipFile(path) as archive:
            pickles = [info for info in archive.infolist() if info.filename.rpartition("/")[2] == "data.pkl"]
            if not pickles or pickles[0].file_size > _MAX_PICKLE_BYTES:
                return None
            return _step_of(_pairs(archive.read(pickles[0])))
    except (OSError, ValueError, zipfile.BadZipFile, struct.error, RuntimeError, NotImplementedError):
        return None


def _is_safetensors_whole(file: Any, size: int) -> bool:
    (length,) = struct.unpack("<Q", file.read(8))
    if length > min(size - 8, _MAX_HEADER_BYTES):
        return False
    header = json.loads(file.read(length))
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    return bool(size == 8 + length + max(ends, default=0))


def _safetensors_metadata(path: Path) -> dict[str, str]:
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(min(length, _MAX_HEADER_BYTES)))
    found: dict[str, str] = header.get("__metadata__") or {}
    return found


def _step_of(pairs: Iterable[tuple[Any, Any]]) -> int | None:
    """The step among pairs of names and values; of the surest name, and there the first: it stands at the top."""
    found: dict[str, int] = {}
    for name, value in pairs:
        if name in STEP_KEYS and name not in found:
            number = int(value) if isinstance(value, str) and value.isdigit() else value
            if isinstance(number, int) and not isinstance(number, bool) and 0 <= number <= _MAX_STEP:
                found[name] = number
    return next((found[name] for name in STEP_KEYS if name in found), None)


def _pairs(data: bytes) -> Iterator[tuple[Any, Any]]:
    """Each word of a pickle with what comes right after it, as the key of a dict and its value do."""
    before: Any = None
    for word in _words(data):
        if isinstance(before, str):
            yield before, word
        before = word


def _words(data: bytes) -> Iterator[Any]:
    """Texts and numbers of a pickle in order; anything else in between is a None."""
    try:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name.startswith(("BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE", "FRAME", "PROTO")):
                continue
            yield argument if isinstance(argument, (str, int)) and "GLOBAL" not in opcode.name else None
    except (ValueError, IndexError, KeyError):  # no pickle
        return
