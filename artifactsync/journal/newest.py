"""What the newest record alone says of a run: who owns it, how it ended, which checkpoint a resume takes.

Owns: reading that from one record. Does not own: finding it (``log``), the whole (``catalogue``).

Invariant: it says what the catalogue of the whole journal would say. Where the record does not say it (written by an
older version, or by something else), the journal is read.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from artifactsync.errors import DamagedError, NewerFormatError
from artifactsync.journal.catalogue import Catalogue, Checkpoint
from artifactsync.journal.log import JournalLog, Slot, is_removal
from artifactsync.journal.record import Kind, Record


def latest_of(log: JournalLog, head: Slot | None) -> Checkpoint | None:
    """The checkpoint that a resume takes; None if there is none. No request, or one, if the record is of this version.

    Args:
        log: The journal.
        head: Its newest record.

    Raises:
        DamagedError: the journal had to be read, and is damaged.
    """
    if head is None or is_removal(head.record):
        return None
    totals = totals_of(head.record)
    if totals is None:
        return _catalogue(log, head).latest()
    if totals["latest"] is None:
        return None
    commit = _commit_of(log, head.record, totals["latest"])
    if commit is None:
        return _catalogue(log, head).latest()
    return commit


def totals_of(record: Record) -> dict[str, Any] | None:
    """Its totals, if they are whole."""
    totals = record.totals
    counts = [totals.get("checkpoints"), totals.get("bytes")]
    latest = [totals.get("latest"), totals.get("last_step")]
    is_none = counts[0] == 0 and latest == [None, None]
    return totals if all(map(_is_count, counts)) and (is_none or all(map(_is_count, latest))) else None


def finished_of(record: Record) -> str:
    """How the newest attempt ended: ``completed``, ``preempted``, ``failed``; empty if it did not say.

    A run may be pruned after its end: the retire record says it again.
    """
    if record.kind is Kind.FINISH:
        return str(record.body.get("state", ""))
    return str(record.body.get("finished") or "") if record.kind is Kind.RETIRE else ""


def owner_of(record: Record) -> dict[str, Any] | None:
    """The ``writer`` of the newest attempt; None if the record does not say."""
    owner = record.body.get("owner") if record.kind is Kind.RETIRE else record.writer
    return owner if isinstance(owner, dict) and owner else None


def _commit_of(log: JournalLog, record: Record, seq: int) -> Checkpoint | None:
    """Commit ``seq``, from the newest record if that is it or repeats it, else from its own."""
    carried = record.latest_commit
    try:
        if record.seq == seq and record.kind is Kind.COMMIT:
            commit: Record | None = record
        elif carried is not None and carried["seq"] == seq:
            attempt, time, body = int(carried["attempt"]), str(carried["time"]), dict(carried["body"])
            commit = replace(record, kind=Kind.COMMIT, seq=seq, attempt=attempt, time=time, body=body)
        else:
            slot = log.read(seq) if seq < record.seq else None
            commit = slot.record if slot and slot.record.kind is Kind.COMMIT else None
        return Checkpoint.from_record(commit, run_name=log.layout.run_name, url=log.store.url) if commit else None
    except (KeyError, TypeError, ValueError, DamagedError, NewerFormatError):
        return None  # whoever reads the whole journal says what is wrong


def _catalogue(log: JournalLog, head: Slot) -> Catalogue:
    return log.fold(log.read_all(up_to=head.record.seq))


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
