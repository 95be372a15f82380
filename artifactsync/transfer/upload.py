"""One upload as its caller sees it.

Owns: ``Upload``, ``UploadedFile``, ``UploadStatus``. Does not own: when it runs (``schedule``), what a failure means
(``patience``), who runs it (``queue``).

Invariant: an ``Upload`` settles exactly once, with an ``UploadedFile`` or an ``ArtifactSyncError``.
"""

from __future__ import annotations

import contextlib
import os
import threading
from concurrent import futures
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from artifactsync.errors import ArtifactSyncError, ConfigurationError, UploadError, WaitTimeoutError
from artifactsync.stores.ahead import AHEAD_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from artifactsync.transfer.being_written import FileBeingWritten
    from artifactsync.transfer.tail import Tail


class Closable(Protocol):
    """What holds descriptors while a try runs."""

    def close(self) -> None:
        """Let go of them. Idempotent."""


@dataclass(frozen=True)
class UploadedFile:
    """What became durable."""

    key: str
    """Key below the store's root."""
    size_bytes: int
    """Length as sent, and as the store reported it."""
    sha256: str
    """sha256 of the bytes sent, in lower-case hex."""
    etag: str | None = None
    """The store's tag of the object, where it gave one."""


@dataclass(frozen=True)
class UploadStatus:
    """A queue at one moment."""

    pending_files: int
    """Uploads that are waiting, running, or waiting to be tried again."""
    pending_bytes: int
    """Bytes of those that were not sent yet; an estimate while files grow."""
    uploaded_files: int
    """Uploads that are durable."""
    uploaded_bytes: int
    """Bytes of those."""
    bytes_per_s: float
    """Recent rate, over about half a minute."""
    eta_s: float | None
    """Seconds until nothing is pending at that rate; None while there is no rate, 0 when nothing is pending."""
    last_error: str | None
    """The latest trouble that is not over: of an upload being tried again, or of one that failed for good. An error
    that a later try or a newer upload of the key made good is no trouble any more."""
    failed_files: int = 0
    """Uploads that failed for good, those that were already raised among them."""


class Upload:
    """A file on its way to the remote, as ``UploadQueue.submit`` returns it. Thread-safe.

    An upload that was still waiting when a newer upload of its key was submitted is *replaced*: its bytes are not
    sent, and it settles with the newer one's result.
    """

    def __init__(
        self,
        key: str,
        path: str,
        *,
        size_bytes: int,
        overwrite: bool,
        growing: bool,
        tail: Tail | None = None,
        is_urgent: bool = False,
        writing: FileBeingWritten | None = None,
        check: Callable[[], object] = lambda: None,
        cancel: Callable[[Upload], bool],
        waiting: Callable[[], AbstractContextManager[object]],
    ) -> None:
        self.key = key
        """Key below the store's root."""
        self.path = path
        """The local file, absolute."""
        self.size_bytes = size_bytes
        """Length of the file when it was submitted."""
        self.overwrite = overwrite
        self.growing = growing
        self.tail = tail  # sends it piece by piece
        self.writing = writing  # sends it as far as it is written
        self.check = check  # asked before each try; raises what keeps it from being sent
        self.is_urgent = is_urgent
        """Whether it belongs to a checkpoint, and goes before logs and other files."""
        self.has_failed = False
        """Whether a try has failed, and it is tried again."""
        self.attempts = 0
        """Tries begun so far."""
        self.replaced: list[Upload] = []  # those that settle with this one
        self.fd: int | None = None  # held while the queue's budget lasts, so that the file may be deleted
        self.body: Closable | None = None  # of the running try
        self.first_try_s: float | None = None  # on the queue's clock
        self.moved_bytes = 0  # of the running try
        self.may_be_there = False  # a create-only try may have been applied
        self.reported = False  # its failure was raised in a caller
        self.is_given_up = False  # it stops at its next chunk
        is_plain = overwrite and tail is None and writing is None
        self.is_quick = is_plain and size_bytes <= AHEAD_BYTES  # may be sent before the answers to others were read
        self.future: futures.Future[UploadedFile] = futures.Future()
        self._pid = os.getpid()
        self._cancel = cancel
        self._waiting = waiting

    def result(self, timeout: float | None = None) -> UploadedFile:
        """Wait until the upload is durable and return what was sent.

        Args:
            timeout: Seconds to wait at most; None waits as long as it takes.

        Raises:
            UploadError: it failed for good, or was cancelled; names the key, the cause and the number of attempts.
            AlreadyExistsError: ``overwrite=False``, and other bytes are at the key.
            WaitTimeoutError: it is not settled yet; it goes on.
        """
        error = self._settled(timeout)
        if error is not None:
            raise error
        return self.future.result()

    def exception(self, timeout: float | None = None) -> ArtifactSyncError | None:
        """Wait until the upload is settled and return its error, None if it is durable.

        Raises:
            WaitTimeoutError: it is not settled yet; it goes on.
        """
        return self._settled(timeout)

    def done(self) -> bool:
        """Whether the upload is settled."""
        return self.future.done()

    def cancel(self) -> bool:
        """Give the upload up if it is still waiting; returns whether that was so. ``wait`` does not raise it."""
        return self._cancel(self)

    def __repr__(self) -> str:
        state = "pending" if not self.done() else "failed" if self.future.exception() else "durable"
        return f"<Upload {self.key!r} {state}>"

    def settle(self, outcome: UploadedFile | ArtifactSyncError) -> None:
        """Give the upload, and those it replaced, their outcome. For the queue."""
        for upload in (self, *self.replaced):
            upload.release_fd()
            if isinstance(outcome, UploadedFile):
                upload.future.set_result(outcome)
            else:
                upload.future.set_exception(outcome)
        self.replaced.clear()

    def release_fd(self) -> bool:
        """Close the held descriptor, and say whether there was one. For the queue."""
        fd, self.fd = self.fd, None
        if fd is not None:
            with contextlib.suppress(OSError):
                os.close(fd)
        return fd is not None

    def _settled(self, timeout: float | None) -> ArtifactSyncError | None:
        if not self.done():
            self._wait(timeout)
        error = self.future.exception()
        if error is None:
            return None
        self.reported = True
        return error if isinstance(error, ArtifactSyncError) else UploadError(f"upload of {self.key} failed: {error}")

    def _wait(self, timeout: float | None) -> None:
        if os.getpid() != self._pid:
            raise ConfigurationError(
                f"the upload of {self.key} belongs to the process that forked this one",
                hint="wait for it in the process that submitted it",
            )
        # A background thread that waits (to commit what it uploaded) is no sign that training stands still.
        is_main = threading.current_thread() is threading.main_thread()
        with self._waiting() if is_main else contextlib.nullcontext():
            try:
                self.future.exception(timeout)
            except futures.TimeoutError:
                raise WaitTimeoutError(
                    f"{self.key} is not durable after {timeout:g} s ({self.attempts} attempts so far)",
                    hint="wait longer, or see status() for what is in the way",
                ) from None
