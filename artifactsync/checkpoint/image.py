"""A ``.pt`` file that exists in memory only, as a list of pieces: every byte is known before any is written.

Owns: the file's bytes and their order, its length, and a checksum of each storage in it. Does not own: the way to the
disk (``write``), or what belongs into the file (``layout``).

Tensor data is never copied: its pieces are views of the snapshot's own memory. What lies between them comes from
``torch.save`` itself, which is given a file that notes instead of storing, so the format is torch's in every version.
The one pass that this costs is the pass in which torch computes the CRC-32 of each storage, with the interpreter lock
released; those checksums tell what has changed since the last checkpoint.

Invariant: the pieces, joined, are exactly what ``torch.save`` would have written; the same state gives the same bytes.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_SLICE_BYTES = 4 * 1024 * 1024
"""The longest piece that is hashed or written at once: long enough that the interpreter lock is hardly ever taken."""
_SHORT_BYTES = 4096  # shorter data is copied: a view costs as much
_DESCRIPTOR = b"PK\x07\x08"  # begins what follows the data of an entry. Source: PKWARE APPNOTE.TXT 6.3.10, 4.3.9.3
_CRC = slice(4, 8)


class Image:
    """The bytes of a file. The memory that its pieces are views of must not change while it is in use.

    Args:
        pieces: The bytes, in order.
        checksums: CRC-32 of each storage's bytes, by the storage's address.
        keep: What must stay alive as long as it does.
    """

    def __init__(self, pieces: Sequence[memoryview], checksums: dict[int, int], keep: Any) -> None:
        self._pieces, self._keep = pieces, keep
        self.size_bytes = sum(map(len, pieces))
        """Length of the file."""
        self.checksums = checksums
        """CRC-32 of each storage's bytes, by the storage's address."""

    def slices(self) -> Iterator[memoryview]:
        """Yield the file's bytes in order, a few MiB at a time. Any number of threads may do so at once."""
        for piece in self._pieces:
            for start in range(0, len(piece), _SLICE_BYTES):
                yield piece[start : start + _SLICE_BYTES]

    def sha256(self) -> str:
        """The hash of the whole file; the interpreter lock is free nearly all the time."""
        digest = hashlib.sha256()
        for data in self.slices():
            digest.update(data)
        return digest.hexdigest()


class FileImage(Image):
    """The bytes that ``torch.save(state)`` writes.

    Args:
        state: Plain containers and CPU tensors. Their memory must not change while the image is in use.
    """

    def __init__(self, state: Any) -> None:
        recorder = _Recorder(state)
        torch.save(state, recorder)  # type: ignore[arg-type]  # write and flush are all it uses
        super().__init__(recorder.pieces(), recorder.checksums, state)


class _Recorder:
    """The file object that ``torch.save`` believes in."""

    def __init__(self, state: Any) -> None:
        self.checksums: dict[int, int] = {}
        spans = sorted({(s.data_ptr(), s.data_ptr() + s.nbytes()) for s in storages(state)})
        self._starts = [start for start, _ in spans]
        self._ends = [end for _, end in spans]
        self._pieces: list[memoryview] = []
        self._gathered = bytearray()
        self._last_address = 0

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        address = self._address_in_state(view)
        if self._last_address and bytes(view[:4]) == _DESCRIPTOR:
            self.checksums[self._last_address] = int.from_bytes(view[_CRC], "little")
            self._last_address = 0
        if address:
            self._last_address = address
        if address and len(view) >= _SHORT_BYTES:
            self._flush()
            self._pieces.append(view)
        else:
            self._gathered += view
        return len(view)

    def flush(self) -> None:
        """Called by torch; nothing is to be done."""

    def pieces(self) -> list[memoryview]:
        self._flush()
        return self._pieces

    def _flush(self) -> None:
        if self._gathered:
            self._pieces.append(memoryview(bytes(self._gathered)))
            self._gathered.clear()

    def _address_in_state(self, view: memoryview) -> int:
        """Where the data lies, if within a storage of the state; else 0: it is torch's, and gone after this call."""
        if not len(view):
            return 0
        address: int = np.frombuffer(view, np.uint8).__array_interface__["data"][0]
        at = bisect_right(self._starts, address) - 1
        return address if at >= 0 and address + len(view) <= self._ends[at] else 0


def storages(value: Any) -> Iterator[torch.UntypedStorage]:
    """Yield the storages of a state's CPU tensors, shared ones as often as they are met."""
    for _, tensor in tensors(value):
        if tensor.layout == torch.strided and tensor.device.type == "cpu" and tensor.untyped_storage().nbytes():
            yield tensor.untyped_storage()


def tensors(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], torch.Tensor]]:
    """Yield every tensor of a state with the keys and indices that lead to it."""
    if isinstance(value, torch.Tensor):
        yield path, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from tensors(item, (*path, key))
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from tensors(item, (*path, index))
