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
    """Whether a process gets the processor that it wants."""

    def __init__(self) -> None:
        self._last_cpu_s = 0.0
        self._last_waited_ns: dict[int, int] = {}

    def is_too_little(self, pid: int | None, share: float, passed_s: float) -> bool:
        """Whether it ran for less than a share of a core since the last call, and a thread of it waited for longer.

        Its threads are looked at only if it ran for less: that takes several calls of the system for each.

        Args:
            pid: The process; None for none.
            share: Of one core.
            passed_s: Seconds since the last call.
        """
        ran_s = self._ran_s(pid)
        if ran_s >= share * passed_s:
            self._last_waited_ns.clear()
            return False
        now_ns: dict[int, int] = {}
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{pid}/task").iterdir() if pid is not None else ():
                with contextlib.suppress(OSError, ValueError, IndexError):
                    now_ns[int(task.name)] = int((task / "schedstat").read_text().split()[1])
        last_ns, self._last_waited_ns = self._last_waited_ns, now_ns
        waited_ns = [total - last_ns[thread_id] for thread_id, total in now_ns.items() if thread_id in last_ns]
        return max(waited_ns, default=0) / 1e9 > share * passed_s

    def _ran_s(self, pid: int | None) -> float:
        """Seconds that all its threads ran since the last call. Source: man7.org, proc_pid_stat.5, read 2026-11."""
        cpu_s = 0.0
        with contextlib.suppress(OSError, ValueError, IndexError):
            if pid is not None:
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                cpu_s = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        last_s, self._last_cpu_s = self._last_cpu_s, cpu_s
        return cpu_s - last_s


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
