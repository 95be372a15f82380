"""One object into one local file.

Owns: ``download_file``. Does not own: how it is fetched (``downloader``), many files (``pull``).
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from artifactsync.errors import DestinationError
from artifactsync.transfer.asking import Wanted
from artifactsync.transfer.downloader import MAX_PARTS, PART_BYTES, Downloader
from artifactsync.transfer.folder import Folder

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from artifactsync.stores.protocol import Store
    from artifactsync.stores.retry import RetryPolicy
    from artifactsync.transfer.clock import Clock
    from artifactsync.transfer.hashing import FileDigest

__all__ = ["MAX_PARTS", "PART_BYTES", "Downloader", "Wanted", "download_file"]


def download_file(
    store: Store,
    key: str,
    destination: str | os.PathLike[str],
    *,
    size_bytes: int | None = None,
    sha256: str | None = None,
    overwrite: bool = False,
    on_progress: Callable[[int], None] | None = None,
    max_concurrency: int = MAX_PARTS,
    part_bytes: int = PART_BYTES,
    retry: RetryPolicy | None = None,
    clock: Clock = time,
) -> FileDigest:
    """Bring an object here. An interrupted download goes on where it stopped when it is called again.

    A destination that has the wanted ``sha256`` already is left as it is. Folders above it are made.

    Args:
        store: Where from.
        key: Key below the store's root.
        destination: A file path.
        size_bytes: The length it must have, if known.
        sha256: The sha256 it must have, if known.
        overwrite: Whether a file that is there is replaced. A symbolic link is replaced, never followed.
        on_progress: Called with the number of bytes that arrived since the last call, one call at a time, from any
            thread; with a negative number where bytes have to be fetched again.
        max_concurrency: Ranges fetched at a time.
        part_bytes: Length of a range; ``max_concurrency`` and 12 more of them are the memory used at most.
        retry: How often and how long one range is tried.
        clock: The ``time`` module, or a ``FakeClock``.

    Raises:
        ObjectNotFoundError: no such object, and nothing was known of it.
        MissingBytesError: a known object is not there, or shorter than known.
        DamagedError: its bytes are not the known ones, or it keeps changing.
        DestinationError: the destination is a folder, or below a file.
        AlreadyExistsError: a file is there, and ``overwrite`` is False.
        DiskFullError: no space is left; nothing is at the destination's name.
    """
    path = Path(destination)
    if path.name in {"", ".."}:
        raise DestinationError(f"{path} is a folder", hint="name the file to write")
    wanted = Wanted(key=key, size_bytes=size_bytes, sha256=sha256)
    downloader = Downloader(
        store, on_progress=on_progress, max_parts=max_concurrency, part_bytes=part_bytes, retry=retry, clock=clock
    )
    with downloader, Folder(path.parent) as folder:
        digest, _ = downloader.fetch(wanted, folder, path.name, overwrite=overwrite)
    return digest
