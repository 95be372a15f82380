"""Letting go of large local files without standing still for it.

Owns: ``remove_file`` and ``let_go``. Does not own: which files may go.

Whoever closes or removes a file last frees all the memory that the kernel keeps of it. For one of 480 MiB that took
92 ms, in which a training loop would stand still; 0.5 ms so (2026-11-22, ext4).
"""

from __future__ import annotations

import _thread
import contextlib
import os
import threading
from typing import TYPE_CHECKING

from artifactsync.transfer.cores import allow_cores, training_core

if TYPE_CHECKING:
    from pathlib import Path

_LARGE_BYTES = 8 * 1024 * 1024
_FLAGS = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0)


def remove_file(path: Path) -> None:
    """Remove a file from its folder, at once; what lay in it goes behind. One that cannot be removed is left."""
    fd = -1
    with contextlib.suppress(OSError):
        fd = os.open(path, _FLAGS)
    try:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
    finally:
        if fd >= 0:
            with contextlib.suppress(OSError):
                let_go(fd)


def let_go(fd: int) -> None:
    """Close a descriptor: behind, if it may be the last hold on a large file that was removed."""
    is_last = False
    with contextlib.suppress(OSError):  # of a network file system that has lost it
        now = os.fstat(fd)
        is_last = not now.st_nlink and now.st_size >= _LARGE_BYTES
    if is_last:
        # Not ``threading``: this may run wherever objects are collected, and that module has locks of its own.
        with contextlib.suppress(RuntimeError):  # the interpreter is ending and starts no more threads
            _thread.start_new_thread(_close, (fd,))
            return
    os.close(fd)


def _close(fd: int) -> None:
    try:
        allow_cores([threading.get_native_id()], but=training_core())
    finally:
        os.close(fd)
