"""How a run ends in time: waiting with a limit, and the drain of runs that were never closed.

Owns: which runs of this process are open for writing. Does not own: what a run does to end (``writer``).
"""

from __future__ import annotations

import os
import sys
import threading
import time
import weakref
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import TYPE_CHECKING

from artifactsync.errors import WaitTimeoutError
from artifactsync.transfer import at_exit

if TYPE_CHECKING:
    from collections.abc import Callable

    from artifactsync.run.writer import Run

_END_S = 1.0
"""Seconds that the last record of a run has at least, when the time to wait is used up: it is one small request."""

open_runs: weakref.WeakSet[Run] = weakref.WeakSet()
"""Runs that are open for writing: what they hold is published at exit."""


def seconds_left(give_up_at: float | None) -> float | None:
    """Seconds until ``give_up_at`` on the monotonic clock, never below 0; None where there is no limit."""
    return None if give_up_at is None else max(0.0, give_up_at - time.monotonic())


def end_within(give_up_at: float | None, call: Callable[[], None], *, run_name: str, url: str) -> None:
    """Call, but wait no longer than until ``give_up_at``: the journal is patient, and a store may hang.

    Raises:
        WaitTimeoutError: it goes on in the background.
    """
    if give_up_at is None:
        call()
        return
    ended: Future[None] = Future()

    def run() -> None:
        try:
            call()
        except BaseException as error:  # noqa: BLE001 - raised below
            ended.set_exception(error)
        else:
            ended.set_result(None)

    try:
        threading.Thread(target=run, name="artifactsync-end", daemon=True).start()
    except RuntimeError:  # the interpreter is ending and starts no more threads
        run()
    try:
        ended.result(max(_END_S, give_up_at - time.monotonic()))
    except FutureTimeoutError as error:
        if ended.done():
            raise
        raise WaitTimeoutError(
            f"how run {run_name!r} ended is not written down on the remote, which does not answer",
            hint="nothing is lost: the next attempt can begin all the same",
            url=url,
        ) from error


def _close_at_exit() -> None:
    """Drain runs that were never closed, for as long as the grace period allows."""
    for run in list(open_runs):
        if run.belongs_to(os.getpid()):  # a forked child must leave its parent's runs alone
            try:
                run.close(at_exit.grace_s(), state="failed" if _died_of_an_exception() else "completed")
            except Exception as error:  # noqa: BLE001 - what a caller's prepare raised must not keep the others back
                at_exit.tell(f"not everything is durable: {error}")


def _died_of_an_exception() -> bool:
    return getattr(sys, "last_exc", None) is not None or getattr(sys, "last_value", None) is not None


at_exit.before_drain(_close_at_exit)
