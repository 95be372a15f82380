"""One checkpoint from several ranks: what each rank's publication does, between its files and the one commit.

Rank 0 publishes as ever (``publication``), and before its commit gathers the parts of the others. A rank above 0
uploads its files, delivers its part, and waits for the word of the journal.

Owns: ``Membership``, the other ranks' view of the attempt that rank 0 claimed; ``Gatherings``, which rank 0 publishes
with; ``PartPublisher``, which the others do. Does not own: part records (``parts``), the commit (``attempt``).

Invariant: rank 0 alone writes the journal. Nobody waits for a rank without a limit, and nobody waits in a collective.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from artifactsync.errors import ArtifactSyncError, NotDurableError, RunFencedError, WaitTimeoutError
from artifactsync.journal.catalogue import Catalogue, Checkpoint, CheckpointFile
from artifactsync.journal.log import JournalLog, fenced, is_removal
from artifactsync.journal.parts import (
    Gathering,
    announce_part,
    clean_up,
    confirm,
    deliver_failure,
    deliver_part,
    gather,
    merged,
    read_outcome,
    tell_outcome,
)
from artifactsync.journal.publication import Label, LocalFile, PendingCheckpoint
from artifactsync.journal.record import Kind
from artifactsync.journal.worker import SerialWorker
from artifactsync.journal.writer import WriterIdentity
from artifactsync.naming.layout import check_relative, sibling

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from artifactsync.journal.attempt import Attempt
    from artifactsync.journal.record import Record
    from artifactsync.naming.layout import RunLayout
    from artifactsync.stores.protocol import Store
    from artifactsync.transfer.queue import UploadQueue
    from artifactsync.transfer.upload import Upload

_FIRST_LOOK_S = 0.05
_SLOWEST_LOOK_S = 2.0
_TELL_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Contribution:
    """What a save says and does besides its files, where several ranks save together."""

    detail: Callable[[], Any] = lambda: None
    """Ranks above 0: more for rank 0, as JSON; asked once the rank's files are written."""
    complete: Callable[[Mapping[int, Any]], Sequence[LocalFile]] = lambda _: ()
    """Rank 0: writes the files that need every rank's detail, by rank."""


class Membership:
    """The attempt that rank 0 claimed, as another rank of the same launch follows it. Thread-safe.

    Args:
        log: The run's journal.
        number: Number of the attempt.
        claim_id: ``write_id`` of its claim.
        claim_seq: Number of the claim record.
    """

    is_finished = True  # nothing of the end is left to this rank: rank 0 writes it down

    def __init__(self, log: JournalLog, *, number: int, claim_id: str, claim_seq: int) -> None:
        self._log, self._seq = log, claim_seq
        self._lock = threading.Lock()
        self._fenced: RunFencedError | None = None
        self._catalogue: Catalogue | None = None
        self.number, self.claim_id, self.claim_seq = number, claim_id, claim_seq
        self.writer = WriterIdentity.of_this_process()

    @property
    def catalogue(self) -> Catalogue:
        """What the journal says; read when it is first asked for."""
        if self._catalogue is None:
            self._catalogue = self._log.read_catalogue()
        return self._catalogue

    def use(self, log: JournalLog) -> None:
        """Read through another view of the same journal from now on."""
        self._log = log

    def check(self) -> None:
        """Do nothing while the attempt owns the run, as far as is known here.

        Raises:
            RunFencedError: a later attempt was met.
        """
        if self._fenced:
            raise self._fenced

    def follow(self) -> list[Record]:
        """Records that were appended since the last call.

        Raises:
            RunFencedError: a later attempt owns the run.
        """
        found: list[Record] = []
        with self._lock:
            while (slot := self._log.read(self._seq + 1)) is not None:
                if slot.record.attempt != self.number or is_removal(slot.record):
                    self._fenced = fenced(self._log.layout.run_name, slot.record, url=self._log.store.url)
                    break
                self._seq = slot.record.seq
                self._catalogue = None
                found.append(slot.record)
        if not found:
            self.check()
        return found

    def finish(self, state: str) -> None:
        """Rank 0 does it."""


