"""What went wrong with uploads: to be raised once, and to be shown while it lasts.

Owns: ``Failures``, and letting go of what caught errors hold. Does not own: what a failure means (``patience``).

Invariants: a failure that no caller was told of is raised by the next ``wait``, however many were told before it;
what is kept is bounded, in number and in bytes.
"""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING

from artifactsync.errors import ArtifactSyncError, UploadError

if TYPE_CHECKING:
    from artifactsync.transfer.upload import Upload

_MAX_KEPT = 1000  # failures kept to be raised; more are counted
_MAX_TOLD = 5  # as many as one reads


class Failures:
    """The failures of one queue. Not thread-safe: the queue's lock guards it."""

    def __init__(self) -> None:
        self.failed_files = 0
        """Uploads that failed for good."""
        self._untold: dict[str, Upload] = {}  # by key
        self._uncounted = 0  # failed, untold, and not kept
        self._troubles: dict[str, str] = {}  # by key, the newest last

    @property
    def last_error(self) -> str | None:
        """The newest trouble that is not over."""
        return next(reversed(self._troubles.values()), None)

    def note_trouble(self, key: str, error: ArtifactSyncError) -> None:
        """An upload failed and will be tried again."""
        self._troubles.pop(key, None)
        while len(self._troubles) >= _MAX_KEPT:
            del self._troubles[next(iter(self._troubles))]
        self._troubles[key] = str(error)

    def note_failure(self, upload: Upload, error: ArtifactSyncError) -> None:
        """An upload failed for good."""
        self.failed_files += 1
        self.note_trouble(upload.key, error)
        if len(self._untold) >= _MAX_KEPT:
            self._untold = {key: kept for key, kept in self._untold.items() if not kept.reported}
        if len(self._untold) < _MAX_KEPT:
            self._untold[upload.key] = upload
        else:
            self._uncounted += 1

    def make_good(self, upload: Upload) -> None:
        """An upload is durable: earlier trouble with its key is over."""
        self._troubles.pop(upload.key, None)
        if upload.overwrite:
            self._untold.pop(upload.key, None)

    def forget_trouble(self, key: str) -> None:
        """The upload was cancelled."""
        self._troubles.pop(key, None)

    def take(self) -> tuple[list[Upload], int]:
        """The failed uploads that nobody was told of, and how many more there were; regarded as told from now on."""
        untold = [upload for upload in self._untold.values() if not upload.reported]
        more, self._uncounted = self._uncounted, 0
        self._untold.clear()
        return untold, more


def raise_failures(failed: list[Upload], more: int, *, url: str) -> None:
    """Raise what ``Failures.take`` gave: one failure as it is, several as one that names them. None: do nothing."""
    for upload in failed:
        upload.reported = True
    errors = [upload.future.exception() for upload in failed]
    if not errors:
        return
    first = errors[0]
    assert isinstance(first, ArtifactSyncError)
    if len(errors) + more == 1:
        raise first
    told = "; ".join(str(error) for error in errors[:_MAX_TOLD])
    unnamed = len(errors) + more - _MAX_TOLD
    tail = f"; and {unnamed} more" if unnamed > 0 else ""
    raise UploadError(f"{len(errors) + more} uploads failed: {told}{tail}", hint=first.hint, url=url) from first


def release_frames(error: BaseException) -> None:
    """Let go of what the frames behind a caught error hold: a whole part of a file each, as long as it is kept."""
    waiting: list[BaseException | None] = [error]
    seen: set[int] = set()
    while waiting:
        one = waiting.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            traceback.clear_frames(one.__traceback__)
            waiting += [one.__cause__, one.__context__]
