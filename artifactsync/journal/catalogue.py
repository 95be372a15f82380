"""What the records of a run mean together: its checkpoints, its attempts, its state.

Owns: ``Checkpoint`` and the order of checkpoints. Does not own: reading records (``log``).

Invariant: the catalogue is a pure function of the records; ``latest`` is the greatest (attempt, step), never decided
by time, by name or by what objects happen to exist.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from artifactsync.errors import ConfigurationError, DamagedError
from artifactsync.journal.growing_set import GrowingSet
from artifactsync.journal.record import GREATEST, Kind, Record, decode_metrics, encode_metrics
from artifactsync.journal.timing import NOTHING, read_timing
from artifactsync.naming.layout import check_relative

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from collections.abc import Set as AbstractSet


@dataclass(frozen=True, kw_only=True)
class CheckpointFile:
    """One file of a checkpoint."""

    path: str
    """Path below the run's folder, locally and for whoever reads it: ``checkpoints/ep1-ba10-rank0.pt``."""
    key: str
    """Key below the remote where the bytes lie; differs from the path in later attempts and for shared files."""
    size: int
    """Length in bytes."""
    sha256: str
    """Hash of the bytes, as ``sha256sum`` prints it."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A committed checkpoint: all its files are on the remote, and it is immutable."""

    name: str
    """Its name within the run, ``ep1-ba10`` unless given."""
    step: int
    """Optimizer steps (batches) done when it was taken."""
    epoch: int
    """Epochs done."""
    batch: int
    """Batches done."""
    attempt: int
    """The attempt that wrote it."""
    metrics: Mapping[str, float]
    """Metrics given when it was saved, for ``best``."""
    files: tuple[CheckpointFile, ...]
    """Its files, by path."""
    committed_at: str
    """Writer's wall-clock time of the commit, ISO 8601. Informs, never decides."""
    seq: int
    """Number of its commit record."""
    timing: Mapping[str, float] = field(default_factory=lambda: NOTHING)
    """Seconds from the call that saved it, where the writer noted them: ``stall_s`` (training stood still),
    ``written_s`` (whole on the writer's disk), ``durable_s`` (confirmed by the store). Informs, never decides."""

    @property
    def bytes(self) -> int:
        """Length of all its files together."""
        return sum(file.size for file in self.files)

    def to_json(self) -> dict[str, Any]:
        """The JSON form of ``artifactsync ls RUN --json``."""
        return {
            "name": self.name,
            "step": self.step,
            "epoch": self.epoch,
            "batch": self.batch,
            "attempt": self.attempt,
            "bytes": self.bytes,
            "committed_at": self.committed_at,
            "metrics": encode_metrics(dict(self.metrics)),
            "timing": dict(self.timing),
            "files": [dict(file.__dict__) for file in self.files],
        }

    @classmethod
    def from_record(cls, record: Record, *, run_name: str, url: str) -> Checkpoint:
        """Read a checkpoint from a commit record, whose contents may be hostile.

        Raises:
            DamagedError: fields are missing, or a path or key leaves the run's folder.
        """
        body = record.body
        try:
            return cls(
                name=str(body["name"]),
                step=_whole(body["step"]),
                epoch=_whole(body["epoch"]),
                batch=_whole(body["batch"]),
                attempt=record.attempt,
                metrics=MappingProxyType(decode_metrics(body.get("metrics") or {})),
                files=tuple(
                    CheckpointFile(
                        path=check_relative(file["path"]),
                        key=f"{run_name}/{check_relative(file['key'])}",
                        size=_whole(file["size"]),
                        sha256=str(file["sha256"]),
                    )
                    for file in body["files"]
                ),
                committed_at=record.time,
                seq=record.seq,
                timing=read_timing(body.get("timing")),
            )
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise DamagedError(f"commit record {record.seq} is malformed ({error})", url=url) from error


