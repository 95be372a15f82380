"""A Body as a file object, for libraries that read files.

Invariant: the last byte is not given before the body has ended well. So a body that finds out at its very end that
its file changed stops the upload in time, and so does one of a wrong length.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from artifactsync.errors import FileChangedError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from artifactsync.stores.protocol import Body


class BodyStream(io.RawIOBase):
    """Reads ``body`` from its beginning; seeking back reads it anew.

    Args:
        body: What to read.
        chunk_bytes: How much to ask for at once; up to two chunks are in memory.
    """

    def __init__(self, body: Body, chunk_bytes: int) -> None:
        super().__init__()
        self._body = body
        self._chunk_bytes = chunk_bytes
        self._position = 0
        self._chunks: Iterator[bytes] | None = None
        self._ahead: bytes | None = None

    def readable(self) -> bool:
        """Whether ``read`` works: it does."""
        return True

    def seekable(self) -> bool:
        """Whether ``seek`` works: it does."""
        return True

    def tell(self) -> int:
        """Bytes from the beginning."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to ``offset``; costs reading up to there."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._body.size_bytes}[whence]
        target = min(max(start + offset, 0), self._body.size_bytes)
        if target != self._position:
            self._chunks, self._ahead, self._position = None, None, 0
            while self._position < target:
                self.read(min(self._chunk_bytes, target - self._position))
        return self._position

    def read(self, size: int = -1, /) -> bytes:
        """Read up to ``size`` bytes, less only at the end.

        Raises:
            FileChangedError: from the body, or because its length is not what it said.
        """
        wanted = self._body.size_bytes - self._position
        wanted = wanted if size is None or size < 0 else min(size, wanted)
        if self._chunks is None:
            self._chunks = self._body.chunks(self._chunk_bytes)
            self._ahead = next(self._chunks, None)
        pieces: list[bytes] = []
        while wanted and self._ahead is not None:
            piece = self._ahead[:wanted]  # the same object where it is wanted whole
            rest = self._ahead[len(piece) :]
            self._ahead = rest or next(self._chunks, None)
            self._position += len(piece)
            wanted -= len(piece)
            pieces.append(piece)
        if wanted or (self._position == self._body.size_bytes and self._ahead):
            raise FileChangedError(f"the body is not the {self._body.size_bytes} bytes long that it said")
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def readinto(self, buffer: object, /) -> int:
        """Read into ``buffer``; for ``io.BufferedReader``."""
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]  # typeshed's Buffer is 3.12's
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)
