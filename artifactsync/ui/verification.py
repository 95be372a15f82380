"""Checks of runs that were asked for, behind the pages: each goes on when its page is closed.

Owns: which are running, and what the last one of each run found. Does not own: the checking (``journal``).

Invariant: a run is checked once at a time.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from artifactsync.report.text import seconds, size
from artifactsync.ui.remote import trouble_of

if TYPE_CHECKING:
    from artifactsync.journal.verification import VerifyReport
    from artifactsync.ui.remote import Remote, Trouble

_AT_ONCE = 2
_TELLING_S = 3.0
"""Before that a rate tells nothing of the rest."""


class Progress:
    """How far a check is; told of it from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.files = self.total_bytes = self.done_bytes = 0
        """All files and bytes, zero until the journal was read; and the bytes that are done with."""

    def plan(self, files: int, total_bytes: int) -> None:
        """So much there is to do."""
        with self._lock:
            self.files, self.total_bytes = files, total_bytes

    def advance(self, count_bytes: int) -> None:
        """So many more bytes are done with."""
        with self._lock:
            self.done_bytes += count_bytes


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
    progress: Progress = field(default_factory=Progress)
    """How far it is."""

    def words(self, now: datetime) -> str:
        """How far it is, as a person says it."""
        far, took = self.progress, self.seconds(now)
        if not far.total_bytes:
            return f"reading the journal, for {seconds(round(took))} now"
        files = "1 file" if far.files == 1 else f"{far.files:,} files"
        said = f"{size(far.done_bytes)} of {size(far.total_bytes)} in {files}, for {seconds(round(took))} now"
        if far.done_bytes and took > _TELLING_S:
            said += f", about {seconds(round(took * (far.total_bytes - far.done_bytes) / far.done_bytes))} left"
        return said

    def to_json(self, now: datetime) -> dict[str, Any]:
        """For the page's script: what of a running check changes."""
        return {
            "is_running": self.ended_at is None,
            "done_bytes": self.progress.done_bytes,
            "total_bytes": self.progress.total_bytes,
            "words": self.words(now),
        }

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
            far = asked.progress
            report = self._remote.run(asked.run_name).verify(
                deep=asked.is_deep, on_plan=far.plan, on_progress=far.advance
            )
        except Exception as error:  # noqa: BLE001 (a thread's end: the page says it)
            done = replace(asked, ended_at=_now(), trouble=trouble_of(error))
        else:
            done = replace(asked, ended_at=_now(), report=report)
        with self._lock:
            self._newest[asked.run_name] = done


def _now() -> datetime:
    return datetime.now(timezone.utc)
