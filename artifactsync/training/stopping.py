"""A stop signal: training ends after the running batch, saves, and the process dies of the signal as it would have.

Owns: the handler while ``fit`` runs. Does not own: what is saved (``CheckpointSaver``), or how long uploads may take
(``batch.grace``).

Invariant: a handler of the user's own is never replaced, and the second signal ends the process at once.
"""

from __future__ import annotations

import os
import signal
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType

    from typing_extensions import Self

STOP_SIGNALS = ("SIGTERM", "SIGUSR1", "SIGUSR2", "SIGXCPU")
"""What schedulers send before they kill: SIGTERM everywhere, the others where a job asked for them."""


class StopRequest:
    """Notes the first stop signal, while it is entered.

    Args:
        names: Signals; those that somebody handles already, or that this system does not have, are left alone.
    """

    def __init__(self, names: tuple[str, ...] = ("SIGTERM",)) -> None:
        self._names = names
        self._installed: list[int] = []
        self.signal: int | None = None
        """The signal that came; None while none did."""

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # only there Python runs handlers
            for name in self._names:
                number = getattr(signal, name, None)
                if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                    signal.signal(number, self._note)
                    self._installed.append(number)
        return self

    def __exit__(self, *_: object) -> None:
        for number in self._installed:
            signal.signal(number, signal.SIG_DFL)
        self._installed.clear()

    def die(self) -> None:
        """End the process by the signal that came: whoever waits for it sees what it expects."""
        assert self.signal is not None, "asked before"
        os.kill(os.getpid(), self.signal)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.signal = number
        signal.signal(number, signal.SIG_DFL)  # the second one is not waited for
