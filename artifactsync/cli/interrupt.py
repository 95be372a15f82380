"""Ctrl-C ends the command within two seconds, whatever it is doing.

Python raises ``KeyboardInterrupt`` in the main thread, but not before that thread runs Python code again: not while
it is in a request of a native library, and a ``with`` block on the way out may wait for transfers. So a thread learns
of the signal from the interpreter's wake-up descriptor, gives the orderly way a moment, and then ends the process.
Nothing half-written has a visible name at any moment, so ending is always safe.

Owns: that moment. Does not own: what is said (``failures``) and by whom: the first to call :func:`claim_last_word`.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

ORDERLY_S = 2.0
"""Seconds that the orderly way may take."""

_last_word = threading.Lock()


def claim_last_word() -> bool:
    """Whether the caller is the one who says how the command ended; true once."""
    return _last_word.acquire(blocking=False)


def end_on_interrupt(end: Callable[[], None]) -> None:
    """Call ``end`` on a thread of its own if the process is still there two seconds after SIGINT.

    Only in the main thread of a process that takes SIGINT as an interruption; elsewhere nothing is done.

    Args:
        end: Says that the command was interrupted, and ends the process.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def watch() -> None:
        while signal.SIGINT not in os.read(reader, 64):
            pass
        time.sleep(ORDERLY_S)
        if claim_last_word():
            end()
        os._exit(128 + signal.SIGINT)

    threading.Thread(target=watch, name="artifactsync-interrupt", daemon=True).start()