class Gatherings:
    """Rank 0: counts the saves, and gathers for each.

    Args:
        attempt: The attempt that this process holds.
        log: The run's journal.
        store: The remote.
        world_size: How many ranks save together.
        timeout_s: Seconds to wait for the other ranks once rank 0's own files are durable.
    """

    def __init__(self, attempt: Attempt, *, log: JournalLog, store: Store, world_size: int, timeout_s: float) -> None:
        self._attempt, self._layout, self._store = attempt, log.layout, store
        self._world_size, self._timeout_s = world_size, timeout_s
        self._number = 0

    def begin(self, label: Label) -> Gathering:
        """The next gathering; every rank calls it once for each save, in the same order."""
        self._number += 1
        return Gathering(
            attempt=self._attempt.number,
            claim_id=self._attempt.claim_id,
            number=self._number,
            name=label.name,
            step=label.step,
            world_size=self._world_size,
        )

    def gather(
        self, gathering: Gathering, contribution: Contribution
    ) -> tuple[Sequence[LocalFile], Sequence[CheckpointFile]]:
        """Wait for the others: files that rank 0 still has to send, and theirs, which are there.

        Raises:
            WaitTimeoutError, NotDurableError: a rank did not deliver; it is named.
            MissingBytesError, DamagedError: what it delivered is not so.
        """
        parts = gather(self._store, self._layout, gathering, timeout_s=self._timeout_s, attempt=self._attempt)
        files = merged({rank: part.files for rank, part in parts.items()}, self._store.url)
        confirm(self._store, files)
        return contribution.complete({rank: part.detail for rank, part in parts.items()}), files

    def settle(self, gathering: Gathering, pending: PendingCheckpoint) -> None:
        """When it is committed, delete the part records; when not, tell the others."""
        error = pending.exception(0)
        if error is None:
            clean_up(self._store, self._layout, gathering)
        elif not isinstance(error, RunFencedError):  # then they see it in the journal
            _within(_TELL_S, lambda: tell_outcome(self._store, self._layout, gathering, reason=str(error)))


