"""This process steps back behind the command that it supervises.

Owns: the scheduling class and nice value of our own threads. Does not own: those of the stores' threads that are idle
(``stores.runtime`` moves them), and never the command's, which is started before.

Invariant: what is lowered can be raised again; where it cannot, as in most containers, it is not lowered.
"""

from __future__ import annotations

import contextlib
import os
import sys

_NICE = 5  # a third of an ordinary thread's share on a machine that is full: slower, never starved


class Modesty:
    """Lowers this process's threads, and raises them when its time has come.

    Both classes have the same share of a core, but a ``SCHED_BATCH`` thread that wakes up (a line of output came, an
    upload went on) does not push the command from the core that it runs on.
    Source: man7.org/linux/man-pages/man7/sched.7.html, "SCHED_BATCH", read 2026-11; no privilege is needed to leave it.
    """

    def __init__(self) -> None:
        self._before: dict[int, int] = {}

    def lower(self) -> None:
        """Step back: all threads that there are, and those that they start."""
        if sys.platform != "linux":
            return
        may_raise = _may_raise()
        for thread in _threads():
            with contextlib.suppress(OSError):
                if os.sched_getscheduler(thread) == os.SCHED_OTHER:
                    os.sched_setscheduler(thread, os.SCHED_BATCH, os.sched_param(0))
            if may_raise:
                with contextlib.suppress(OSError):
                    nice = os.getpriority(os.PRIO_PROCESS, thread)
                    os.setpriority(os.PRIO_PROCESS, thread, min(19, nice + _NICE))
                    self._before[thread] = nice

    def raise_again(self) -> None:
        """The command has ended, or has not long to live. Idempotent."""
        if sys.platform != "linux":
            return
        before, self._before = self._before, {}
        usual = min(before.values(), default=None)
        for thread in _threads():
            with contextlib.suppress(OSError):
                if os.sched_getscheduler(thread) == os.SCHED_BATCH:
                    os.sched_setscheduler(thread, os.SCHED_OTHER, os.sched_param(0))
            if usual is not None:
                with contextlib.suppress(OSError):
                    os.setpriority(os.PRIO_PROCESS, thread, before.get(thread, usual))


def _threads() -> list[int]:
    with contextlib.suppress(OSError):
        return [int(name) for name in os.listdir("/proc/self/task")]  # noqa: PTH208
    return []


def _may_raise() -> bool:
    """Whether a nice value can be lowered again: tried out on this thread, in which nothing else happens meanwhile."""
    try:
        nice = os.getpriority(os.PRIO_PROCESS, 0)
        if nice >= 19:  # noqa: PLR2004 - the highest there is
            return False
        # Asking for one less than now shows it without lowering anything first.
        os.setpriority(os.PRIO_PROCESS, 0, nice - 1)
        os.setpriority(os.PRIO_PROCESS, 0, nice)
    except OSError:
        return False
    return True
