"""Where the entries of a ``.pt`` file lie, from the end of the remote object.

Owns: the directory of a zip file as ``torch.save`` lays it out. Does not own: what the entries mean to a state
(``pt_part``).

Invariant: an entry's data lies where ``data`` says, or it is found out when its header is compared with it.
"""

from __future__ import annotations

import io
import os
import struct
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from artifactsync.transfer.ranges import RangeReader

SIGNATURE = b"PK\x03\x04"
LOCAL_HEADER = struct.Struct("<4s5H3I2H")
"""What each entry begins with; its last numbers are the lengths of the name and of what is between name and data.

Source: PKWARE APPNOTE.TXT 6.3.10, 4.3.7.
"""
_TAIL_BYTES = 64 * 1024  # holds the directory of some 700 tensors, and what is small and written last
_ZIP64 = 0xFFFFFFFF


class IndivisibleError(Exception):
    """Of this file no part can be taken, and checked, by itself: take the whole."""


@dataclass(frozen=True)
class Entry:
    """One entry of the zip file."""

    name: str
    start: int
    """Where its header begins."""
    data: int
    """Where its data begins."""
    size: int
    """Bytes of data."""
    end: int
    """Where the next entry begins."""
    crc: int
    """CRC-32 of the data."""


class RemoteTail(io.RawIOBase):
    """What ``zipfile`` reads the directory from: the end of the object, and as much before it as it asks for."""

    def __init__(self, reader: RangeReader) -> None:
        super().__init__()
        self._reader, self._at = reader, 0
        start = max(0, reader.size_bytes - _TAIL_BYTES)
        self.tail = start, reader.read(start, reader.size_bytes)
        """Offset, and the bytes from there to the end."""

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place in the object."""
        self._at = offset + (0, self._at, self._reader.size_bytes)[whence]
        if self._at < 0:
            raise ValueError("negative seek position")
        return self._at

    def tell(self) -> int:
        """The place in the object."""
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Read at the place; says how much came."""
        start, data = self.tail
        if self._at < start:
            self.tail = start, data = self._at, self._reader.read(self._at, start) + data
        part = data[self._at - start :][: len(buffer)]
        buffer[: len(part)] = part
        self._at += len(part)
        return len(part)


def read_entries(file: zipfile.ZipFile) -> tuple[list[Entry], list[Entry]]:
    """The entries that hold tensors' bytes, if any, and the others, each in the order of the file."""
    infos = sorted(file.infolist(), key=lambda info: info.header_offset)
    pickles = [info for info in infos if info.filename.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise IndivisibleError("it is no file of torch.save")
    if not pickles[0].CRC:  # torch.serialization.set_crc32_options(False)
        raise IndivisibleError("it was saved without checksums")
    storages = pickles[0].filename.removesuffix(".pkl") + "/"
    ends = [*(info.header_offset for info in infos[1:]), file.start_dir]
    found: tuple[list[Entry], list[Entry]] = [], []
    for info, end in zip(infos, ends, strict=True):
        start, size = info.header_offset, info.file_size
        if info.compress_type != zipfile.ZIP_STORED:
            raise IndivisibleError("it is compressed")
        if not size:
            continue
        # What follows the data is its length once more, in 64 bits where the header's are too short.
        # Source: pytorch, third_party/miniz-3.0.2 mz_zip_writer_add_mem_ex_v2, read 2026-11.
        data = end - size - (24 if max(size, start) >= _ZIP64 else 16)
        extra_bytes = data - start - LOCAL_HEADER.size - len(info.filename.encode())
        if not 0 <= extra_bytes < 1 << 16:
            raise IndivisibleError("its entries do not follow each other as torch.save writes them")
        entry = Entry(name=info.filename, start=start, data=data, size=size, end=end, crc=info.CRC)
        found[not info.filename.startswith(storages)].append(entry)
    return found