class PartPublisher:
    """A rank above 0: publishes its part of each checkpoint, one after the other, on a thread of its own.

    Args:
        membership: The attempt.
        log: The run's journal.
        queue: Uploads to the remote's root.
        store: The remote, patient.
        rank: This rank.
        world_size: How many ranks save together.
        timeout_s: Seconds that this rank's uploads may take, and then rank 0 to commit, each.
    """

    def __init__(
        self,
        membership: Membership,
        *,
        log: JournalLog,
        queue: UploadQueue,
        store: Store,
        rank: int,
        world_size: int,
        timeout_s: float,
    ) -> None:
        self._membership, self._queue, self._store, self._layout = membership, queue, store, log.layout
        self._rank, self._timeout_s = rank, timeout_s
        self._worker: SerialWorker[None] = SerialWorker("artifactsync-part")
        self._watch = _CommitWatch(membership, store=store, layout=log.layout, rank=rank)
        self._lock = threading.Lock()
        self._pending: list[PendingCheckpoint] = []
        self._used: set[str] = set()
        self._gatherings = Gatherings(
            membership,  # type: ignore[arg-type]  # number and claim_id are all that begin() asks for
            log=log,
            store=store,
            world_size=world_size,
            timeout_s=timeout_s,
        )

    def submit(
        self, prepare: Callable[[], Sequence[LocalFile]], label: Label, *, contribution: Contribution | None = None
    ) -> PendingCheckpoint:
        """Enqueue this rank's part; returns at once. The result is the checkpoint that rank 0 commits.

        Raises:
            RunFencedError: the attempt has lost the run.
        """
        self._membership.check()
        gathering = self._gatherings.begin(label)
        future: Future[Checkpoint] = Future()
        sending = self._worker.submit(lambda: self._publish(gathering, prepare, contribution or Contribution(), future))
        sending.add_done_callback(lambda done: future.cancel() if done.cancelled() else None)
        pending = PendingCheckpoint(label, future)
        with self._lock:
            self._pending = [p for p in self._pending if not p.done() or p.exception() is not None]
            self._pending.append(pending)
        return pending

    def uses(self, key: str) -> bool:
        """Whether a checkpoint, committed or on its way, has bytes of this rank at ``key``."""
        return key in self._used

    def pending(self) -> list[PendingCheckpoint]:
        """Parts that are on their way."""
        with self._lock:
            return [p for p in self._pending if not p.done()]

    def failures(self) -> list[BaseException]:
        """What made parts fail that nobody has been told of yet by ``take_failures``."""
        with self._lock:
            return [e for p in self._pending if p.done() and (e := p.exception()) is not None]

    def take_failures(self) -> list[BaseException]:
        """``failures``, which are then regarded as told."""
        failures = self.failures()
        with self._lock:
            self._pending = [p for p in self._pending if not p.done()]
        return failures

    def close(self) -> None:
        """Accept no more; what has begun goes on in the background, what has not is cancelled."""
        self._worker.cancel_waiting()
        self._worker.close()

    def _publish(
        self,
        gathering: Gathering,
        prepare: Callable[[], Sequence[LocalFile]],
        contribution: Contribution,
        future: Future[Checkpoint],
    ) -> None:
        """Send and deliver the part; what comes of it is for the watch, so that the next part need not wait."""
        if not future.set_running_or_notify_cancel():
            self._refuse(gathering, "it was cancelled there")
            return
        try:
            self._deliver(gathering, prepare, contribution)
        except BaseException as error:  # noqa: BLE001 - the pending checkpoint carries it
            self._refuse(gathering, f"{type(error).__name__}: {error}")
            future.set_exception(error)
        else:
            self._watch.add(gathering, future, give_up_at=time.monotonic() + 2 * self._timeout_s)

    def _refuse(self, gathering: Gathering, reason: str) -> None:
        def tell() -> None:
            deliver_failure(self._store, self._layout, gathering, rank=self._rank, reason=reason)

        _within(_TELL_S, tell)

    def _deliver(
        self, gathering: Gathering, prepare: Callable[[], Sequence[LocalFile]], contribution: Contribution
    ) -> None:
        files = sorted(prepare(), key=lambda file: file.path)
        self._membership.check()
        sent = self._send(gathering, files)
        detail = contribution.detail()
        _within(
            self._timeout_s,
            lambda: deliver_part(self._store, self._layout, gathering, rank=self._rank, files=sent, detail=detail),
            what=f"the part record of checkpoint {gathering.name!r} of rank {self._rank}",
        )

    def _send(self, gathering: Gathering, files: Sequence[LocalFile]) -> list[CheckpointFile]:
        """Upload this rank's files within the time limit."""
        give_up_at = time.monotonic() + self._timeout_s
        keyed = [(file, self._fresh_key(file)) for file in files]
        if not keyed:
            return []
        _within(
            self._timeout_s,
            lambda: announce_part(
                self._store, self._layout, gathering, rank=self._rank, keys=[key for _, key in keyed]
            ),
            what=f"the announcement of rank {self._rank}'s files of checkpoint {gathering.name!r}",
        )
        uploads = [(file, key, self._queue.submit(key, file.local, overwrite=True)) for file, key in keyed]
        sent: list[CheckpointFile] = []
        for file, key, upload in uploads:
            try:
                done = upload.result(max(0.0, give_up_at - time.monotonic()))
            except WaitTimeoutError as error:
                self._give_up(uploads)
                last = self._queue.status().last_error
                raise WaitTimeoutError(
                    f"rank {self._rank} could not upload its part of checkpoint {gathering.name!r} within "
                    f"{self._timeout_s:g} s" + (f": {last}" if last else ""),
                    hint="the previous checkpoint is still the newest; the next save tries again",
                    url=f"{self._store.url}/{key}",
                ) from error
            sent.append(CheckpointFile(path=file.path, key=key, size=done.size_bytes, sha256=done.sha256))
        return sent

    @staticmethod
    def _give_up(uploads: Sequence[tuple[LocalFile, str, Upload]]) -> None:
        for _, _, upload in uploads:
            upload.cancel()

    def _fresh_key(self, file: LocalFile) -> str:
        """A key that nobody wrote, and no earlier attempt may still be writing."""
        path, number = check_relative(file.path), 0
        candidate = path if self._membership.number == 1 else sibling(path, self._membership.number)
        while self._layout.artifact(candidate) in self._used:
            number += 1
            candidate = sibling(path, self._membership.number, number)
        key = self._layout.artifact(candidate)
        self._used.add(key)
        return key


