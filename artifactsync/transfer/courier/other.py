"""Another process that is neither our parent nor our child: whether it lives, and its end.

Owns: ``Other``. Does not own: starting it, or what it is for.

Invariant: a process that took the number of one that is gone is never taken for it, where the kernel has descriptors
of processes (Linux 5.3); elsewhere its number alone has to do.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal


class Other:
    """A process of this machine, by its number.

    Args:
        pid: Its number. It must be alive.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.fd: int | None = None
        """Can be read from when the process has ended; None where the system has no such descriptors."""
        with contextlib.suppress(OSError, AttributeError):
            self.fd = os.pidfd_open(pid)

    @property
    def is_alive(self) -> bool:
        """Whether it has not ended."""
        if self.fd is not None:
            poll = select.poll()
            poll.register(self.fd, select.POLLIN)
            return not poll.poll(0)
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True

    def kill(self) -> None:
        """End it at once, and forget it."""
        with contextlib.suppress(OSError):
            if self.fd is not None:
                signal.pidfd_send_signal(self.fd, signal.SIGKILL)
            else:
                os.kill(self.pid, signal.SIGKILL)
        self.close()

    def close(self) -> None:
        """Forget it. Idempotent."""
        fd, self.fd = self.fd, None
        if fd is not None:
            os.close(fd)

    def __del__(self) -> None:
        self.close()
