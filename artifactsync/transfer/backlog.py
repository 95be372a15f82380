"""The uploads that are not settled, and the count of those that are.

Owns: ``Backlog``: the queue's one lock, what is pending, descriptors held for it, and settling. Does not own: which
upload is next (``schedule``), trying (``delivery``), threads (``workers``).

Invariants: every upload settles exactly once; nothing blocks under the lock: callers are told, and lines are logged,
after it is released, so that a slow log handler, or one that uploads itself, holds nobody up.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from typing import TYPE_CHECKING

from artifactsync.errors import ConfigurationError, UploadError
from artifactsync.transfer.failures import Failures
from artifactsync.transfer.schedule import Schedule
from artifactsync.transfer.upload import UploadedFile

if TYPE_CHECKING:
    from collections.abc import Iterator

    from artifactsync.errors import ArtifactSyncError
    from artifactsync.transfer.upload import Upload

_log = logging.getLogger("artifactsync.transfer")


class Backlog:
    """What a queue has to do, under one lock.

    Args:
        max_running: How many uploads run at a time.
        max_pending_files: When so many uploads wait that are not urgent, a new one of them fails at once. Urgent ones
            are always taken: a checkpoint must not fail because of logs.
        held_fds: How many descriptors may be held for waiting uploads.
        keeps_room: Whether some of ``max_running`` are for urgent uploads alone.
    """

    def __init__(self, *, max_running: int, max_pending_files: int, held_fds: int, keeps_room: bool = False) -> None:
        self._make_lock()
        self.schedule = Schedule(max_running, keeps_room=keeps_room)
        self.failures = Failures()
        self.added = 0
        """How many were ever taken."""
        self.pending_files = 0
        self.pending_bytes = 0
        self._pending_plain = 0
        self.uploaded_files = 0
        self.uploaded_bytes = 0
        self.is_closed = False
        self.is_aborted = False
        self._max_pending_files = max_pending_files
        self._fds_left = held_fds
        self._settled: list[tuple[Upload, UploadedFile | ArtifactSyncError]] = []
        self._lines: list[tuple[int, str]] = []

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold the lock. When it is released, tell those whose uploads were settled meanwhile, and log."""
        try:
            with self.changed:
                try:
                    yield
                finally:
                    settled, self._settled = self._settled, []
                    lines, self._lines = self._lines, []
        finally:
            for upload, outcome in settled:
                upload.settle(outcome)
            for level, line in lines:
                _log.log(level, "%s", line)

    def _make_lock(self) -> None:
        lock = threading.RLock()
        self.changed = threading.Condition(lock)
        """The lock, notified when a worker may find something to do. It guards all else here."""
        self.due = threading.Condition(lock)
        """The same lock, notified when the keeper has to look anew: what is due, or that nothing is left. It is not
        woken for each file: of many small ones that took as long as sending them."""
        self.spare = threading.Condition(lock)
        """The same lock, for workers that are more than pay: woken when more do, or when nothing is left."""

    # All that follows is called with the lock held.

    def tell_all(self) -> None:
        """Let the workers and the keeper look."""
        self.changed.notify_all()
        self.due.notify_all()
        self.spare.notify_all()

    def add(self, upload: Upload, fd: int | None, *, url: str) -> bool:
        """Put an upload in line, or let it fail because too many wait; says whether ``fd`` is held from now on.

        Raises:
            ConfigurationError: nothing is taken any more.
        """
        if self.is_closed:
            raise ConfigurationError(f"cannot upload {upload.key}: the uploader is closed")
        if not upload.is_urgent and self._pending_plain >= self._max_pending_files:
            self._refuse(upload, url)
            return False
        is_held = fd is not None and self._fds_left > 0
        if is_held:
            self._fds_left -= 1
            upload.fd = fd
        for old in self.schedule.add(upload):
            self.replace(old, upload)
        self.added += 1
        self.pending_files += 1
        self._pending_plain += not upload.is_urgent
        self.pending_bytes += upload.size_bytes
        return is_held

    def replace(self, old: Upload, new: Upload) -> None:
        """``old`` will not be sent: it settles with ``new``."""
        new.replaced += [old, *old.replaced]
        old.replaced.clear()
        self._leave(old)

    def cancel(self, upload: Upload) -> bool:
        """Give an upload up if it is still waiting; says whether that was so."""
        if not self.schedule.remove(upload):
            return False
        self.failures.forget_trouble(upload.key)
        self._leave(upload)
        upload.reported = True
        self._settled.append((upload, UploadError(f"the upload of {upload.key} was cancelled")))
        self.tell_all()
        return True

    def settle(self, upload: Upload, outcome: UploadedFile | ArtifactSyncError) -> None:
        """An upload that is out of the schedule is durable, or failed for good."""
        self._leave(upload)
        if isinstance(outcome, UploadedFile):
            self.uploaded_files += 1
            self.uploaded_bytes += outcome.size_bytes
            self.failures.make_good(upload)
        else:
            self._fail(upload, outcome)
        self._settled.append((upload, outcome))
        self.changed.notify_all()
        if not self.pending_files:
            self.due.notify_all()
            self.spare.notify_all()

    def abort(self) -> None:
        """Take nothing more, and give up what is not running."""
        self.is_closed = self.is_aborted = True
        for upload in self.schedule.pending():
            if self.schedule.remove(upload):
                self.settle(upload, UploadError(f"the uploader was closed before {upload.key} was durable"))
        self.tell_all()

    def log_later(self, level: int, line: str) -> None:
        """Log when the lock is released."""
        self._lines.append((level, line))

    def forget_in_child(self) -> None:
        """In a forked child, whose lock some thread of the parent may have held at that moment."""
        self._make_lock()
        for upload in self.schedule.pending():
            upload.release_fd()
            if upload.body is not None:
                upload.body.close()

    def _refuse(self, upload: Upload, url: str) -> None:
        last_error = self.failures.last_error
        error = UploadError(
            f"upload of {upload.key} refused: {self._pending_plain} uploads are waiting already"
            + (f"; the last error was: {last_error}" if last_error else ""),
            hint="see status() for what holds them up; upload less often, or raise max_pending_files",
            url=f"{url}/{upload.key}",
        )
        self._fail(upload, error)
        self._settled.append((upload, error))

    def _fail(self, upload: Upload, error: ArtifactSyncError) -> None:
        self.failures.note_failure(upload, error)
        # Whoever aborts says so once, not for each file; of a checkpoint's files its publication tells.
        if not (self.is_aborted or upload.is_given_up or upload.is_urgent):
            self.log_later(logging.ERROR, str(error))

    def _leave(self, upload: Upload) -> None:
        """The upload is not pending any more."""
        self.pending_files -= 1
        self._pending_plain -= not upload.is_urgent
        self.pending_bytes -= upload.size_bytes
        self._fds_left += upload.release_fd()
