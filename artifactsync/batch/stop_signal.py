"""A stop signal, or a cloud's notice, for any training loop: noticed between two steps, with the time that is left.

Owns: the handlers and the watch while it is entered. Does not own: what is saved, which signals mean stop
(``platforms``), or how a cloud says it (``notice``).

Invariant: a handler of the user's own is never replaced. The same signal again is an echo (Slurm's daemon and its
``srun`` both send one, a launcher passes on what its whole group got), and ends nothing that is being saved; half a
minute later it is meant, and ends the process at once.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import TYPE_CHECKING

from artifactsync.batch.job_env import job_env
from artifactsync.batch.notice import watch_for_notice

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from typing_extensions import Self

    from artifactsync.batch.job_env import JobEnv
    from artifactsync.batch.notice import NoticeWatch


ECHO_S = 30.0
"""For so long after the first the same signal is taken for its echo: the shortest usual time until a SIGKILL."""


class StopSignal:
    """Becomes true when this process is told to stop.

    ::

        with StopSignal() as stop:
            for batch in batches:
                train(batch)
                if stop:
                    run.save(state, step=step)
                    run.close(stop.grace_left_s, state="preempted")
                    break

    Args:
        grace_s: Seconds from the signal to the kill; else ``ARTIFACTSYNC_GRACE_S``, else nobody knows.
        job: Which signals mean stop, and who gives notice; that of this process unless given. Signals that somebody
            handles already, or that this system does not have, are left alone.
        monotonic: The clock.

    Raises:
        ConfigurationError: a variable of the environment says what cannot be.
    """

    def __init__(
        self,
        *,
        grace_s: float | None = None,
        job: JobEnv | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._job = job_env() if job is None else job
        self._monotonic = monotonic
        self._first_at: dict[int, float] = {}
        self._grace_s = self._job.grace_s if grace_s is None else grace_s
        self._installed: list[int] = []
        self._watch: NoticeWatch | None = None
        self._told_at: float | None = None
        self._kill_at: float | None = None
        self.signal: int | None = None
        """The signal that came, or that a notice stands for; None while none did."""
        self.reason = ""
        """Why, in words: the signal's name, or what the cloud said. Empty while there is no reason."""

    def __bool__(self) -> bool:
        return self.signal is not None

    def __enter__(self) -> Self:
        self._watch = watch_for_notice(self._job, self.request)
        if threading.current_thread() is threading.main_thread():  # only there Python runs handlers
            for name in self._job.stop_signals:
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

    @property
    def grace_left_s(self) -> float | None:
        """Seconds that are left; None while there is no reason to stop, or where nobody said how long."""
        if self._told_at is None:
            return None
        now = self._monotonic()
        ends = [self._kill_at, None if self._grace_s is None else self._told_at + self._grace_s]
        return min((max(0.0, end - now) for end in ends if end is not None), default=None)

    def request(self, reason: str, grace_s: float | None = None) -> None:
        """Stop, as if a cloud had given notice; from any thread. The first reason counts.

        Args:
            reason: In words.
            grace_s: Seconds that are left, if known.
        """
        if grace_s is not None:
            self._kill_at = self._monotonic() + grace_s
        if self.signal is None:
            self._told_at, self.reason = self._monotonic(), reason
            self.signal = signal.SIGTERM  # what the cloud would send later

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
        now = self._monotonic()
        if now - self._first_at.setdefault(number, now) > ECHO_S:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        if self.signal is None:
            self._told_at, self.reason = now, signal.Signals(number).name
        self.signal = number
