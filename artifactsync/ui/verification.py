"""Checks of runs that were asked for, behind the pages: each goes on when its page is closed.

Owns: which are running, and what the last one of each run found. Does not own: the checking (``journal``).

Invariant: a run is checked once at a time.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from artifactsync.ui.remote import trouble_of

if TYPE_CHECKING:
    from artifactsync.journal.verification import VerifyReport
    from artifactsync.ui.remote import Remote, Trouble

_AT_ONCE = 2


@dataclass(frozen=True, kw_only=True)
class Verification:
    """One check of a run."""

    run_name: str
    """The run."""
    is_deep: bool
    """Whether every byte is read."""
    began_at: datetime
    """When it was asked for."""
    ended_at: datetime | None = None
    """When it was done; None while it is not."""
    report: VerifyReport | None = None
    """What it found."""
    trouble: Trouble | None = None
    """Why it could not be done."""

    def seconds(self, now: datetime) -> float:
        """How long it took, or takes by now."""
        return max(0.0, ((self.ended_at or now) - self.began_at).total_seconds())


class Verifications:
    """The checks of this server.

    Args:
        remote: Where the runs are.
    """

    def __init__(self, remote: Remote) -> None:
        self._remote = remote
        self._lock = threading.Lock()
        self._newest: dict[str, Verification] = {}
        self._pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="artifactsync-ui-verify")

    def of(self, run_name: str) -> Verification | None:
        """The newest check of a run."""
        return self._newest.get(run_name)

    def begin(self, run_name: str, *, is_deep: bool) -> None:
        """Check a run behind; one that is being checked is left alone."""
        with self._lock:
            there = self._newest.get(run_name)
            if there is not None and there.ended_at is None:
                return
            asked = Verification(run_name=run_name, is_deep=is_deep, began_at=_now())
            self._newest[run_name] = asked
        self._pool.submit(self._verify, asked)

    def _verify(self, asked: Verification) -> None:
        try:
            report = self._remote.run(asked.run_name).verify(deep=asked.is_deep)
        except Exception as error:  # noqa: BLE001 (a thread's end: the page says it)
            done = replace(asked, ended_at=_now(), trouble=trouble_of(error))
        else:
            done = replace(asked, ended_at=_now(), report=report)
        with self._lock:
            self._newest[asked.run_name] = done


def _now() -> datetime:
    return datetime.now(timezone.utc)
