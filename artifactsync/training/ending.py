"""How training ends: completed, by an error, or because this process, or another rank, was told to stop.

Owns: what is closed, in which order, and how long that may take. Does not own: when training ends (``trainer``), or
how a stop is learnt of (``batch``).

Invariant: the error that ended training is never hidden by one of the closing, and everything is closed once.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING

from artifactsync.batch import grace_s
from artifactsync.training.callbacks import CheckpointSaver

if TYPE_CHECKING:
    from collections.abc import Sequence

    from artifactsync.batch import StopSignal
    from artifactsync.checkpoint.local_run import LocalRun
    from artifactsync.journal.attempt import FinishState
    from artifactsync.loggers.logger import Logger
    from artifactsync.run import Run
    from artifactsync.training.callback import CallbackTable
    from artifactsync.training.ranks import Ranks
    from artifactsync.training.state import State
    from artifactsync.transfer.remote_uploader_downloader import RemoteUploaderDownloader

_LEFT_S = 2.0
"""Seconds for what a rank still has on its way when another one has died."""
_PARTING_S = 600.0
"""Seconds that a rank that has saved waits for the others at most."""


class Ending:
    """Closes what a trainer holds.

    Args:
        run: The run.
        uploaders: Of the loggers that were given.
        callbacks: Who is told.
        logger: Where metrics go.
        ranks: Who trains together.
    """

    def __init__(
        self,
        run: Run | LocalRun,
        uploaders: Sequence[RemoteUploaderDownloader],
        callbacks: CallbackTable,
        logger: Logger,
        ranks: Ranks,
    ) -> None:
        self._run, self._uploaders, self._callbacks = run, uploaders, callbacks
        self._logger, self._ranks = logger, ranks
        self._is_closed = False

    def complete(self, timeout_s: float | None) -> None:
        """Make everything durable, and write down that the run is completed. Idempotent.

        Args:
            timeout_s: Seconds to wait for uploads; None waits as long as they take.

        Raises:
            NotDurableError: something could not be made durable.
        """
        if self._is_closed:
            return
        self._is_closed = True
        try:
            self._callbacks.close()
        finally:
            try:
                self._logger.close("completed")
            finally:
                self._close_remotes("completed", timeout_s)
                self._ranks.close()

    def abandon(self, how: FinishState = "failed", timeout_s: float | None = None) -> None:
        """After an error: write what there is within the grace period, and let the error go its way."""
        if self._is_closed:
            return
        self._is_closed = True
        limit_s = grace_s() if timeout_s is None else timeout_s
        for close in (
            self._callbacks.close,
            lambda: self._logger.close(how),
            lambda: self._close_remotes(how, limit_s),
        ):
            with suppress(Exception):  # the error that ended training must not be hidden
                close()

    def fail(self, stop: StopSignal | None) -> None:
        """After an error in training.

        A launcher's stop signal together with an error: a rank died, so that nobody will commit what waits.
        """
        self.abandon(timeout_s=_LEFT_S if stop and self._ranks.are_many else None)

    def stop(self, stop: StopSignal, state: State) -> None:
        """After a stop signal to any rank: save, make durable what time allows, and end by that signal."""
        if not stop:
            stop.request("another rank is told to stop")
        left_s = self._ranks.least(stop.grace_left_s)
        give_up_at = float("inf") if left_s is None else time.monotonic() + left_s
        for callback in state.callbacks:
            if isinstance(callback, CheckpointSaver):
                callback.save(state, self._logger)
        self.abandon("preempted", None if left_s is None else max(0.0, give_up_at - time.monotonic()))
        self._ranks.part(min(_PARTING_S, give_up_at - time.monotonic()))
        stop.die()

    def _close_remotes(self, how: FinishState, timeout_s: float | None) -> None:
        try:
            self._run.close(timeout_s, state=how)
        finally:
            for uploader in self._uploaders:
                uploader.close(timeout_s)
