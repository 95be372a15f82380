"""Open files of a ``StoreFileSystem``: reading by ranges, and writing that shows nothing until it is whole.

Invariant: a ``with`` block that ends with an exception publishes nothing (fsspec's own files would upload what they
have).
"""

from __future__ import annotations

import io
import os
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from fsspec.spec import AbstractBufferedFile

from artifactsync.errors import FileChangedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from artifactsync.stores.protocol import Body, Store

_IN_MEMORY_BYTES = 8 * 2**20
"""What is written stays in memory up to here, then goes to a temporary file."""


@dataclass(frozen=True)
class FileBody:
    """The body of an upload from an open, seekable file; one read at a time.

    Args:
        file: Read from its beginning.
        size_bytes: Exactly so many bytes are sent.
    """

    file: BinaryIO
    size_bytes: int

    def chunks(self, chunk_bytes: int) -> Iterator[bytes]:
        """Yield the bytes; see ``Body.chunks``."""
        before = _state(self.file)
        self.file.seek(0)
        left_bytes = self.size_bytes
        while left_bytes:
            chunk = self.file.read(min(chunk_bytes, left_bytes))
            if not chunk:
                raise FileChangedError(f"{_name(self.file)} became shorter while it was read")
            left_bytes -= len(chunk)
            yield chunk
        if _state(self.file) != before:
            raise FileChangedError(f"{_name(self.file)} changed while it was read")


class ReadFile(AbstractBufferedFile):  # type: ignore[misc]  # fsspec ships no types
    """An object open for reading; fsspec reads ahead, the store is asked for ranges."""

    def __init__(self, fs: Any, store: Store, path: str, **kwargs: Any) -> None:
        super().__init__(fs, path, "rb", **kwargs)
        self._store = store

    def _fetch_range(self, start: int, end: int) -> bytes:
        return self._store.get(self.path, start=start, end=end)


class WriteFile(io.BufferedIOBase):
    """An object open for writing: put as a whole when it is closed.

    Args:
        publish: Puts the body.
        first: What is there already, when appending.
        autocommit: Put at ``close``; otherwise wait for ``commit`` or ``discard`` (fsspec's transactions).
    """

    def __init__(self, publish: Callable[[Body], object], *, first: bytes = b"", autocommit: bool = True) -> None:
        super().__init__()
        self._publish = publish
        self._autocommit = autocommit
        self._spool = tempfile.SpooledTemporaryFile(_IN_MEMORY_BYTES)  # noqa: SIM115 it lives as long as this file
        self._is_open = True
        self._spool.write(first)

    def writable(self) -> bool:
        """Whether ``write`` works: it does."""
        return True

    def seekable(self) -> bool:
        """Whether ``seek`` works: it does, nothing was sent yet."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Go to a position, to write over what is there."""
        self._spool.seek(offset, whence)
        return self._spool.tell()

    def tell(self) -> int:
        """The position."""
        return self._spool.tell()

    def truncate(self, size: int | None = None, /) -> int:
        """Cut what was written."""
        size = self._spool.tell() if size is None else size
        self._spool.truncate(size)
        return size

    def write(self, data: Any, /) -> int:
        """Take ``data``."""
        if not self._is_open:
            raise ValueError("I/O operation on closed file.")  # the words of every Python file
        return self._spool.write(data)

    def close(self) -> None:
        """Put what was written. The second time does nothing."""
        if self._is_open:
            self._is_open = False
            super().close()
            if self._autocommit:
                self.commit()

    def commit(self) -> None:
        """Put what was written, of a file that was opened within a transaction."""
        try:
            self._spool.seek(0, io.SEEK_END)
            self._publish(FileBody(cast("BinaryIO", self._spool), self._spool.tell()))
        finally:
            self._spool.close()

    def discard(self) -> None:
        """Forget what was written."""
        self._is_open = False
        super().close()
        self._spool.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()


class TextWriteFile(io.TextIOWrapper):
    """The same for text."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            cast("WriteFile", self.buffer).discard()
        else:
            self.close()


def _state(file: BinaryIO) -> tuple[int, int] | None:
    """Size and time of a named file; nothing of a temporary one, which is nobody else's."""
    if not isinstance(getattr(file, "name", None), str):
        return None
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns


def _name(file: BinaryIO) -> str:
    return str(getattr(file, "name", None) or "the temporary file")
