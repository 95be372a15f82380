"""One attempt: the writer's side of a run's journal, from its claim to its finish.

Owns: the claim, and the rule that a later attempt ends this one. Does not own: uploads (``publication``).

Invariant: after ``claim`` returns, no record of an earlier attempt can be appended any more, because the claim took
the slot that an earlier attempt's next record would need.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from artifactsync.errors import (
    ConfigurationError,
    DamagedError,
    MissingBytesError,
    NewerFormatError,
    RunFencedError,
    RunIsLiveError,
)
from artifactsync.journal.catalogue import Catalogue, Checkpoint, CheckpointFile, after, commit_body
from artifactsync.journal.heartbeat import is_alive
from artifactsync.journal.log import JournalLog, Slot, SlotTakenError, fenced, is_removal
from artifactsync.journal.newest import finished_of, latest_of, owner_of, totals_of
from artifactsync.journal.record import Kind, Record
from artifactsync.journal.writer import WriterIdentity

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

FinishState = Literal["completed", "preempted", "failed"]

_MAX_CLAIM_RACES = 100  # each lost race is another writer's progress; more than this is a loop of takeovers


class KeysRetiredError(MissingBytesError):
    """A commit was about to reference bytes that a retire record gives up; nothing became visible."""

    def __init__(self, keys: frozenset[str], *, url: str) -> None:
        super().__init__(f"{len(keys)} file(s) of the checkpoint are being deleted by a prune", url=url)
        self.keys = keys


class Attempt:
    """The right to write a run's journal. Thread-safe; made by :func:`claim`.

    Args:
        log: The run's journal.
        claimed: The claim record.
        writer: Who claimed.
        catalogue: What the journal says up to the claim; None reads it when something asks for it, which is not
            before the first checkpoint is published: opening a run takes as long however long its journal is.
    """

    def __init__(
        self, log: JournalLog, *, claimed: Slot, writer: WriterIdentity, catalogue: Catalogue | None = None
    ) -> None:
        self._log = log
        self._head = claimed
        self._writer = writer
        self._lock = threading.Lock()
        self._changing = threading.Lock()  # held for moments: the newest record and the catalogue go together
        self._catalogue = catalogue
        self._finished = ""
        self._fenced: RunFencedError | None = None
        self.number = claimed.record.attempt
        """Number of the attempt: 1, 2, 3 …"""
        self.claim_id = claimed.record.write_id
        """``write_id`` of the claim: tells attempts of one number in different lineages apart."""
        self.claim_seq = claimed.record.seq
        """Number of the claim record."""

    @property
    def head(self) -> Slot:
        """The newest record that this attempt knows of: its own, or a prune's."""
        return self._head

    @property
    def catalogue(self) -> Catalogue:
        """What the journal says, up to this attempt's newest record.

        Raises:
            DamagedError: the journal had to be read, and is damaged.
        """
        return self.read_catalogue(self._log)

    @property
    def known_catalogue(self) -> Catalogue | None:
        """The same if it was read by now; asks nobody."""
        return self._catalogue

    def read_catalogue(self, log: JournalLog) -> Catalogue:
        """The same; what has to be read for it is read through ``log``, which may be less patient."""
        while True:
            with self._changing:
                head, catalogue = self._head, self._catalogue
            if catalogue is not None:
                return catalogue
            read = log.fold(log.read_all(up_to=head.record.seq))
            with self._changing:
                if self._head == head:
                    self._catalogue = self._catalogue or read

    def latest(self) -> Checkpoint | None:
        """The checkpoint that a resume takes, as far as this attempt knows; without reading the whole journal.

        Raises:
            DamagedError: the journal had to be read, and is damaged.
        """
        with self._changing:
            head, catalogue = self._head, self._catalogue
        return latest_of(self._log, head) if catalogue is None else catalogue.latest()

    @property
    def durable_step(self) -> int | None:
        """Step of that checkpoint."""
        return (totals_of(self._head.record) or {}).get("last_step")

    @property
    def writer(self) -> WriterIdentity:
        """Who writes."""
        return self._writer

    @property
    def is_finished(self) -> bool:
        """Whether the finish record is written."""
        return bool(self._finished)

    def use(self, log: JournalLog) -> None:
        """Append through another view of the same journal from now on: a more patient one."""
        self._log = log

    def check(self) -> None:
        """Do nothing while this attempt owns the run.

        Raises:
            RunFencedError: a later attempt was met; it stays so.
        """
        if self._fenced:
            raise self._fenced

    def look_for_later(self) -> None:
        """Ask the journal whether a later attempt has claimed the run; ``check`` knows it from then on.

        Raises:
            ArtifactSyncError: it cannot be read.
        """
        with self._lock:
            seq = self._head.record.seq + 1
            while not self._fenced and (slot := self._log.read(seq)) is not None:
                if self._is_anothers(slot.record):
                    self._fenced = fenced(self._log.layout.run_name, slot.record, url=self._log.store.url)
                seq += 1

    def commit(
        self,
        *,
        name: str,
        step: int,
        epoch: int,
        batch: int,
        metrics: Mapping[str, float],
        files: Sequence[CheckpointFile],
        timing: Mapping[str, Any] | None = None,
    ) -> Checkpoint:
        """Make a checkpoint visible; every file must be durable already.

        Raises:
            RunFencedError: a later attempt owns the run; nothing became visible.
            KeysRetiredError: a file that it references is being deleted; nothing became visible. Send it again.
        """
        body = commit_body(name=name, step=step, epoch=epoch, batch=batch, metrics=metrics, files=files, timing=timing)
        with self._lock:
            while True:
                if self.is_finished:
                    raise ConfigurationError(
                        f"run {self._log.layout.run_name!r} is finished: nothing can be committed any more",
                        hint="call finish() last",
                    )
                if doomed := self.catalogue.retired_keys & {file.key for file in files}:
                    raise KeysRetiredError(frozenset(doomed), url=self._log.store.url)
                if record := self._append_next(Kind.COMMIT, body):
                    return self._checkpoint(record)

    def retire(self, plan: Callable[[Catalogue], dict[str, Any] | None]) -> None:
        """Append a retire record.

        Args:
            plan: Makes its body from the catalogue; None if nothing is to be retired. Asked again if another record
                took the slot.

        Raises:
            RunFencedError: a later attempt owns the run.
        """
        with self._lock:
            while (body := plan(self.catalogue)) is not None:
                if self._append_next(Kind.RETIRE, body):
                    return

    def finish(self, state: FinishState) -> None:
        """Say how the attempt ended. Nothing may be committed afterwards.

        Raises:
            RunFencedError: a later attempt owns the run.
        """
        with self._lock:
            while not self._append_next(Kind.FINISH, {"state": state}):
                pass

    def _append_next(self, kind: Kind, body: dict[str, Any]) -> Record | None:
        """Fill the next slot, or take in what lies there; the record if it says what was to be said."""
        self.check()
        totals = self._totals_with(kind, body)
        try:
            slot = self._log.append(
                self._head, kind=kind, attempt=self.number, writer=self._writer, body=body, totals=totals
            )
        except SlotTakenError as error:
            slot = error.slot
        if self._is_anothers(slot.record):
            self._fenced = fenced(self._log.layout.run_name, slot.record, url=self._log.store.url)
            raise self._fenced
        # Just written; or by an earlier try of which no answer ever came; or a prune's retire record.
        with self._changing:
            self._catalogue = self._catalogue and self._after(self._catalogue, slot.record)
            self._head = slot
        self._finished = finished_of(slot.record) if slot.record.kind is Kind.FINISH else self._finished
        return slot.record if (slot.record.kind, slot.record.body) == (kind, body) else None

    def _totals_with(self, kind: Kind, body: dict[str, Any]) -> dict[str, Any]:
        """What the journal adds up to with a next record."""
        known = totals_of(self._head.record)
        if kind is Kind.FINISH and known is not None:
            return known
        before = self._head.record
        record = replace(before, kind=kind, body=body, seq=before.seq + 1, attempt=self.number)
        if kind is Kind.COMMIT:
            return self.catalogue.totals_with(self._checkpoint(record))
        return self._after(self.catalogue, record).totals()

    def _is_anothers(self, record: Record) -> bool:
        """Whether the run has passed to a later attempt."""
        return record.attempt != self.number

    def _after(self, catalogue: Catalogue, record: Record) -> Catalogue:
        """A catalogue with one more record of this attempt."""
        return after(catalogue, record, run_name=self._log.layout.run_name, url=self._log.store.url)

    def _checkpoint(self, record: Record) -> Checkpoint:
        return Checkpoint.from_record(record, run_name=self._log.layout.run_name, url=self._log.store.url)


