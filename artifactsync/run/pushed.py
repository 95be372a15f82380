"""What ``Run.push`` returns: several uploads as one thing to wait for."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from artifactsync.run.ending import seconds_left

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from artifactsync.transfer.upload import Upload, UploadedFile


class Pushed:
    """Files on their way to the run's folder. Iterable: one ``Upload`` a file."""

    def __init__(self, uploads: Sequence[Upload]) -> None:
        self.uploads = tuple(uploads)
        """In path order."""

    def __iter__(self) -> Iterator[Upload]:
        return iter(self.uploads)

    def __len__(self) -> int:
        return len(self.uploads)

    def result(self, timeout: float | None = None) -> tuple[UploadedFile, ...]:
        """Wait until all are durable. ``timeout`` in seconds is for all together.

        Raises:
            UploadError: the first that failed.
            WaitTimeoutError: not all are durable yet.
        """
        give_up_at = None if timeout is None else time.monotonic() + timeout
        return tuple(upload.result(seconds_left(give_up_at)) for upload in self.uploads)

    def done(self) -> bool:
        """Whether all are durable, failed or cancelled."""
        return all(upload.done() for upload in self.uploads)
