"""A stop signal, or a cloud's notice: training ends after the running batch, saves, and dies of the signal.

Owns: the handlers and the watch while ``fit`` runs. Does not own: what is saved (``CheckpointSaver``), which signals
mean stop (``batch.platforms``), or how a cloud says it (``batch.notice``).

Invariant: a handler of the user's own is never replaced, and the second signal ends the process at once.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import TYPE_CHECKING

from artifactsync.batch import watch_for_notice

if TYPE_CHECKING:
    from types import FrameType

    from typing_extensions import Self

    from artifactsync.batch import JobEnv, NoticeWatch


class StopRequest:
    """Notes the first stop signal or notice, while it is entered.

    Args:
        job: Which signals mean stop, and who gives notice. Signals that somebody handles already, or that this system
            does not have, are left alone. None: neither is waited for.
    """

    def __init__(self, job: JobEnv | None) -> None:
        self._job = job
        self._names = () if job is None else job.stop_signals
        self._installed: list[int] = []
        self._watch: NoticeWatch | None = None
        self._kill_at: float | None = None  # in time.monotonic(); known where a notice came
        self.signal: int | None = None
        """The signal that came, or that a notice stands for; None while none did."""

    def __enter__(self) -> Self:
        if self._job is not None:
            self._watch = watch_for_notice(self._job, self._note_notice)
        if threading.current_thread() is threading.main_thread():  # only there Python runs handlers
            for name in self._names:
                number = getattr(signal, name, None)
                if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                    signal.signal(number, self._note)
                    self._installed.append(number)
        return self

    def __exit__(self, *_: object) -> None:
        if self._watch is not None:
            self._watch.close()
        for number in self._installed:
            signal.signal(number, signal.SIG_DFL)
        self._installed.clear()

    def left_s(self) -> float | None:
        """Seconds that are left, by ``ARTIFACTSYNC_GRACE_S`` or the notice, whichever is less; None if nobody said."""
        said = None if self._job is None else self._job.grace_s
        noticed = None if self._kill_at is None else max(0.0, self._kill_at - time.monotonic())
        return min((each for each in (said, noticed) if each is not None), default=None)

    def die(self) -> None:
        """End the process by the signal that came: whoever waits for it sees what it expects.

        Raises:
            SystemExit: the signal could not end it: the first process of a container is immune to its own.
        """
        assert self.signal is not None, "asked before"
        if self.signal in self._installed:
            signal.signal(self.signal, signal.SIG_DFL)
        os.kill(os.getpid(), self.signal)
        raise SystemExit(128 + self.signal)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.signal = number
        signal.signal(number, signal.SIG_DFL)  # the second one is not waited for

    def _note_notice(self, _reason: str, grace_s: float) -> None:
        self._kill_at = time.monotonic() + grace_s
        if self.signal is None:
            self.signal = signal.SIGTERM  # what the cloud would send later: the job is seen to have been stopped