def commit_body(
    *,
    name: str,
    step: int,
    epoch: int,
    batch: int,
    metrics: Mapping[str, float],
    files: Iterable[CheckpointFile],
    timing: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The body of a commit record. Keys are written relative to the run's folder, so that a run can be copied."""
    return {
        **({"timing": dict(timing)} if timing else {}),
        "name": name,
        "step": step,
        "epoch": epoch,
        "batch": batch,
        "metrics": encode_metrics(dict(metrics)),
        "files": [{**file.__dict__, "key": file.key.partition("/")[2]} for file in files],
    }


@dataclass(frozen=True, kw_only=True)
class Retirement:
    """What a retire record says: which checkpoints are no more, and which keys are about to be deleted."""

    commits: frozenset[int]
    """Numbers of the commit records of the checkpoints."""
    keys: frozenset[str]
    """Keys below the remote that only these checkpoints referenced."""
    seq: int
    """Number of the record."""

    @classmethod
    def from_record(cls, record: Record, *, run_name: str, url: str) -> Retirement:
        """Read a retirement from a record, whose contents may be hostile.

        Raises:
            DamagedError: it is malformed, or a key leaves the run's folder.
        """
        try:
            return cls(
                commits=frozenset(int(seq) for seq in record.body.get("commits", ())),
                keys=frozenset(f"{run_name}/{check_relative(key)}" for key in record.body.get("keys", ())),
                seq=record.seq,
            )
        except (TypeError, ValueError, AttributeError) as error:
            raise DamagedError(f"retire record {record.seq} is malformed ({error})", url=url) from error


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """All that the journal of a run says, up to one record."""

    checkpoints: tuple[Checkpoint, ...] = ()
    """Committed and not retired, in order of commit."""
    attempt: int = 0
    """Number of the newest attempt; 0 if nobody ever claimed the run."""
    finished: str = ""
    """``completed``, ``preempted`` or ``failed`` if the newest attempt said so."""
    seq: int = 0
    """Number of the newest record; 0 if the run has no journal."""
    last_commit_at: str | None = None
    """Time of the newest commit."""
    claims: Mapping[int, str] = field(default_factory=dict)
    """Attempt → ``write_id`` of its claim."""
    last_committed_attempt: int = 0
    """The greatest attempt that ever committed anything, retired or not; 0 if none did."""
    keys: AbstractSet[str] = field(default_factory=GrowingSet)
    """Every key that any commit ever named: none of them is written again."""
    retired: tuple[Checkpoint, ...] = ()
    """Committed once, and retired since: their files may be gone."""
    retired_keys: AbstractSet[str] = field(default_factory=GrowingSet)
    """Keys that retire records named: deleted, or about to be. No later commit may name one of them."""

    @classmethod
    def from_records(cls, records: Iterable[Record], *, run_name: str, url: str) -> Catalogue:
        """Fold the records, oldest first, into a catalogue."""
        live: dict[int, Checkpoint] = {}
        retired: dict[int, Checkpoint] = {}
        attempt, finished, seq, keys, retired_keys = 0, "", 0, set[str](), set[str]()
        last_commit_at: str | None = None
        claims: dict[int, str] = {}
        last_committed_attempt = 0
        for record in records:
            seq = record.seq
            if record.kind is Kind.CLAIM:
                attempt, finished = record.attempt, ""
                claims[record.attempt] = record.write_id
            elif record.kind is Kind.FINISH:
                finished = str(record.body.get("state", ""))
            elif record.kind is Kind.COMMIT:
                checkpoint = Checkpoint.from_record(record, run_name=run_name, url=url)
                live[seq] = checkpoint
                last_commit_at = record.time
                last_committed_attempt = max(last_committed_attempt, record.attempt)
                keys.update(file.key for file in checkpoint.files)
            else:
                retirement = Retirement.from_record(record, run_name=run_name, url=url)
                retired.update({seq: live.pop(seq) for seq in sorted(retirement.commits & live.keys())})
                retired_keys |= retirement.keys
        return cls(
            checkpoints=tuple(live.values()),
            attempt=attempt,
            finished=finished,
            seq=seq,
            last_commit_at=last_commit_at,
            claims=MappingProxyType(claims),
            last_committed_attempt=last_committed_attempt,
            keys=GrowingSet(keys),
            retired=tuple(retired.values()),
            retired_keys=GrowingSet(retired_keys),
        )

    def totals(self) -> dict[str, Any]:
        """The ``totals`` of the record that this catalogue ends with."""
        return _totals(len(self.checkpoints), self._live_bytes, self._newest)

    def totals_with(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """The ``totals`` of a record that commits one more checkpoint."""
        newest = max(filter(None, (self._newest, checkpoint)), key=_order)
        return _totals(len(self.checkpoints) + 1, self._live_bytes + self._bytes_more(checkpoint), newest)

    def with_claim(self, record: Record) -> Catalogue:
        """The catalogue after one more claim."""
        claims = MappingProxyType({**self.claims, record.attempt: record.write_id})
        return replace(self, attempt=record.attempt, finished="", seq=record.seq, claims=claims)

    def with_commit(self, checkpoint: Checkpoint) -> Catalogue:
        """The catalogue after one more commit. What it adds up to is not counted anew: runs commit for months."""
        after = replace(
            self,
            checkpoints=(*self.checkpoints, checkpoint),
            seq=checkpoint.seq,
            last_commit_at=checkpoint.committed_at,
            last_committed_attempt=max(self.last_committed_attempt, checkpoint.attempt),
            keys=_added(self.keys, (file.key for file in checkpoint.files)),
        )
        after.__dict__["_live_bytes"] = self._live_bytes + self._bytes_more(checkpoint)
        after.__dict__["_newest"] = max(filter(None, (self._newest, checkpoint)), key=_order)
        return after

    def with_retirement(self, retirement: Retirement) -> Catalogue:
        """The catalogue after a retire record."""
        return replace(
            self,
            checkpoints=tuple(c for c in self.checkpoints if c.seq not in retirement.commits),
            seq=retirement.seq,
            retired=(*self.retired, *(c for c in self.checkpoints if c.seq in retirement.commits)),
            retired_keys=_added(self.retired_keys, retirement.keys),
        )

    def newest_first(self) -> tuple[Checkpoint, ...]:
        """The checkpoints in the order in which a resume tries them."""
        return tuple(sorted(self.checkpoints, key=_order, reverse=True))

    def latest(self) -> Checkpoint | None:
        """The checkpoint that a resume takes."""
        return self._newest

    def named(self, name: str) -> Checkpoint | None:
        """The newest checkpoint of that name."""
        return next((c for c in self.newest_first() if c.name == name), None)

    def best(self, metric: str, mode: Literal["min", "max"] = "min") -> Checkpoint | None:
        """The checkpoint with the smallest or greatest value of ``metric``; NaN never wins, ties go to the newest.

        Raises:
            ConfigurationError: ``mode`` is neither ``min`` nor ``max``.
        """
        if mode not in ("min", "max"):
            raise ConfigurationError(f"mode {mode!r} is neither 'min' nor 'max'")
        having = [c for c in self.newest_first() if not math.isnan(c.metrics.get(metric, math.nan))]
        pick = min if mode == "min" else max
        return pick(having, key=lambda c: c.metrics[metric]) if having else None

    @cached_property
    def _newest(self) -> Checkpoint | None:
        return max(self.checkpoints, key=_order, default=None)

    @cached_property
    def _live_bytes(self) -> int:
        return sum({file.key: file.size for checkpoint in self.checkpoints for file in checkpoint.files}.values())

    def _bytes_more(self, checkpoint: Checkpoint) -> int:
        """Bytes that only this checkpoint has: a key that a commit named, and no retirement, is a live one's."""
        sizes = {file.key: file.size for file in checkpoint.files}
        return sum(size for key, size in sizes.items() if key not in self.keys or key in self.retired_keys)


def after(catalogue: Catalogue, record: Record, *, run_name: str, url: str) -> Catalogue:
    """A catalogue with one more record of the same attempt, the next one."""
    if record.kind is Kind.COMMIT:
        return catalogue.with_commit(Checkpoint.from_record(record, run_name=run_name, url=url))
    if record.kind is Kind.RETIRE:
        return catalogue.with_retirement(Retirement.from_record(record, run_name=run_name, url=url))
    if record.kind is Kind.FINISH:
        return replace(catalogue, finished=str(record.body.get("state", "")), seq=record.seq)
    return replace(catalogue, seq=record.seq)


def _whole(value: Any) -> int:
    """A number of a record.

    Raises:
        TypeError, ValueError, OverflowError: it is none, or no number of anything here.
    """
    if not -GREATEST <= float(value) <= GREATEST:
        raise ValueError("a number that is too great")
    return int(value)


def _order(checkpoint: Checkpoint) -> tuple[int, int, int]:
    return checkpoint.attempt, checkpoint.step, checkpoint.seq


def _added(keys: AbstractSet[str], more: Iterable[str]) -> AbstractSet[str]:
    return (keys if isinstance(keys, GrowingSet) else GrowingSet(keys)).added(more)


def _totals(checkpoints: int, live_bytes: int, newest: Checkpoint | None) -> dict[str, Any]:
    return {
        "checkpoints": checkpoints,
        "bytes": live_bytes,
        "latest": newest.seq if newest else None,
        "last_step": newest.step if newest else None,
    }
