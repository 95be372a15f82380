"""What ``Run.push`` takes of a folder, and what it returns: several uploads as one thing to wait for."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from artifactsync.naming.layout import HOUSE_FOLDER
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


def paths_below(folder: Path, *, remote: str) -> list[str]:
    """The paths, relative to it, of all files in a folder that are the user's: no repository's, none of ours.

    Args:
        folder: Where to look. Its own name, and those of the folders above it, do not matter.
        remote: URL of the remote: one that lies in the folder is not sent into itself.
    """
    own = Path(unquote(urlsplit(remote).path)) if remote.startswith("file://") else None
    found = []
    for above, folders, files in os.walk(folder):
        folders[:] = [
            name
            for name in folders
            if name != ".git" and not name.startswith(HOUSE_FOLDER) and not _is_same(Path(above, name), own)
        ]
        wanted = (Path(above, name) for name in files if not name.startswith(HOUSE_FOLDER))
        found += [file.relative_to(folder) for file in wanted if f"{HOUSE_FOLDER}-" not in file.name and file.is_file()]
    return [path.as_posix() for path in sorted(found)]


def _is_same(folder: Path, other: Path | None) -> bool:
    try:
        return other is not None and folder.samefile(other)
    except OSError:  # one of them is not there
        return False