def claim(
    log: JournalLog,
    *,
    writer: WriterIdentity,
    takeover: bool = False,
    is_removal_planned: bool = False,
    launch: str = "",
) -> Attempt:
    """Begin a new attempt of a run; from then on no earlier attempt can write its journal.

    Args:
        log: The run's journal.
        writer: Who claims.
        takeover: Claim even if the present owner is alive.
        is_removal_planned: The claim is made to remove the run; the same process may claim again after a failure.
        launch: A word that all ranks of one launch know: by it the others find the claim that rank 0 made for them.

    Raises:
        RunIsLiveError: the run has an owner that is alive, or another claim of this moment won; names the owner.
    """
    head = log.find_head()
    for _ in range(_MAX_CLAIM_RACES):
        if head and is_removal(head.record):
            raise _live(log, head.record, what="is being removed", hint=_HINT_REMOVAL)
        # A removal names every checkpoint, and so has to read everything, before it claims.
        catalogue = log.fold(log.read_all(up_to=head.record.seq)) if head and is_removal_planned else None
        if head and not takeover and not finished_of(head.record):
            owner, is_own_removal = _owner(log, head, writer, is_removal_planned=is_removal_planned)
            if not is_own_removal and is_alive(log.store, log.layout, attempt=head.record.attempt, writer=owner):
                raise _live(log, _claim_of(log, head))
        try:
            claimed = log.append(
                head,
                kind=Kind.CLAIM,
                attempt=head.record.attempt + 1 if head else 1,
                writer=writer,
                body=_REMOVAL if is_removal_planned else {"launch": launch} if launch else {},
                totals=_totals(log, head),
            )
        except SlotTakenError as error:
            if log.is_copy_arriving():
                raise _live(log, error.slot.record, what="is being copied to here", hint=_HINT_COPY) from error
            head = error.slot  # a commit of the old owner, or another claim: judge anew with it
            if error.slot.record.kind is Kind.CLAIM and not takeover:
                raise _live(log, error.slot.record) from error
            continue
        begun = catalogue and catalogue.with_claim(claimed.record)
        if head is None:
            begun = Catalogue().with_claim(claimed.record)
        return Attempt(log, claimed=claimed, catalogue=begun, writer=writer)
    raise RunIsLiveError(
        f"run {log.layout.run_name!r} is being taken over again and again",
        hint="start one process at a time with this run name",
        url=log.store.url,
    )


