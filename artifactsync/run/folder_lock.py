"""One process at a time in a local folder: the ranks of a node fetch each file once.

Invariant: the lock goes with its process, so one that is killed keeps nobody waiting; where the system has no such
locks, nobody waits at all, and the same file may be fetched twice.
"""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; waits for whoever has it."""
    fd = None
    try:
        with suppress(ImportError, OSError):  # Windows has no fcntl, some network disks no locks
            import fcntl  # noqa: PLC0415

            folder.mkdir(parents=True, exist_ok=True)
            fd = os.open(folder / "fetch.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        if fd is not None:
            os.close(fd)
