"""Who writes: an identity by which a process on the same machine can be known to be dead without waiting.

Invariant: ``is_surely_dead`` errs on the side of False; it never says that a process of another machine, another
container or another boot is dead.
"""

from __future__ import annotations

import os
import socket
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifactsync._version import __version__

_PROCESS_TOKEN = uuid.uuid4().hex


@dataclass(frozen=True, kw_only=True)
class WriterIdentity:
    """One process, described so that a reader elsewhere can name it and a neighbour can check on it."""

    host: str
    """Name of the machine or container."""
    pid: int
    """Process id, within ``pid_space``."""
    pid_space: str
    """Boot id and pid namespace of the machine: pids can be compared only where this is equal. Empty if unknown."""
    started: str
    """Start time of the process in clock ticks since boot: a reused pid has another one. Empty if unknown."""
    token: str
    """Random word of this process."""
    version: str = __version__
    """Version of artifactsync."""

    @classmethod
    def of_this_process(cls) -> WriterIdentity:
        """The identity of the calling process."""
        pid = os.getpid()
        return cls(
            host=socket.gethostname(),
            pid=pid,
            pid_space=_pid_space(),
            started=_start_ticks(pid) or "",
            token=_PROCESS_TOKEN,
        )

    def to_json(self) -> dict[str, Any]:
        """The identity as JSON fields."""
        return dict(self.__dict__)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> WriterIdentity:
        """The identity from JSON fields of a remote; missing ones are empty."""
        return cls(
            host=str(fields.get("host", "")),
            pid=int(fields["pid"]) if isinstance(fields.get("pid"), int) else 0,
            pid_space=str(fields.get("pid_space", "")),
            started=str(fields.get("started", "")),
            token=str(fields.get("token", "")),
            version=str(fields.get("version", "")),
        )

    def is_neighbour(self) -> bool:
        """Whether this process lives in the pid namespace of the calling one, so that its pid can be looked up."""
        return bool(self.pid_space) and self.pid_space == _pid_space() and self.pid > 0

    def is_surely_dead(self) -> bool:
        """Whether the process is known to have ended; False when that cannot be known from here."""
        if not self.is_neighbour() or not self.started:
            return False
        return _start_ticks(self.pid) != self.started

    def is_surely_alive(self) -> bool:
        """Whether the process is known to be running; False when that cannot be known from here."""
        return self.is_neighbour() and bool(self.started) and _start_ticks(self.pid) == self.started

    def describe(self) -> str:
        """``host trainer-7, process 4242``."""
        return f"host {self.host or '?'}, process {self.pid or '?'}"


def _pid_space() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _start_ticks(pid: int) -> str | None:
    """Field 22 of /proc/PID/stat; None if there is no such process, or it is a zombie that only waits to be reaped.

    Source: proc_pid_stat(5). The command name may hold spaces and parentheses, so count from the last ``)``.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in {"Z", "X"} else fields[19]
