"""A rank above 0: its part of each checkpoint becomes durable, and then it waits for the journal's word.

Owns: ``PartPublisher``, which has the face of ``publication.Publisher``. Does not own: part records (``parts``), or
what rank 0 does with them (``together``).

Invariant: what a checkpoint became, every rank knows in the end: committed, refused, or given up after the limit.
"""

from __future__ import annotations

import queue
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING

from artifactsync.errors import ArtifactSyncError, NotDurableError, RunFencedError, WaitTimeoutError
from artifactsync.journal.catalogue import Checkpoint, CheckpointFile
from artifactsync.journal.parts import Gathering, announce_part, deliver_failure, deliver_part, read_outcome
from artifactsync.journal.publication import Label, LocalFile, PendingCheckpoint
from artifactsync.journal.record import Kind
from artifactsync.journal.together import TELL_S, Contribution, Gatherings, Membership, within
from artifactsync.naming.layout import check_relative, sibling

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from artifactsync.journal.log import JournalLog
    from artifactsync.naming.layout import RunLayout
    from artifactsync.stores.protocol import Store
    from artifactsync.transfer.queue import UploadQueue
    from artifactsync.transfer.upload import Upload

_FIRST_LOOK_S = 0.05
_SLOWEST_LOOK_S = 2.0


class PartPublisher:
    """A rank above 0: publishes its part of each checkpoint, one after the other, on a thread of its own.

    The oldest goes first, though rank 0 begins with the newest: a rank slower than rank 0 that did so too would let the
    part wait that rank 0 gathers right now, as long as newer ones keep coming.

    Args:
        membership: The attempt.
        log: The run's journal.
        uploads: Uploads to the remote's root.
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
        uploads: UploadQueue,
        store: Store,
        rank: int,
        world_size: int,
        timeout_s: float,
    ) -> None:
        self._membership, self._uploads, self._store, self._layout = membership, uploads, store, log.layout
        self._rank, self._timeout_s = rank, timeout_s
        self._waiting: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        threading.Thread(target=self._work, name="artifactsync-part", daemon=True).start()
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
        self._waiting.put(lambda: self._publish(gathering, prepare, contribution or Contribution(), future))
        pending = PendingCheckpoint(label, future)
        with self._lock:
            self._pending = [p for p in self._pending if not p.done() or p.exception() is not None]
            self._pending.append(pending)
        return pending

    def is_sending(self, key: str) -> bool:
        """Whether a checkpoint, committed or on its way, has bytes of this rank at ``key``; asks nobody."""
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
        for pending in self.pending():
            pending.cancel()
        self._waiting.put(None)

    def advise(self) -> None:
        """Rank 0 does it."""

    def _work(self) -> None:
        while (call := self._waiting.get()) is not None:
            call()

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

        within(TELL_S, tell)

    def _deliver(
        self, gathering: Gathering, prepare: Callable[[], Sequence[LocalFile]], contribution: Contribution
    ) -> None:
        files = sorted(prepare(), key=lambda file: file.path)
        self._membership.check()
        sent = self._send(gathering, files)
        detail = contribution.detail()
        within(
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
        within(
            self._timeout_s,
            lambda: announce_part(
                self._store, self._layout, gathering, rank=self._rank, keys=[key for _, key in keyed]
            ),
            what=f"the announcement of rank {self._rank}'s files of checkpoint {gathering.name!r}",
        )
        uploads = [
            (file, key, self._uploads.submit(key, file.local, overwrite=True, is_urgent=True)) for file, key in keyed
        ]
        sent: list[CheckpointFile] = []
        for file, key, upload in uploads:
            try:
                done = upload.result(max(0.0, give_up_at - time.monotonic()))
            except WaitTimeoutError as error:
                self._give_up(uploads)
                last = self._uploads.status().last_error
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
