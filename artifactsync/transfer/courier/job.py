"""One job of the courier, as the training's process sees it.

Owns: ``Job``, waiting for its outcome and telling how far its file is written; ``FileHash``. Does not own: the process,
or what a job is (``wire``).

Invariant: whoever writes the file waits for nobody; what is said last is heard.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import TYPE_CHECKING

from artifactsync.errors import UploadError
from artifactsync.transfer.courier import wire

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Self

    from artifactsync.errors import TransientStoreError
    from artifactsync.transfer.courier.other import Other
    from artifactsync.transfer.hashing import FileDigest

_LOOK_S = 0.25  # how often who waits for a job looks whether it is still wanted


class Job:
    """One job of the process. Closing it gives it up.

    Args:
        process: Who does it.
        there: The socket of the job; the job's to close.
        lost: Told that the process is gone; returns what to raise.
    """

    def __init__(self, process: Other, there: socket.socket, lost: Callable[[], TransientStoreError]) -> None:
        self._process, self._there, self._lost = process, there, lost
        self._moved_bytes = 0
        there.settimeout(_LOOK_S)
        self._out = there.dup()
        self._out.setblocking(False)  # whoever writes the file waits for nobody
        self._saying = threading.Lock()
        self._unsaid: wire.Written | wire.Whole | None = None
        self._why_not: BaseException | None = None

    def outcome(self, on_read: Callable[[int], None]) -> wire.Sent | wire.Hashed:
        """Wait for the end of the job.

        Raises:
            ArtifactSyncError: it failed, or ``on_read`` gave it up.
        """
        while True:
            try:
                message, _ = wire.hear(self._there)
            except TimeoutError:
                on_read(0)
                self._say()
                if self._process.is_alive:
                    continue
                message = None  # a child that was forked just then holds the other end of the socket
            if isinstance(message, wire.Moved):
                on_read(message.total_bytes - self._moved_bytes)
                self._moved_bytes = message.total_bytes
            elif isinstance(message, (wire.Sent, wire.Hashed)):
                if isinstance(message, wire.Sent):
                    on_read(message.size_bytes - self._moved_bytes)
                return message
            elif isinstance(message, wire.Failed):
                raise message.error
            elif self._why_not is not None:
                raise UploadError(
                    f"the file was not sent, because it could not be written: {self._why_not}",
                    hint=getattr(self._why_not, "hint", ""),
                ) from self._why_not
            else:
                raise self._lost()

    def pass_on(self, progress: int | BaseException | tuple[FileDigest, tuple[int, ...]]) -> None:
        """Tell the process how far the file is written; never blocks. Called by its writer."""
        if isinstance(progress, BaseException):
            self._why_not = progress
            self._shut_down()
            return
        with self._saying:
            if isinstance(progress, tuple):
                self._unsaid = wire.Whole(progress[0].sha256, progress[1])
            else:
                self._unsaid = wire.Written(progress)
        self._say()

    def close(self) -> None:
        """Give the job up, if it is not over. Idempotent."""
        self._shut_down()
        self._out.close()
        self._there.close()

    def _shut_down(self) -> None:
        with contextlib.suppress(OSError):
            self._there.shutdown(socket.SHUT_RDWR)  # a forked child may hold it open

    def _say(self) -> None:
        """Say the newest of what is unsaid: what does not fit into the socket now is said later, or never needed."""
        with self._saying, contextlib.suppress(OSError):  # full, or the job is over
            if self._unsaid is not None:
                wire.say(self._out, self._unsaid)
                self._unsaid = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class FileHash:
    """The sha256 of a file that is being written, taken by the process."""

    def __init__(self, job: Job, size_bytes: int) -> None:
        self._job, self._size_bytes = job, size_bytes

    def advance(self, total_bytes: int) -> None:
        """So many bytes are written by now."""
        self._job.pass_on(total_bytes)

    def hexdigest(self, check: Callable[[], None]) -> str:
        """Wait for the hash of all. Call it once.

        Args:
            check: Called now and then; raises if it is not wanted any more.

        Raises:
            ArtifactSyncError: the process could not do it; hash it here.
        """
        with self._job:
            hashed = self._job.outcome(lambda _: check())
        assert isinstance(hashed, wire.Hashed)
        return hashed.sha256

    def close(self) -> None:
        """Give it up, if it is not over. Idempotent."""
        self._job.close()
