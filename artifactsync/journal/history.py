"""What happened to a run, in order: its attempts, where each went on, how each ended, every checkpoint it ever had.

Owns: ``History``. Does not own: what is there now (``catalogue``), or reading records (``log``).

Invariant: it is a pure function of the records; times are the writers' own and are shown, never compared.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from artifactsync.journal.catalogue import Catalogue, Checkpoint
from artifactsync.journal.record import Kind, Record

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, kw_only=True)
class AttemptStory:
    """One attempt."""

    number: int
    """1, 2, 3 …"""
    began_at: str
    """Time of its claim."""
    host: str
    """Where it ran, as it said."""
    after: Checkpoint | None
    """The newest checkpoint when it began: where a resume goes on."""
    ended_at: str | None = None
    """Time of its last record; None if it wrote nothing but the claim."""
    state: str = ""
    """``completed``, ``preempted`` or ``failed`` if it said so; empty if it never did."""
    commits: int = 0
    """Checkpoints that it committed."""


@dataclass(frozen=True, kw_only=True)
class History:
    """All that the journal of a run says, as a story."""

    attempts: tuple[AttemptStory, ...] = ()
    """Oldest first."""
    checkpoints: tuple[Checkpoint, ...] = ()
    """Every checkpoint that was ever committed, in order of commit."""
    retired: frozenset[int] = frozenset()
    """``seq`` of those that are no more."""

    @classmethod
    def from_records(cls, records: Iterable[Record], *, run_name: str, url: str) -> History:
        """Fold the records, oldest first."""
        kept = list(records)
        catalogue = Catalogue.from_records(kept, run_name=run_name, url=url)
        every = {c.seq: c for c in (*catalogue.checkpoints, *catalogue.retired)}
        stories: dict[int, AttemptStory] = {}
        newest: Checkpoint | None = None
        for record in kept:
            story = stories.get(record.attempt)
            if record.kind is Kind.CLAIM:
                host = str(record.writer.get("host", ""))
                stories[record.attempt] = AttemptStory(
                    number=record.attempt, began_at=record.time, host=host, after=newest
                )
            elif story and record.kind is Kind.COMMIT:
                stories[record.attempt] = replace(story, ended_at=record.time, commits=story.commits + 1)
                newest = max(newest or every[record.seq], every[record.seq], key=lambda c: (c.attempt, c.step, c.seq))
            elif story and record.kind is Kind.FINISH:
                state = str(record.body.get("state", ""))
                stories[record.attempt] = replace(story, ended_at=record.time, state=state)
        return cls(
            attempts=tuple(stories.values()),
            checkpoints=tuple(every[seq] for seq in sorted(every)),
            retired=frozenset(c.seq for c in catalogue.retired),
        )
