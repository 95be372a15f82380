"""The command as a child: started, listened to, signalled, and ended.

Owns: the keeper process, the pipes of stdout and stderr, and what became of the command. Does not own: which signal
comes when (``supervise``), or what happens to its output (``output``).

Invariant: whatever happens to this process, the keeper ends the command and all that it started.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from artifactsync.batch.stop_signal import ECHO_S

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

NOT_FOUND_EXIT_CODE = 127
"""As every shell answers for a command that is not there."""
NOT_EXECUTABLE_EXIT_CODE = 126
"""And for one that is there and cannot be run."""

_END_S = 10.0  # the keeper takes milliseconds to end all; more means that the system is stuck
_PIPE_BYTES = 1 << 20
_F_SETPIPE_SZ = 1031  # Linux; not named in Python 3.10


def check_command(command: tuple[str, ...], work_dir: Path) -> int:
    """The exit code with which a shell would refuse the command; 0 if it can be started."""
    program = command[0]
    if shutil.which(program) is not None:
        return 0
    is_there = os.sep in program and (work_dir / program).exists()
    return NOT_EXECUTABLE_EXIT_CODE if is_there else NOT_FOUND_EXIT_CODE


class Child:
    """The command, started.

    Args:
        command: What to run.
        environ: Its environment.
    """

    def __init__(self, command: Sequence[str], environ: Mapping[str, str]) -> None:
        self.status_fd, status = os.pipe()
        life, self._life_fd = os.pipe()
        self.stdout_fd, stdout = _wide_pipe()
        self.stderr_fd, stderr = _wide_pipe()
        is_terminal = sys.stdin is None or sys.stdin.closed or os.isatty(0)
        self._keeper = subprocess.Popen(  # noqa: S603 - it runs the user's own command
            [sys.executable, "-I", "-S", str(Path(__file__).with_name("keeper.py")), str(status), str(life), *command],
            # A group in the background that reads the terminal would be stopped by it.
            stdin=subprocess.DEVNULL if is_terminal else None,
            stdout=stdout,
            stderr=stderr,
            env=dict(environ),
            pass_fds=(status, life),
            start_new_session=False,
        )
        for fd in (status, life, stdout, stderr):
            os.close(fd)
        self._told = b""
        self._terminated_at = -math.inf
        self.pid: int | None = None
        """Its process id, which is that of its group too; None before it is known to run."""
        self.exit_code: int | None = None
        """As a shell has it: 128 + the signal's number if one ended it; None while it runs."""
        self.error: int | None = None
        """The ``errno`` of a command that could not be started."""

    def listen(self) -> bool:
        """Read what the keeper says; call it when ``status_fd`` is readable. Says whether the command has ended."""
        data = os.read(self.status_fd, 4096)
        if not data and self.exit_code is None:  # the keeper was killed, and the command with it
            self.exit_code = 128 + signal.SIGKILL
            self.signal(signal.SIGKILL)
        self._told += data
        *lines, self._told = self._told.split(b"\n")
        for line in lines:
            word, _, value = line.decode().partition(" ")
            if word == "started":
                self.pid = int(value)
            elif word == "failed":
                self.error = int(value)
                is_missing = self.error == errno.ENOENT
                self.exit_code = NOT_FOUND_EXIT_CODE if is_missing else NOT_EXECUTABLE_EXIT_CODE
            elif word == "ended" and self.exit_code is None:
                code = os.waitstatus_to_exitcode(int(value))
                self.exit_code = 128 - code if code < 0 else code
        return self.exit_code is not None

    def signal(self, number: int) -> None:
        """Send a signal to the command and its process group."""
        if self.pid is not None:
            with contextlib.suppress(OSError):
                os.killpg(self.pid, number)

    def pass_on(self, number: int) -> None:
        """Send a signal that came to us, but no echo of SIGTERM: that would come into the midst of its handler."""
        now = time.monotonic()
        if number != signal.SIGTERM or now - self._terminated_at > ECHO_S:
            self.signal(number)
        if number == signal.SIGTERM:
            self._terminated_at = now

    def kill(self) -> None:
        """End it and everything that it started, now."""
        self._close_life(b"K")

    def end(self) -> None:
        """After the command has ended: end what it left running, and wait for that. Idempotent."""
        self._close_life(b"T")
        try:
            self._keeper.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._keeper.kill()
            self._keeper.wait()

    def _close_life(self, order: bytes) -> None:
        fd, self._life_fd = self._life_fd, -1
        if fd >= 0:
            with contextlib.suppress(OSError):
                os.write(fd, order)
            os.close(fd)


def _wide_pipe() -> tuple[int, int]:
    """A pipe with room for a burst of output, so that the command seldom waits for us."""
    reader, writer = os.pipe()
    with contextlib.suppress(ImportError, OSError):
        import fcntl  # noqa: PLC0415 - not on Windows

        fcntl.fcntl(writer, _F_SETPIPE_SZ, _PIPE_BYTES)
    return reader, writer
