"""What the process beside this one (``artifactsync.transfer.courier``) takes: it is counted with this one."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path


def cpu_s() -> float:
    """Seconds of a core that it has had; 0 where there is none."""
    with contextlib.suppress(OSError):
        if (pid := _pid()) is not None:
            # Source: man7.org/linux/man-pages/man5/proc_pid_stat.5.html, fields 14 and 15, read 2026-11.
            user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
            return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
    return 0.0


def memory_bytes(name: str) -> int:
    """A line of its ``/proc/PID/status``, ``VmRSS`` or ``VmHWM``, in bytes; 0 where there is none."""
    with contextlib.suppress(OSError, StopIteration):
        if (pid := _pid()) is not None:
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024
    return 0


def _pid() -> int | None:
    courier = sys.modules.get("artifactsync.transfer.courier")
    return courier.the_courier().pid if courier else None
