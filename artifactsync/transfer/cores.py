"""Which core the training runs on, and keeping off it.

Owns: finding that core, and the affinity of our own threads. Does not own: their scheduling class (``politeness``).

The scheduler puts a thread that has work on the core of a loop that never rests now and then, also where another core
has nothing but idle-class work; the loop then stands still for a tick, 4 ms at 250 Hz (docs/benchmarks.md).
"""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def training_core() -> int | None:
    """The core that this process's main thread runs on, or ran on last; None where the system does not say.

    Source: man7.org/linux/man-pages/man5/proc_pid_stat.5.html, field 39, read 2026-11.
    """
    with contextlib.suppress(OSError, ValueError, IndexError):
        main = threading.main_thread().native_id
        return int(Path(f"/proc/self/task/{main}/stat").read_text().rpartition(")")[2].split()[36])
    return None


def allow_cores(thread_ids: Iterable[int], *, but: int | None) -> None:
    """Let threads run on every core that this process may use, but for one; on that one too, if it is the only one."""
    if not hasattr(os, "sched_setaffinity"):
        return
    allowed = os.sched_getaffinity(os.getpid())  # of the main thread
    for thread_id in thread_ids:
        with contextlib.suppress(OSError):
            os.sched_setaffinity(thread_id, allowed - {but} or allowed)


def keep_off_training() -> None:
    """Keep the calling thread off the core that the main thread runs on at the moment; the main thread stays free."""
    if threading.current_thread() is not threading.main_thread():
        allow_cores([threading.get_native_id()], but=training_core())
