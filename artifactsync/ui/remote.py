"""The remote, asked from threads of our own: a slow answer holds up the page that waits for it, and no other.

Owns: how long a page waits, and what it says when something goes wrong. Does not own: requests (``stores``).

Invariant: no question blocks the event loop, and none is waited for longer than ``ANSWER_S``.
"""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from artifactsync.errors import ArtifactSyncError, NotFoundError, RemoteUnreachableError, RunNameError, redact
from artifactsync.naming import validate_run_name
from artifactsync.run import Run

if TYPE_CHECKING:
    from collections.abc import Callable

    from artifactsync.stores.protocol import Store

    _Answer = TypeVar("_Answer")

ANSWER_S = 60.0
"""Seconds that a part of a page may take; a store gives up earlier when it cannot reach its remote."""

_THREADS = 16
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Trouble:
    """Why a page, or a part of one, cannot be shown."""

    message: str
    """What happened, one line."""
    hint: str
    """What to do; may be empty."""
    status: int = 502
    """HTTP's word for it."""


class Remote:
    """A remote, and the threads that ask it.

    Args:
        store: Where the runs are; stays the caller's to close.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="artifactsync-ui")

    @property
    def url(self) -> str:
        """The root under which the runs lie, without secrets."""
        return redact(self.store.url)

    def run(self, run_name: str) -> Run:
        """A run, to be read.

        Raises:
            RunNameError: no run has such a name.
        """
        return Run(validate_run_name(run_name), remote=self.store, read_only=True)

    async def ask(self, question: Callable[[], _Answer]) -> _Answer:
        """Ask on a thread.

        Raises:
            RemoteUnreachableError: no answer in time; whatever ``question`` raises.
        """
        asked = asyncio.get_running_loop().run_in_executor(self._pool, question)
        asked.add_done_callback(lambda done: done.cancelled() or done.exception())  # perhaps nobody waits for it then
        try:
            return await asyncio.wait_for(asyncio.shield(asked), ANSWER_S)
        except asyncio.TimeoutError:
            raise RemoteUnreachableError(
                f"no answer from {self.url} in {ANSWER_S:.0f} s", hint="load the page again", url=self.url
            ) from None


def trouble_of(error: Exception) -> Trouble:
    """What a failure means, for a person."""
    if isinstance(error, ArtifactSyncError):
        status = 404 if isinstance(error, (NotFoundError, RunNameError)) else 502
        return Trouble(message=error.message, hint=error.hint, status=status)
    _log.debug("unexpected", exc_info=error)
    words = redact(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)
    return Trouble(
        message=f"unexpected error: {words}",
        hint="start `artifactsync ui` with ARTIFACTSYNC_DEBUG=1 to see the traceback, and please report it",
        status=500,
    )