def _owner(
    log: JournalLog, head: Slot, claimant: WriterIdentity, *, is_removal_planned: bool
) -> tuple[WriterIdentity, bool]:
    """Who the newest attempt is, and whether it is a removal that the claimant itself began."""
    owner = owner_of(head.record)
    if owner is not None and not is_removal_planned:
        return WriterIdentity.from_json(owner), False
    claimed = _claim_of(log, head)
    identity = WriterIdentity.from_json(claimed.writer)
    return identity, is_removal_planned and claimed.body == _REMOVAL and identity.token == claimant.token


def _claim_of(log: JournalLog, head: Slot) -> Record:
    """The claim of the newest attempt; the newest record in its place if the journal cannot be read."""
    try:
        claims = [slot.record for slot in log.read_all(up_to=head.record.seq) if slot.record.kind is Kind.CLAIM]
    except (DamagedError, NewerFormatError):
        claims = []
    return claims[-1] if claims else head.record


def _totals(log: JournalLog, head: Slot | None) -> dict[str, Any]:
    """What the journal adds up to with a claim: the same as before."""
    known = totals_of(head.record) if head else Catalogue().totals()
    if head is None or known is not None:
        return known or {}
    return log.fold(log.read_all(up_to=head.record.seq)).totals()


_REMOVAL = {"removes_run": True}  # the body of a claim that is made for a removal
_HINT_LIVE = "stop that process, choose another run name, or take the run over (takeover=True, --takeover)"
_HINT_REMOVAL = "finish the removal with `artifactsync rm RUN --yes`, or choose another run name"
_HINT_COPY = "finish the copy with `artifactsync cp`, remove it with `artifactsync rm`, or choose another run name"


def _live(log: JournalLog, owner: Record, *, what: str = "is in use", hint: str = _HINT_LIVE) -> RunIsLiveError:
    who = WriterIdentity.from_json(owner.writer).describe()
    return RunIsLiveError(
        f"run {log.layout.run_name!r} {what} by attempt {owner.attempt} ({who}, since {owner.time})",
        hint=hint,
        url=log.store.url,
    )
