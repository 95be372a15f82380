"""One attempt: the writer's side of a run's journal, from its claim to its finish.

Owns: the claim, and the rule that a later attempt ends this one. Does not own: uploads (``publication``).

Invariant: after ``claim`` returns, no record of an earlier attempt can be appended any more, because the claim took
the slot that an earlier attempt's next record would need.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from artifactsync.errors import ConfigurationError, MissingBytesError, RunFencedError, RunIsLiveError
from artifactsync.journal.catalogue import Catalogue, Checkpoint, CheckpointFile, Retirement, commit_body
from artifactsync.journal.heartbeat import is_alive
from artifactsync.journal.log import JournalLog, Slot, SlotTakenError, fenced, is_removal
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
    """The right to write a run's journal. Thread-safe; made by :func:`claim`."""

    def __init__(self, log: JournalLog, *, claimed: Slot, catalogue: Catalogue, writer: WriterIdentity) -> None:
        self._log = log
        self._head = claimed
        self._writer = writer
        self._lock = threading.Lock()
        self._fenced: RunFencedError | None = None
        self.number = claimed.record.attempt
        """Number of the attempt: 1, 2, 3 …"""
        self.claim_id = claimed.record.write_id
        """``write_id`` of the claim: tells attempts of one number in different lineages apart."""
        self.claim_seq = claimed.record.seq
        """Number of the claim record."""
        self.catalogue = catalogue
        """What the journal says, up to this attempt's newest record."""

    @property
    def writer(self) -> WriterIdentity:
        """Who writes."""
        return self._writer

    @property
    def is_finished(self) -> bool:
        """Whether the finish record is written."""
        return bool(self.catalogue.finished)

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
                    raise KeysRetiredError(doomed, url=self._log.store.url)
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
        totals = self._after(
            replace(self._head.record, kind=kind, body=body, seq=self._head.record.seq + 1, attempt=self.number)
        ).totals()
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
        self.catalogue = self._after(slot.record)
        self._head = slot
        return slot.record if (slot.record.kind, slot.record.body) == (kind, body) else None

    def _is_anothers(self, record: Record) -> bool:
        """Whether the run has passed to a later attempt."""
        return record.attempt != self.number

    def _after(self, record: Record) -> Catalogue:
        """The catalogue as it is with one more record of this attempt."""
        if record.kind is Kind.COMMIT:
            return self.catalogue.with_commit(self._checkpoint(record))
        if record.kind is Kind.RETIRE:
            run_name, url = self._log.layout.run_name, self._log.store.url
            return self.catalogue.with_retirement(Retirement.from_record(record, run_name=run_name, url=url))
        if record.kind is Kind.FINISH:
            return replace(self.catalogue, finished=str(record.body.get("state", "")), seq=record.seq)
        return replace(self.catalogue, seq=record.seq)

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
    slots = list(log.read_all(up_to=head.record.seq)) if head else []
    for _ in range(_MAX_CLAIM_RACES):
        catalogue = Catalogue.from_records(
            (slot.record for slot in slots), run_name=log.layout.run_name, url=f"{log.store.url}/{log.layout.journal}"
        )
        if slots and is_removal(slots[-1].record):
            raise _live(log, slots[-1].record, what="is being removed", hint=_HINT_REMOVAL)
        owner = next((slot.record for slot in reversed(slots) if slot.record.kind is Kind.CLAIM), None)
        if owner and not catalogue.finished and not takeover:
            identity = WriterIdentity.from_json(owner.writer)
            is_own_removal = is_removal_planned and owner.body == _REMOVAL and identity.token == writer.token
            if not is_own_removal and is_alive(log.store, log.layout, attempt=owner.attempt, writer=identity):
                raise _live(log, owner)
        try:
            claimed = log.append(
                slots[-1] if slots else None,
                kind=Kind.CLAIM,
                attempt=catalogue.attempt + 1,
                writer=writer,
                body=_REMOVAL if is_removal_planned else {"launch": launch} if launch else {},
                totals=catalogue.totals(),
            )
        except SlotTakenError as error:
            if log.is_copy_arriving():
                raise _live(log, error.slot.record, what="is being copied to here", hint=_HINT_COPY) from error
            slots.append(error.slot)  # a commit of the old owner, or another claim: judge anew with it
            if error.slot.record.kind is Kind.CLAIM and not takeover:
                raise _live(log, error.slot.record) from error
            continue
        begun = catalogue.with_claim(claimed.record)
        return Attempt(log, claimed=claimed, catalogue=begun, writer=writer)
    raise RunIsLiveError(
        f"run {log.layout.run_name!r} is being taken over again and again",
        hint="start one process at a time with this run name",
        url=log.store.url,
    )


_REMOVAL = {"removes_run": True}  # the body of a claim that is made for a removal
_HINT_LIVE = "stop that process, choose another run name, or pass takeover=True to fence it off"
_HINT_REMOVAL = "finish the removal with `artifactsync rm RUN --yes`, or choose another run name"
_HINT_COPY = "finish the copy with `artifactsync cp`, remove it with `artifactsync rm`, or choose another run name"


def _live(log: JournalLog, owner: Record, *, what: str = "is in use", hint: str = _HINT_LIVE) -> RunIsLiveError:
    who = WriterIdentity.from_json(owner.writer).describe()
    return RunIsLiveError(
        f"run {log.layout.run_name!r} {what} by attempt {owner.attempt} ({who}, since {owner.time})",
        hint=hint,
        url=log.store.url,
    )
