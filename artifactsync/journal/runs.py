"""The runs under a remote: one line for each, from one listing of their names and three or four small reads a run.

However many checkpoints and files a run has, it costs the same: nothing below the runs' names is listed.

Invariant: a run that cannot be read (damaged, or of a newer format) is listed as ``unknown``; it never hides others.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

from artifactsync.errors import DamagedError, NewerFormatError, ObjectNotFoundError, RunNameError
from artifactsync.journal.heartbeat import INTERVAL_S
from artifactsync.journal.log import JournalLog, Slot
from artifactsync.journal.record import GREATEST, Kind
from artifactsync.journal.writer import WriterIdentity
from artifactsync.naming import validate_run_name
from artifactsync.stores.ahead import can_begin

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from artifactsync.stores.protocol import Store

_THREADS = 32  # they wait for answers: 0.2 ms of a core for each, 30 ms of time on a real network
_NEAR = (
    2.0  # times its work: who lists so quickly waited for nobody, and threads would be in each other's way. Not where
)
# a service answers over a line: there the libraries' own work may hide the wait.


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """One run, as ``artifactsync ls`` shows it."""

    run_name: str
    """Its name."""
    last_step: int | None
    """Step of the checkpoint that a resume would take."""
    checkpoints: int
    """How many are committed and not retired."""
    bytes: int
    """Length of the files of these checkpoints, each once; where there is none, of all that lies in the run's folder
    but house-keeping."""
    state: str
    """``running``, ``completed``, ``preempted``, ``failed`` or ``unknown``."""
    last_commit_at: str | None
    """Writer's time of the newest commit, ISO 8601."""

    def to_json(self) -> dict[str, Any]:
        """The JSON form of ``artifactsync ls --json``."""
        return dict(self.__dict__)


def list_runs(store: Store) -> list[RunSummary]:
    """List the runs under a store's root, the newest commit first; runs without a commit last, by name."""
    began_s, cpu_s = time.perf_counter(), time.thread_time()
    names = run_names(store)
    is_near = not can_begin(store) and time.perf_counter() - began_s < _NEAR * (time.thread_time() - cpu_s)
    summaries = [each for each in summarise_runs(store, names, at_a_time=1 if is_near else _THREADS) if each]
    return sorted(summaries, key=lambda summary: summary.last_commit_at or "", reverse=True)


def run_names(store: Store) -> list[str]:
    """The folders under a store's root that a run may be in, sorted: one listing, and none of them is looked into."""
    return sorted(name for name in store.list_folders() if _is_run_name(name))


def summarise_runs(store: Store, names: Sequence[str], *, at_a_time: int = _THREADS) -> list[RunSummary | None]:
    """One line for each of some runs, in the order of ``names``; None where there is nothing of a run."""
    at_a_time = min(at_a_time, len(names))
    if at_a_time <= 1:
        return [_summarise(store, name) for name in names]
    with ThreadPoolExecutor(at_a_time, thread_name_prefix="artifactsync-runs") as pool:
        return list(pool.map(lambda name: _summarise(store, name), names))


def _summarise(store: Store, run_name: str) -> RunSummary | None:
    """One run; None if there is nothing of it."""
    log = JournalLog(store, run_name)
    try:
        head = log.peek_head()
        committed_at = _newest_commit_at(log, head)
    except (DamagedError, NewerFormatError):
        head, committed_at = None, None
    totals = head.record.totals if head else {}
    checkpoints, size_bytes = _count(totals.get("checkpoints")), _count(totals.get("bytes"))
    if not checkpoints:
        objects = list(store.list(log.layout.root))
        if not objects:
            return None
        size_bytes = sum(info.size_bytes for info in objects if not info.key.startswith(log.layout.house))
    return RunSummary(
        run_name=run_name,
        last_step=step_of(totals),
        checkpoints=checkpoints,
        bytes=size_bytes,
        state=state_of(head, beat_at=_beat_at(log) if head and _is_in_doubt(head) else None),
        last_commit_at=committed_at,
    )


def step_of(totals: Mapping[str, Any]) -> int | None:
    """Step of the checkpoint that a resume takes, as a record's totals, which may be hostile, say it."""
    step = totals.get("last_step")
    return step if isinstance(step, int) and not isinstance(step, bool) and abs(step) <= GREATEST else None


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= GREATEST else 0


def _beat_at(log: JournalLog) -> datetime | None:
    """When the store got the newest sign of life."""
    try:
        return log.store.head(log.layout.heartbeat).modified_at
    except ObjectNotFoundError:
        return None


def _newest_commit_at(log: JournalLog, head: Slot | None) -> str | None:
    """Time of the newest commit: the newest record says it, or repeats it, or names the one that does."""
    if head is None or head.record.kind is Kind.COMMIT:
        return head.record.time if head else None
    if head.record.previous_commit is None:
        return None
    repeated = head.record.latest_commit
    if repeated and repeated.get("seq") == head.record.previous_commit:
        return str(repeated.get("time"))
    commit = log.read(head.record.previous_commit)
    return commit.record.time if commit else None


def state_of(head: Slot | None, *, beat_at: datetime | None) -> str:
    """The state of a run, as far as one look can tell: the journal's word, else a sign of life, else ``unknown``.

    For people to read; nothing is decided by it, so wall clocks may be compared here.
    """
    if head is None:
        return "unknown"
    finished = _finished(head)
    if finished is not None:
        return finished if finished in {"completed", "preempted", "failed"} else "unknown"
    writer = _owner(head)
    if writer.is_surely_alive():
        return "running"
    if writer.is_surely_dead() or beat_at is None:
        return "unknown"
    return "running" if datetime.now(timezone.utc) - beat_at < timedelta(seconds=3 * INTERVAL_S) else "unknown"


def _is_in_doubt(head: Slot) -> bool:
    """Whether only a sign of life can tell."""
    if _finished(head) is not None:
        return False
    writer = _owner(head)
    return not (writer.is_surely_alive() or writer.is_surely_dead())


def _owner(head: Slot) -> WriterIdentity:
    owner = head.record.body.get("owner") if head.record.kind is Kind.RETIRE else head.record.writer
    return WriterIdentity.from_json(owner if isinstance(owner, dict) else {})


def _finished(head: Slot) -> str | None:
    """How the newest attempt ended, if it did. A run may be pruned after its end: the retire record says it again."""
    if head.record.kind is Kind.FINISH:
        return str(head.record.body.get("state"))
    return str(head.record.body.get("finished") or "") or None if head.record.kind is Kind.RETIRE else None


def _is_run_name(name: str) -> bool:
    try:
        return validate_run_name(name) == name
    except RunNameError:
        return False
