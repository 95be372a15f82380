"""A part of a ``.pt`` file on a remote: of the tensors' bytes, only those asked for are moved.

A ``.pt`` file is a zip file that is not compressed: a pickle that says which tensors there are, an entry for each of
their storages, and a directory of all entries with the CRC-32 of each. The directory and the pickle are read first; of
a local file of the same length, with holes, the rest is filled in as far as it is wanted; ``torch.load`` maps it.

Owns: which ranges hold which tensors, and the check of their bytes. Does not own: requests (``transfer.ranges``), what
is chosen (``selecting``), or which file (``load_part``).

Invariant: of what ``load`` gives, every byte of the tensors that were brought, and the pickle, has the CRC-32 of its
entry. That tells damage, not forgery: the file's sha256, which the journal has, can be checked of a whole file alone.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import torch

from artifactsync.checkpoint.copying import MAX_COPIERS
from artifactsync.checkpoint.load import load_plain
from artifactsync.checkpoint.placing import restored
from artifactsync.checkpoint.zip_layout import (
    LOCAL_HEADER,
    SIGNATURE,
    Entry,
    IndivisibleError,
    RemoteTail,
    read_entries,
)
from artifactsync.errors import DamagedError
from artifactsync.transfer.folder import NOFOLLOW, local_error

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence
    from pathlib import Path

    from artifactsync.transfer.ranges import RangeReader

_READ_BYTES = 4 << 20
_ROUNDS = 3  # bytes that came out wrong are fetched again so often, as in transfer.downloader
_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size)


class PtPart:
    """A file of which a part is brought here. Close it; what ``load`` gave stays.

    Args:
        reader: The remote object.
        local: The local file with holes. What of it is there with the right checksum is not fetched again.

    Raises:
        IndivisibleError: it is compressed, has no checksums, or was laid out by another program than torch.
        DamagedError: it is no zip file, or what describes its tensors does not have its checksum.
        DiskFullError, DestinationError: the local file cannot be written.
    """

    def __init__(self, reader: RangeReader, local: Path) -> None:
        self._reader, self._local = reader, local
        self.url = reader.url
        """For messages."""
        remote = RemoteTail(reader)
        try:
            with zipfile.ZipFile(remote) as file:
                self._storages, self._others = read_entries(file)
        except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError) as error:
            raise self._damaged(f"its directory cannot be read ({error})") from error
        try:
            local.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(local, os.O_RDWR | os.O_CREAT | NOFOLLOW, 0o600)
            try:
                self._is_new = os.fstat(self._fd).st_size != reader.size_bytes
                if self._is_new:
                    os.ftruncate(self._fd, 0)
                    os.ftruncate(self._fd, reader.size_bytes)
                tail_start, tail = remote.tail
                self._write_headers()
                self._write(tail, tail_start)
                in_tail = {entry for entry in self._others if entry.start >= tail_start}
                self._bring(self._others, was_there=in_tail.difference(self._wrong(in_tail)))
            except BaseException:
                os.close(self._fd)
                raise
        except OSError as error:
            raise local_error(error, local) from error
        self._at: dict[int, Entry] = {}  # by the address of the storage in the outline
        self._order: list[Entry | None] = []  # as torch.load meets the storages
        self._brought: set[Entry] = set()

    def outline(self) -> Any:
        """The state with all its tensors, none of which has its values.

        Raises:
            IndivisibleError: it cannot be told which tensor is where.
            ConfigurationError: the file holds objects that ``torch.load(weights_only=True)`` refuses.
        """
        met: list[tuple[int, int]] = []

        def note(storage: torch.UntypedStorage, _location: str) -> torch.UntypedStorage:
            met.append((storage.data_ptr(), storage.nbytes()))
            return storage

        try:
            state = load_plain(self._local, note)
        except DamagedError as error:  # whatever torch does not like about it, the whole file will tell
            raise IndivisibleError(str(error)) from error
        # Where the file is mapped is not told; but all storages are met, each as far from the first as in the file.
        found = sorted((address, size) for address, size in met if size)
        if [size for _, size in found] != [entry.size for entry in self._storages]:
            raise IndivisibleError("its entries are not those that its tensors name")
        base = found[0][0] - self._storages[0].data if found else 0
        self._at = {base + entry.data: entry for entry in self._storages}
        if any(address not in self._at for address, _ in found):
            raise IndivisibleError("its entries are not where its tensors are")
        self._order = [self._at[address] if size else None for address, size in met]
        return state

    def bring(self, chosen: Any) -> int:
        """Bring the bytes of the tensors of ``outline`` that are in ``chosen``; says how many storages were its.

        Raises:
            DamagedError: they do not have their checksums.
            IndivisibleError: something in it is no ordinary tensor.
        """
        wanted = {entry for address in set(storage_addresses(chosen)) if (entry := self._at.get(address))}
        there = set() if self._is_new else wanted - set(self._wrong(wanted))
        self._bring(wanted, was_there=there)
        self._brought |= wanted
        return len(wanted)

    def load(self, map_location: Any) -> Any:
        """The state; only what was brought has values, and is put where ``map_location`` says.

        Raises:
            IndivisibleError: torch looked for it elsewhere in the file.
        """
        order, bases = iter(self._order), set()

        def place(storage: torch.UntypedStorage, location: str) -> Any:
            entry = next(order)
            if entry is not None:
                bases.add(storage.data_ptr() - entry.data)
            return storage if entry and entry not in self._brought else restored(storage, location, map_location)

        state = load_plain(self._local, place)
        if len(bases) > 1:
            raise IndivisibleError("its entries are not where its tensors are")
        return state

    def close(self) -> None:
        """Let go of the local file; it stays under its name."""
        os.close(self._fd)

    def _bring(self, wanted: Collection[Entry], *, was_there: Collection[Entry]) -> None:
        left: Sequence[Entry] = [entry for entry in wanted if entry not in was_there]
        for _ in range(_ROUNDS):
            if not left:
                return
            self._reader.bring([(entry.start, entry.end) for entry in left], self._fd, self._local)
            left = self._wrong(left)
        if left:
            raise self._damaged(f"{left[0].name} does not have its checksum")

    def _wrong(self, entries: Iterable[Entry]) -> list[Entry]:
        """Those that are not in the local file as the directory says."""
        every = list(entries)
        with ThreadPoolExecutor(MAX_COPIERS, "artifactsync-check") as threads:  # zlib lets go of the interpreter lock
            return [entry for entry, right in zip(every, threads.map(self._is_right, every), strict=True) if not right]

    def _is_right(self, entry: Entry) -> bool:
        header = os.pread(self._fd, entry.data - entry.start, entry.start)
        name = entry.name.encode()
        if not header.startswith(SIGNATURE) or header[LOCAL_HEADER.size :][: len(name)] != name:
            return False
        *_, name_bytes, extra_bytes = LOCAL_HEADER.unpack_from(header)
        if LOCAL_HEADER.size + name_bytes + extra_bytes != len(header):
            raise IndivisibleError("its entries are not laid out as torch.save does it")
        crc, at, end = 0, entry.data, entry.data + entry.size
        while at < end:
            data = os.pread(self._fd, min(_READ_BYTES, end - at), at)
            if not data:
                return False
            crc, at = zlib.crc32(data, crc), at + len(data)
        return crc == entry.crc

    def _write_headers(self) -> None:
        """Have torch find every entry, also where its data is a hole: only the lengths in a header matter to it."""
        for entry in self._storages:
            name = entry.name.encode()
            extra_bytes = entry.data - entry.start - LOCAL_HEADER.size - len(name)
            self._write(LOCAL_HEADER.pack(SIGNATURE, *[0] * 8, len(name), extra_bytes) + name, entry.start)

    def _write(self, data: bytes, at: int) -> None:
        view = memoryview(data)
        while view:
            written = os.pwrite(self._fd, view, at)
            view, at = view[written:], at + written

    def _damaged(self, what: str) -> DamagedError:
        return DamagedError(
            f"{self._reader.url} is damaged: {what}", hint="use an older checkpoint", url=self._reader.url
        )


def storage_addresses(value: Any) -> Iterator[int]:
    """Yield where the bytes of every tensor are.

    Raises:
        IndivisibleError: there is something else that may have bytes of its own.
    """
    if isinstance(value, torch.Tensor):
        if value.layout != torch.strided:
            raise IndivisibleError(f"a tensor of layout {value.layout} is made of several")
        if value.untyped_storage().nbytes():
            yield value.untyped_storage().data_ptr()
    elif isinstance(value, dict):
        for item in value.values():
            yield from storage_addresses(item)
    elif type(value) in (list, tuple, set):
        for item in value:
            yield from storage_addresses(item)
    elif not isinstance(value, _PLAIN):
        raise IndivisibleError(f"a {type(value).__name__} may have bytes of its own")
