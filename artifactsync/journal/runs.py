"""The runs under a remote: one line for each, from one listing and one record a run.

Invariant: a run that cannot be read (damaged, or of a newer format) is listed as ``unknown``; it never hides others.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
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
    from collections.abc import Iterable, Iterator

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
    is_arriving: bool = False
    """Whether a copy to here has begun, and perhaps not ended."""


def list_runs(store: Store) -> list[RunSummary]:
    """List the runs under a store's root, the newest commit first; runs without a commit last, by name.

    One listing, and one record of each run, which is read while the listing goes on.
    """
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="artifactsync-runs") as pool:
        # By name, as a store that lists in no order may come back to a run: then the last look counts.
        looks: dict[str, Future[RunSummary]] = {}
        for name, found in _group(store.list()):
            looks[name] = pool.submit(_summarise, store, name, found)
        summaries = [looks[name].result() for name in sorted(looks)]
    return sorted(summaries, key=lambda summary: summary.last_commit_at or "", reverse=True)


def _group(objects: Iterable[ObjectInfo]) -> Iterator[tuple[str, _Found]]:
    """Each run with what the listing says of it, as soon as the listing has gone on to the next one."""
    found: dict[str, _Found] = {}
    names: dict[str, RunLayout | None] = {}
    current = ""
    for info in objects:
        name, slash, rest = info.key.partition("/")
        if not slash or not rest:
            continue
        if name not in names:
            names[name] = RunLayout(name) if _is_run_name(name) else None
        layout = names[name]
        if layout is None:
            continue
        if current and name != current:
            yield current, replace(found[current])
        current = name
        _enter(found.setdefault(name, _Found()), info, layout)
    if current:
        yield current, found[current]


def _enter(run: _Found, info: ObjectInfo, layout: RunLayout) -> None:
    if not info.key.startswith(layout.house):
        run.bytes += info.size_bytes
    elif info.key.startswith(layout.journal):
        run.newest_seq = max(run.newest_seq, seq_of(info.key[len(layout.journal) :]) or 0)
    elif info.key == layout.heartbeat:
        run.beat_at = info.modified_at
    elif info.key == layout.copy_marker:
        run.is_arriving = True


def _summarise(store: Store, run_name: str, found: _Found) -> RunSummary:
    log = JournalLog(store, run_name)
    try:
        head = log.find_head() if found.is_arriving else log.read(found.newest_seq) if found.newest_seq else None
        committed_at = _newest_commit_at(log, head)
    except (DamagedError, NewerFormatError):
        head, committed_at = None, None
    totals = head.record.totals if head else {}
    return RunSummary(
        run_name=run_name,
        last_step=totals.get("last_step"),
        checkpoints=int(totals.get("checkpoints") or 0),
        bytes=found.bytes,
        state=state_of(head, beat_at=found.beat_at),
        last_commit_at=committed_at,
    )


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
