"""A file of known length that is sent while it is still being written.

Owns: ``FileBeingWritten``, where its writer says how far it is, and ``GrowingBody``, which waits for that. Does not
own: the writing (``checkpoint.write``), or trying again (``queue``).

Invariants: the last chunk of a body is not given out before the writer has said that the file is whole on the disk,
under its name. So an object exists only if the local file does; a file whose writing fails never becomes one. What is
sent is the very file that was written: one that took its name since is never sent in its place.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from artifactsync.errors import FileChangedError, UploadError
from artifactsync.transfer.hashing import FileDigest
from artifactsync.transfer.removal import let_go

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Self

_LOOK_S = 0.2  # how often somebody who waits for bytes looks whether the queue was closed

_spare: deque[None] = deque([None] * 32)
"""Descriptors of whole files that this process may hold: others that wait for their turn, in an outage by the hundred,
are opened again by their name. Taken and given back without a lock: ``__del__`` does so too."""


Listener = Callable[["int | BaseException | tuple[FileDigest, tuple[int, ...]]"], object]
"""Told how many bytes can be read; or why there will be no more; or the digest and the identity of the whole file."""


class FileBeingWritten:
    """What the writer of a file and the upload of it have in common. Thread-safe.

    Args:
        fd: The file, open for reading; it is duplicated.
        name: Its path, once it is whole.
        size_bytes: How long it will be.
    """

    def __init__(self, fd: int, name: str, size_bytes: int) -> None:
        self._fd = -1
        self._fd = os.dup(fd)
        self._changed = threading.Condition()
        self._written_bytes = 0
        self._error: BaseException | None = None
        self._identity: tuple[int, ...] = ()
        self._readers = 0
        self._is_spare = False
        self._pid = os.getpid()
        self._listeners: list[Listener] = []
        self.name = name
        self.size_bytes = size_bytes
        self.digest: FileDigest | None = None
        """Of the whole file; None before it is whole."""

    # For the writer.

    def advance(self, count_bytes: int) -> None:
        """``count_bytes`` more can be read."""
        with self._changed:
            self._written_bytes += count_bytes
            self._tell()

    def finish(self, sha256: str, identity: tuple[int, ...] = ()) -> None:
        """The file is whole, on the disk, and has its name.

        Args:
            sha256: Of its bytes, in lower-case hex.
            identity: What the writer saw of it then; left out by the writer itself.
        """
        with self._changed:
            self._identity = identity or _identity(self._fd)
            self._written_bytes = self.size_bytes
            self.digest = FileDigest(self.size_bytes, sha256)
            with suppress(IndexError):
                _spare.pop()
                self._is_spare = True
            self._close_if_idle()
            self._tell()

    def fail(self, error: BaseException) -> None:
        """The file will never be whole."""
        with self._changed:
            self._error = self._error or error
            self._tell()

    # For the upload.

    def open(self, on_read: Callable[[int], None]) -> GrowingBody:
        """A body of the file; each try of an upload opens its own, and closes it.

        Raises:
            UploadError: the file is not there any more; another one may have its name.
        """
        with self._changed:
            if self._fd < 0:
                self._fd = self._reopened()
            self._readers += 1
        return GrowingBody(self, on_read)

    def release(self) -> None:
        """A body is closed."""
        if os.getpid() == self._pid:  # else some thread of the parent may have held the lock when this one forked
            with self._changed:
                self._readers -= 1
                self._close_if_idle()

    @contextmanager
    def heard_by(self, listener: Listener) -> Iterator[None]:
        """While inside, ``listener`` is told how far the writer is: at once, and after each step, on his thread."""
        with self._changed:
            self._listeners.append(listener)
            self._tell_one(listener)
        try:
            yield
        finally:
            with self._changed:
                self._listeners.remove(listener)

    def duplicate(self) -> int:
        """A descriptor of the file, for another process; the caller's to close. A body must be open."""
        return os.dup(self._fd)

    @property
    def error(self) -> BaseException | None:
        """What made the writer fail; None while it has not."""
        return self._error

    def wait_until_whole(self) -> FileDigest:
        """Wait for the writer.

        Raises:
            BaseException: what made it fail.
        """
        with self._changed:
            self._changed.wait_for(lambda: self.digest or self._error)
            if self.digest is None:
                assert self._error is not None
                raise self._error
            return self.digest

    def wait_for(self, end: int, idle: Callable[[], None]) -> None:
        """Wait until the bytes below ``end`` can be read; at the very end, until the file is whole.

        Args:
            end: An offset.
            idle: Called every moment while there is nothing to do; may raise.

        Raises:
            UploadError: the file will never be whole.
        """
        while True:
            with self._changed:
                is_ready = self.digest is not None or (end < self.size_bytes and end <= self._written_bytes)
                if not is_ready and self._error is None:
                    self._changed.wait(_LOOK_S)
            if is_ready:
                return
            if self._error is not None:
                raise UploadError(
                    f"{self.name} was not sent, because it could not be written: {self._error}",
                    hint=getattr(self._error, "hint", ""),
                ) from self._error
            idle()

    def read(self, start: int, end: int) -> bytes:
        """Return the bytes ``[start, end)``, which have been waited for.

        Raises:
            FileChangedError: they are not there any more.
        """
        pieces = []
        while start < end:
            data = os.pread(self._fd, end - start, start)
            if not data:
                raise FileChangedError(f"{self.name} was cut while it was sent")
            pieces.append(data)
            start += len(data)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def check_unchanged(self) -> None:
        """Do nothing if nobody has written to the file since it was whole.

        Raises:
            FileChangedError: somebody has.
        """
        if _identity(self._fd) != self._identity:
            raise FileChangedError(
                f"{self.name} was changed after it was written", hint="never change a checkpoint's file in place"
            )

    def close(self) -> None:
        """Close the descriptor, when nobody will send the file again. Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            let_go(fd)
        if self._is_spare:
            self._is_spare = False
            _spare.append(None)

    def _tell(self) -> None:
        """With the lock held: wake those who wait, and tell those who listen."""
        self._changed.notify_all()
        for listener in self._listeners:
            self._tell_one(listener)

    def _tell_one(self, listener: Listener) -> None:
        if self._error is not None:
            listener(self._error)
        elif self.digest is not None:
            listener((self.digest, self._identity))
        else:
            listener(self._written_bytes)

    def _close_if_idle(self) -> None:
        """With the lock held: let go of the descriptor, if too many are held and nobody reads."""
        if self.digest is not None and not self._readers and not self._is_spare:
            self.close()

    def _reopened(self) -> int:
        gone = UploadError(
            f"{self.name} was replaced or removed before it was sent",
            hint="give each checkpoint a file of its own, as the default names do",
        )
        try:
            fd = os.open(self.name, os.O_RDONLY)
        except OSError as error:
            raise gone from error
        if _identity(fd) != self._identity:
            os.close(fd)
            raise gone
        return fd

    def __del__(self) -> None:
        self.close()


def _identity(fd: int) -> tuple[int, ...]:
    """Equal for the same bytes of the same file, whatever its name."""
    now = os.fstat(fd)
    return now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns


class GrowingBody:
    """The bytes of a file being written, as fast as they come. A ``stores.protocol.Body``.

    The hash is the writer's, of the very bytes that it wrote: nothing is hashed twice.
    """

    def __init__(self, source: FileBeingWritten, on_read: Callable[[int], None]) -> None:
        self._source = source
        self._on_read = on_read
        self._is_open = True

    @property
    def size_bytes(self) -> int:
        """Exact length."""
        return self._source.size_bytes

    def chunks(self, chunk_bytes: int) -> Iterator[bytes]:
        """Yield the bytes in order, each chunk but the last exactly ``chunk_bytes`` long.

        Raises:
            UploadError: the file will never be whole.
            FileChangedError: somebody else wrote to it.
        """
        for start in range(0, self.size_bytes, chunk_bytes):
            end = min(start + chunk_bytes, self.size_bytes)
            self._source.wait_for(end, lambda: self._on_read(0))
            data = self._source.read(start, end)
            if end == self.size_bytes:
                self._source.check_unchanged()
            self._on_read(len(data))
            yield data

    def digest_now(self) -> FileDigest:
        """The digest of the file, which is whole."""
        return self._source.wait_until_whole()

    def close(self) -> None:
        """Let go of the source. Idempotent."""
        if self._is_open:
            self._is_open = False
            self._source.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
