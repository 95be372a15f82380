"""The runs under a remote: one line for each, from one listing and one record a run.

Invariant: a run that cannot be read (damaged, or of a newer format) is listed as ``unknown``; it never hides others.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

from artifactsync.errors import DamagedError, NewerFormatError, RunNameError
from artifactsync.journal.heartbeat import INTERVAL_S
from artifactsync.journal.log import JournalLog, Slot, seq_of
from artifactsync.journal.record import Kind
from artifactsync.journal.writer import WriterIdentity
from artifactsync.naming import validate_run_name
from artifactsync.naming.layout import RunLayout

if TYPE_CHECKING:
    from collections.abc import Iterable

    from artifactsync.stores.protocol import ObjectInfo, Store

_THREADS = 16


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
    """Length of all its objects but house-keeping."""
    state: str
    """``running``, ``completed``, ``preempted``, ``failed`` or ``unknown``."""
    last_commit_at: str | None
    """Writer's time of the newest commit, ISO 8601."""

    def to_json(self) -> dict[str, Any]:
        """The JSON form of ``artifactsync ls --json``."""
        return dict(self.__dict__)


@dataclass
class _Found:
    """What the listing says of one run."""

    bytes: int = 0
    newest_seq: int = 0
    beat_at: datetime | None = None
    last_modified: datetime | None = field(default=None)
    is_arriving: bool = False
    """Whether a copy to here has begun, and perhaps not ended."""


def list_runs(store: Store) -> list[RunSummary]:
    """List the runs under a store's root, the newest commit first; runs without a commit last, by name."""
    found = _group(store.list())
    names = sorted(found)
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="artifactsync-runs") as pool:
        summaries = list(pool.map(lambda name: _summarise(store, name, found[name]), names))
    return sorted(summaries, key=lambda summary: summary.last_commit_at or "", reverse=True)


def _group(objects: Iterable[ObjectInfo]) -> dict[str, _Found]:
    found: dict[str, _Found] = {}
    for info in objects:
        name, slash, rest = info.key.partition("/")
        if not slash or not rest or not _is_run_name(name):
            continue
        run, layout = found.setdefault(name, _Found()), RunLayout(name)
        if info.key == layout.heartbeat:
            run.beat_at = info.modified_at
        elif info.key == layout.copy_marker:
            run.is_arriving = True
        elif info.key.startswith(layout.journal):
            run.newest_seq = max(run.newest_seq, seq_of(info.key[len(layout.journal) :]) or 0)
        elif not info.key.startswith(layout.house):
            run.bytes += info.size_bytes
    return found


def _summarise(store: Store, run_name: str, found: _Found) -> RunSummary:
    log = JournalLog(store, run_name)
    try:
        head = log.find_head() if found.is_arriving else log.read(found.newest_seq) if found.newest_seq else None
        commit = _newest_commit(log, head)
    except (DamagedError, NewerFormatError):
        head, commit = None, None
    totals = head.record.totals if head else {}
    return RunSummary(
        run_name=run_name,
        last_step=totals.get("last_step"),
        checkpoints=int(totals.get("checkpoints") or 0),
        bytes=found.bytes,
        state=state_of(head, beat_at=found.beat_at),
        last_commit_at=commit.record.time if commit else None,
    )


def _newest_commit(log: JournalLog, head: Slot | None) -> Slot | None:
    if head is None or head.record.kind is Kind.COMMIT:
        return head
    return log.read(head.record.previous_commit) if head.record.previous_commit else None


def state_of(head: Slot | None, *, beat_at: datetime | None) -> str:
    """The state of a run, as far as one look can tell: the journal's word, else a sign of life, else ``unknown``.

    For people to read; nothing is decided by it, so wall clocks may be compared here.
    """
    if head is None:
        return "unknown"
    finished = _finished(head)
    if finished is not None:
        return finished if finished in {"completed", "preempted", "failed"} else "unknown"
    owner = head.record.body.get("owner") if head.record.kind is Kind.RETIRE else head.record.writer
    writer = WriterIdentity.from_json(owner if isinstance(owner, dict) else {})
    if writer.is_surely_alive():
        return "running"
    if writer.is_surely_dead() or beat_at is None:
        return "unknown"
    return "running" if datetime.now(timezone.utc) - beat_at < timedelta(seconds=3 * INTERVAL_S) else "unknown"


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