@dataclass(frozen=True, kw_only=True)
class _Awaited:
    gathering: Gathering
    future: Future[Checkpoint]
    give_up_at: float


class _CommitWatch:
    """Follows the journal until every delivered part is committed, refused, or given up. One thread, while needed."""

    def __init__(self, membership: Membership, *, store: Store, layout: RunLayout, rank: int) -> None:
        self._membership, self._store, self._layout, self._rank = membership, store, layout, rank
        self._lock = threading.Lock()
        self._awaited: list[_Awaited] = []
        self._seen: dict[tuple[str, int], Checkpoint] = {}
        self._is_looking = False
        self._url = f"{store.url}/{layout.run_name}"

    def add(self, gathering: Gathering, future: Future[Checkpoint], *, give_up_at: float) -> None:
        """Settle ``future`` when it is known what became of the gathering."""
        with self._lock:
            self._awaited.append(_Awaited(gathering=gathering, future=future, give_up_at=give_up_at))
            if self._is_looking:
                return
            self._is_looking = True
        threading.Thread(target=self._look_on, name="artifactsync-watch", daemon=True).start()

    def _look_on(self) -> None:
        pause_s, count = _FIRST_LOOK_S, 0
        while True:
            self._look()
            with self._lock:
                if not self._awaited:
                    self._is_looking = False
                    return
                pause_s = _FIRST_LOOK_S if len(self._awaited) != count else min(pause_s * 2, _SLOWEST_LOOK_S)
                count = len(self._awaited)
            time.sleep(pause_s)

    def _look(self) -> None:
        with self._lock:
            awaited = list(self._awaited)
        trouble: ArtifactSyncError | None = None
        reasons: dict[int, str | None] = {}
        try:
            for record in self._membership.follow():
                if record.kind is Kind.COMMIT:
                    checkpoint = Checkpoint.from_record(record, run_name=self._layout.run_name, url=self._url)
                    self._seen[checkpoint.name, checkpoint.step] = checkpoint
            for each in awaited:
                if (each.gathering.name, each.gathering.step) not in self._seen:
                    reasons[each.gathering.number] = read_outcome(self._store, self._layout, each.gathering)
        except ArtifactSyncError as error:
            trouble = error
        for each in awaited:
            outcome = self._outcome(each, reasons.get(each.gathering.number), trouble)
            if outcome is None:
                continue
            with self._lock:
                self._awaited.remove(each)
            if isinstance(outcome, Checkpoint):
                each.future.set_result(outcome)
            else:
                each.future.set_exception(outcome)

    def _outcome(
        self, each: _Awaited, reason: str | None, trouble: ArtifactSyncError | None
    ) -> Checkpoint | ArtifactSyncError | None:
        name = each.gathering.name
        if (checkpoint := self._seen.pop((name, each.gathering.step), None)) is not None:
            return checkpoint
        if isinstance(trouble, RunFencedError):
            return trouble
        if reason is not None:
            return NotDurableError(
                f"checkpoint {name!r} was not committed: {reason}",
                hint="the previous checkpoint is still the newest",
                url=self._url,
            )
        if time.monotonic() >= each.give_up_at:
            return WaitTimeoutError(
                f"rank 0 did not commit checkpoint {name!r} in time, although the part of rank {self._rank} is there"
                + (f"; last error: {trouble}" if trouble else ""),
                hint="see rank 0's log; the previous checkpoint is still the newest",
                url=self._url,
            )
        return None


def _within(limit_s: float, call: Callable[[], object], *, what: str = "") -> None:
    """Call on a thread of its own, and wait no longer than so many seconds: the store behind it is patient.

    Raises:
        WaitTimeoutError: it takes longer; silent, as are its errors, where ``what`` is not given.
    """
    failed: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:  # noqa: BLE001 - raised below
            failed.append(error)

    thread = threading.Thread(target=run, name="artifactsync-limit", daemon=True)
    thread.start()
    thread.join(limit_s)
    if not what:
        return
    if failed:
        raise failed[0]
    if thread.is_alive():
        raise WaitTimeoutError(f"{what} could not be written within {limit_s:g} s", hint="see whether the remote is up")
