"""Whether the stores' polite threads get any processor at all.

Owns: reading how long runnable threads waited for a core, and whether they may be raised again. Does not own: what is
done about it (``queue``).

A polite thread that waits for a core may be about to take the interpreter lock (to give back a buffer that was sent),
and then the whole program waits with it. So on a machine with no core to spare politeness costs training more than it
gives, and is given up for a while.
"""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

from artifactsync.stores import runtime

_TASKS = Path("/proc/self/task")


class RunDelay:
    """How long the stores' threads have waited for a core, although they had work, since it was last asked."""

    def __init__(self) -> None:
        self._last_ns: dict[int, int] = {}

    def longest_s(self) -> float:
        """The longest such wait of one thread since the last call, in seconds; 0 where the system does not say.

        Source: docs.kernel.org/scheduler/sched-stats.html, "/proc/<pid>/schedstat", read 2026-11.
        """
        now_ns: dict[int, int] = {}
        for thread_id in runtime.runtime_thread_ids():
            with contextlib.suppress(OSError, ValueError, IndexError):
                now_ns[thread_id] = int((_TASKS / str(thread_id) / "schedstat").read_text().split()[1])
        grown_ns = [total - self._last_ns.get(thread_id, total) for thread_id, total in now_ns.items()]
        self._last_ns = now_ns
        return max(grown_ns, default=0) / 1e9


class ProcessShare:
    """How long the threads of a process have run, and how long the unluckiest of them waited for a core."""

    def __init__(self) -> None:
        self._last_ns: dict[int, tuple[int, int]] = {}

    def since_last_s(self, pid: int | None) -> tuple[float, float]:
        """How much since the last call.

        Returns:
            Seconds that all threads ran, together, and the longest that one waited although it had work; 0 and 0 where
            there is no such process, or the system does not say. Source: as ``RunDelay``.
        """
        now_ns: dict[int, tuple[int, int]] = {}
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{pid}/task").iterdir() if pid is not None else ():
                with contextlib.suppress(OSError, ValueError, IndexError):
                    ran, waited, *_ = (task / "schedstat").read_text().split()
                    now_ns[int(task.name)] = int(ran), int(waited)
        grown = [
            (ran - self._last_ns[thread_id][0], waited - self._last_ns[thread_id][1])
            for thread_id, (ran, waited) in now_ns.items()
            if thread_id in self._last_ns
        ]
        self._last_ns = now_ns
        return sum(ran for ran, _ in grown) / 1e9, max((waited for _, waited in grown), default=0) / 1e9


def can_be_raised() -> bool:
    """Whether this process may make an idle thread ordinary again; tried out on a thread of its own.

    Source: man7.org/linux/man-pages/man7/sched.7.html, "SCHED_IDLE", read 2026-11: it takes ``CAP_SYS_NICE``, or an
    ``RLIMIT_NICE`` that allows nice 0.
    """
    if not hasattr(os, "SCHED_IDLE"):
        return False
    outcome: list[bool] = []

    def there_and_back() -> None:
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
            outcome.append(True)

    thread = threading.Thread(target=there_and_back, name="artifactsync-priority")
    try:
        thread.start()
    except RuntimeError:  # the interpreter is ending and starts no more threads
        return False
    thread.join()
    return bool(outcome)
