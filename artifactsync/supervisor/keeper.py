"""The process between the supervisor and the command: it starts the command, and lets nothing of it outlive us.

Run as a script, ``python -I -S keeper.py STATUS_FD LIFE_FD CMD…``; imports nothing but the standard library, so that it
starts in milliseconds. It tells on ``STATUS_FD`` (``started PID``, ``failed ERRNO``, ``ended STATUS``) and waits for
the end of ``LIFE_FD``, whose other side the supervisor holds: a supervisor that dies, of whatever, closes it.

Invariant: when the keeper has ended, nothing that the command ever started runs (on Linux; elsewhere, nothing of its
process group): a second writer beside a restarted command would spoil its folder.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import sys
import time
from typing import Any

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_IGNORED = ("SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGXCPU", "SIGCONT")
_POLITE_S = 1.0  # between SIGTERM and SIGKILL for what the command left running
_ROUND_S = 0.02


def main(arguments: list[str]) -> None:
    """Start the command, report, and end everything when the supervisor says so, or is gone."""
    status_fd, life_fd, command = int(arguments[0]), int(arguments[1]), arguments[2:]
    for fd in (status_fd, life_fd):
        os.set_inheritable(fd, False)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    before: dict[int, Any] = {}
    for name in _IGNORED:  # a scheduler signals every process of the job; the supervisor alone decides here
        number = getattr(signal, name)
        before[number] = signal.getsignal(number)
        signal.signal(number, signal.SIG_IGN)
    wake, writer = os.pipe()
    os.set_blocking(wake, False)
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    child = _start(command, before, status_fd)
    order = _watch(child, status_fd, life_fd, wake)
    _end_all(child, is_polite=order == b"T")


def _start(command: list[str], before: dict[int, Any], status_fd: int) -> int:
    """Fork and execute the command in a process group of its own; returns its process id."""
    keeper = os.getpid()
    failed, failing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            signal.set_wakeup_fd(-1)
            os.setpgid(0, 0)
            for number, handler in before.items():
                signal.signal(number, signal.SIG_IGN if handler is signal.SIG_IGN else signal.SIG_DFL)
            for name in ("SIGCHLD", "SIGPIPE", "SIGXFSZ"):  # as Python found them before it set its own
                signal.signal(getattr(signal, name), signal.SIG_DFL)
            _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() == keeper:
                os.execvp(command[0], command)  # noqa: S606 - the user's own command, and no shell
        except OSError as error:
            os.write(failing, str(error.errno).encode())
        os._exit(127)
    with contextlib.suppress(OSError):
        os.setpgid(child, child)
    os.close(failing)
    errno = os.read(failed, 16)
    os.close(failed)
    _tell(status_fd, f"failed {errno.decode()}" if errno else f"started {child}")
    return child


def _watch(child: int, status_fd: int, life_fd: int, wake: int) -> bytes:
    """Report the end of the command; returns when the supervisor wants the end of all, with what it said."""
    while True:
        ready, _, _ = select.select([life_fd, wake], [], [])
        with contextlib.suppress(BlockingIOError):
            os.read(wake, 4096)
        _reap(child, status_fd)
        if life_fd in ready:
            return os.read(life_fd, 1)


def _reap(child: int, status_fd: int) -> bool:
    """Take in what has ended; False if there is nothing left to wait for."""
    while True:
        try:
            ended, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return False
        if not ended:
            return True
        if ended == child:
            _tell(status_fd, f"ended {status}")


def _end_all(child: int, *, is_polite: bool) -> None:
    """End every descendant, at first with SIGTERM where there is time."""
    kill_at = time.monotonic() + (_POLITE_S if is_polite else 0.0)
    if is_polite:
        _signal_all(child, signal.SIGTERM)
    while _reap(child, -1):
        if time.monotonic() >= kill_at:
            _signal_all(child, signal.SIGKILL)
        time.sleep(_ROUND_S)


def _signal_all(child: int, number: int) -> None:
    with contextlib.suppress(OSError):
        os.killpg(child, number)
    for process in _descendants():
        with contextlib.suppress(OSError):
            os.kill(process, number)


def _descendants() -> list[int]:
    """Every process below this one, whatever group or session it moved to; empty where there is no ``/proc``."""
    children: dict[int, list[int]] = {}
    with contextlib.suppress(OSError):
        for name in os.listdir("/proc"):  # noqa: PTH208 - pathlib takes longer to import than all of this
            if name.isdigit():
                with contextlib.suppress(OSError, ValueError), open(f"/proc/{name}/stat", "rb") as file:  # noqa: PTH123
                    parent = int(file.read().rpartition(b")")[2].split()[1])
                    children.setdefault(parent, []).append(int(name))
    found, waiting = [], [os.getpid()]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def _tell(status_fd: int, line: str) -> None:
    if status_fd >= 0:
        with contextlib.suppress(OSError):  # nobody is there to hear it
            os.write(status_fd, line.encode() + b"\n")


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    main(sys.argv[1:])
