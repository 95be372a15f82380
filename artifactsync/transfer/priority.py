"""How much of the processor the uploader's threads may claim.

Owns: the scheduling class of threads, ours and the stores' runtime. Does not own: when it changes (``queue``).

While training runs, an uploading thread is ``SCHED_IDLE``: it gets what training leaves. While someone waits for the
uploads, and when a saturated machine has starved them, it is an ordinary thread. Linux only; elsewhere, and where a
container forbids the calls, threads stay ordinary.

Linux lets an unprivileged thread leave ``SCHED_IDLE`` only if ``RLIMIT_NICE`` allows nice 0 (it rarely does), so a
thread that cannot rise is replaced by a new one, started from an ordinary thread, after its current file.
Source: man7.org/linux/man-pages/man7/sched.7.html, "The SCHED_IDLE policy", read 2026-11.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from artifactsync.stores import runtime

if TYPE_CHECKING:
    from collections.abc import Iterable

HAS_SCHED_IDLE = hasattr(os, "SCHED_IDLE") and hasattr(os, "sched_setscheduler")


def make_idle(thread_id: int = 0) -> bool:
    """Make a thread ``SCHED_IDLE``.

    Args:
        thread_id: ``Thread.native_id``; 0 is the calling thread.

    Returns:
        Whether it is now.
    """
    return HAS_SCHED_IDLE and _set(thread_id, os.SCHED_IDLE)


def make_normal(thread_id: int = 0) -> bool:
    """Make a thread ordinary again, and say whether it is."""
    return not HAS_SCHED_IDLE or _set(thread_id, os.SCHED_OTHER)


def set_all(thread_ids: Iterable[int], *, idle: bool) -> None:
    """Give threads, and those on which the stores' own runtime works, a scheduling class as far as the system lets."""
    for thread_id in thread_ids:
        _ = make_idle(thread_id) if idle else make_normal(thread_id)
    runtime.set_runtime_priority(polite=idle)


def _set(thread_id: int, policy: int) -> bool:
    try:
        if os.sched_getscheduler(thread_id) != policy:
            os.sched_setscheduler(thread_id, policy, os.sched_param(0))
    except OSError:  # not permitted, or the thread is gone
        return False
    return True
