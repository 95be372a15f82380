"""What the command prints: shown as it comes, and kept in the run's log.

Owns: the two threads that carry stdout and stderr. Does not own: when the log is mirrored (``mirror``).

Invariants: at most one pipe's worth is held, however much is printed; neither a terminal that went away nor a full disk
stops the command; in the log a line of one stream is not cut by the other.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
from typing import TYPE_CHECKING

from artifactsync.errors import DestinationError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_READ_BYTES = 1 << 18
_LINE_BYTES = 1 << 16  # a longer line goes to the log in pieces
_LINE_S = 1.0  # so does one that nobody ends: a prompt
_LAST_WORDS_S = 2.0  # a process that the command left behind may hold its stdout open for ever


class Output:
    """Carries both streams to ours and to the log.

    Args:
        log: The file, appended to.
        tell: Says a line on our stderr.

    Raises:
        DestinationError: the log cannot be opened.
    """

    def __init__(self, log: Path, *, tell: Callable[[str], None]) -> None:
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            self._log_fd = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise DestinationError(
                f"{log} cannot be written: {error.strerror}", hint="check the folder's owner and permissions"
            ) from error
        self._log, self._tell = log, tell
        self._has_failed = False
        self._threads: list[threading.Thread] = []

    def carry(self, source_fd: int, target_fd: int) -> None:
        """Carry everything from a pipe until its other side is closed."""
        thread = threading.Thread(
            target=self._carry, args=(source_fd, target_fd), name="artifactsync-output", daemon=True
        )
        self._threads.append(thread)
        thread.start()

    def finish(self) -> None:
        """Wait for the last words of a command that has ended."""
        for thread in self._threads:
            thread.join(_LAST_WORDS_S)

    def _carry(self, source_fd: int, target_fd: int) -> None:
        has_reader, begun = True, b""
        while True:
            if begun and not _has_more(source_fd):
                self._keep(begun)
                begun = b""
            if not (data := os.read(source_fd, _READ_BYTES)):
                break
            begun = self._keep_lines(begun + data)
            if has_reader:
                try:
                    _write(target_fd, data)
                except OSError:  # whoever read our output has gone; the log goes on
                    has_reader = False
        self._keep(begun)
        os.close(source_fd)

    def _keep_lines(self, data: bytes) -> bytes:
        """Write whole lines to the log, with one call, and return the beginning of the next one."""
        end = max(data.rfind(b"\n"), data.rfind(b"\r")) + 1
        if len(data) - end > _LINE_BYTES:
            end = len(data)
        self._keep(data[:end])
        return data[end:]

    def _keep(self, data: bytes) -> None:
        try:
            _write(self._log_fd, data)
        except OSError as error:
            if not self._has_failed:
                self._has_failed = True
                with contextlib.suppress(OSError):
                    self._tell(f"{self._log} is not complete: {error.strerror}; the command goes on")


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _has_more(fd: int) -> bool:
    """Whether there is something to read, or the end, before a begun line is too old to wait with."""
    waiting = select.poll()  # not ``select``, which knows no descriptor above 1023
    waiting.register(fd, select.POLLIN | select.POLLHUP)
    return bool(waiting.poll(int(_LINE_S * 1000)))
