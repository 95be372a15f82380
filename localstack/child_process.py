"""One server as a child process: a free port to listen on, a wait until it is ready, a sure end.

Owns: ports, the process and its group, the log file, the leash that ends a server with the process that
started it. Does not own: which server it is and what it is asked (``servers``).

Invariant: whatever was started here listens on loopback alone, and is gone after ``stop``; on Linux it is gone
too when the starting process is killed with ``kill -9``, unless it was started to outlive it.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

HOST = "127.0.0.1"
_POLL_S = 0.02
_STOP_S = 5.0
_LAST_LINES = 3
_TELLING = re.compile(r"^F\d{4} |^panic:|^\w*Error\b|\b(fatal|error|failed)\b", re.IGNORECASE)
_PID_FILE = "server.pid"

# Run in the child before the server itself: asks Linux to kill this process when its parent dies, then becomes the
# server. A small program instead of preexec_fn, which may deadlock in a parent with threads. The parent may have died
# before prctl was called, hence the look at getppid.
_LEASH = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)
    if os.getppid() != int(sys.argv[1]):
        sys.exit("the starting process is gone")
os.execvp(sys.argv[2], sys.argv[2:])
"""


class ServerError(RuntimeError):
    """A server could not be installed, started or asked; the message is one line for a user."""


class PortTakenError(ServerError):
    """The server ended at once: most likely somebody took its port between the search and the start."""


def free_ports(count: int, *, offset: int = 0) -> list[int]:
    """Return ports of loopback on which nobody listens.

    They lie below the range from which the kernel gives ports to outgoing connections, so that none is taken
    by chance between this call and the server's start.

    Args:
        count: How many.
        offset: Each port plus this one is free too (SeaweedFS puts gRPC at +10000).
    """
    found: list[int] = []
    while len(found) < count:
        port = random.randint(12_000, 21_900)  # noqa: S311 - a free port is no secret
        if port not in found and is_free(port) and (not offset or is_free(port + offset)):
            found.append(port)
    return found


def is_free(port: int) -> bool:
    """Say whether a server may listen on the port now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


class ChildProcess:
    """A running server process in its own session.

    Args:
        command: Program and arguments.
        log: File that takes its standard output and error.
        environment: All of its environment variables.
        outlives_parent: Whether it goes on when this process ends (the cloud's ``up``). Otherwise it must be
            started by a thread that lives as long as the process: Linux ties the leash to the thread.
    """

    def __init__(
        self, command: Sequence[str], *, log: Path, environment: Mapping[str, str], outlives_parent: bool = False
    ) -> None:
        self._name = Path(command[0]).name
        leash = [] if outlives_parent else [sys.executable, "-I", "-S", "-c", _LEASH, str(os.getpid())]
        self._log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [*leash, *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                cwd=log.parent,
                start_new_session=True,
            )
        if outlives_parent:
            # For end_leftover, should this process be killed before it can tell anybody.
            (log.parent / _PID_FILE).write_text(f"{self.pid} {process_started(self.pid)}")

    @property
    def pid(self) -> int:
        """Its process id, also the id of its process group."""
        return self._process.pid

    def wait_until(self, is_ready: Callable[[], bool], *, timeout_s: float) -> None:
        """Wait until ``is_ready`` says True; connection errors mean not yet.

        Raises:
            PortTakenError: The process ended instead.
            ServerError: It did not get ready in time.
        """
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            try:
                self.check()
            except ServerError as error:
                raise PortTakenError(str(error)) from error
            with contextlib.suppress(OSError):
                if is_ready():
                    return
            time.sleep(_POLL_S)
        raise ServerError(f"{self._name} was not ready after {timeout_s:.0f} s: {self._last_words()}")

    def stop(self) -> None:
        """End the process and its group: asked first, killed after some seconds. Idempotent."""
        if self._process.returncode is None:  # else its id may be another's by now
            stop_group(self._process.pid, wait=self._wait)

    def kill(self) -> None:
        """End the process group at once, as a power cut would."""
        if self._process.returncode is None:
            _signal_group(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def check(self) -> None:
        """Raise an error if the process has ended by itself.

        Raises:
            ServerError: It has; with what it said last.
        """
        if self._process.poll() is not None:
            raise ServerError(f"{self._name} ended with code {self._process.returncode}: {self._last_words()}")

    def _wait(self, timeout_s: float) -> bool:
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _last_words(self) -> str:
        """Return the line of its log that says what is wrong, else the last lines, as one line."""
        lines = [line.strip() for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        telling = [line for line in lines if _TELLING.search(line)]
        return " | ".join(telling[:1] or lines[-_LAST_LINES:]) or "it wrote no log"


def stop_group(pid: int, *, wait: Callable[[float], bool]) -> None:
    """Send TERM to a process group, and KILL to what is left of it after some seconds.

    Args:
        pid: The group's leader.
        wait: Waits so many seconds for the leader's end and says whether it came.
    """
    if not wait(0):
        _signal_group(pid, signal.SIGTERM)
        wait(_STOP_S)
    _signal_group(pid, signal.SIGKILL)
    wait(_STOP_S)


def _signal_group(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def process_started(pid: int) -> str | None:
    """Return when a process began, in the system's own words; None if there is none or it has ended.

    Together with the process id it names one process for ever, also when the id was given to another.
    """
    if sys.platform == "linux":
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return None
        state, started = fields[0], fields[19]
        return None if state in "ZX" else started
    answer = subprocess.run(["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    state, _, started = answer.stdout.strip().partition(" ")
    return None if not state or state.startswith("Z") else started.strip()


def end_process(pid: int, started: str) -> None:
    """End the group of a process that another program started, if it is still that process."""

    def wait(timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        while process_started(pid) == started:
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL_S)
        return True

    if process_started(pid) == started:
        stop_group(pid, wait=wait)


def end_leftover(folder: Path) -> None:
    """End the server that still uses a folder although whoever started it was killed before it was ready."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        pid, _, started = (folder / _PID_FILE).read_text().partition(" ")
        end_process(int(pid), started)
