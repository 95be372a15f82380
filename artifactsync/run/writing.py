"""What a run that is open for writing holds: its attempt, who publishes for it, its growing logs, its heartbeat.

Owns: ``Writing``: how these are put together for one process, for rank 0 of many and for the other ranks, and in which
order they end. Does not own: what users call (``writer``), the uploads themselves (``transfer``).

Invariant: after ``release`` nothing of it writes to the remote any more.
"""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING, Any

from artifactsync.batch.supervised import HINT_SUPERVISED, supervised_run
from artifactsync.errors import AlreadyExistsError, ArtifactSyncError, RunIsLiveError, WaitTimeoutError
from artifactsync.journal.attempt import Attempt
from artifactsync.journal.heartbeat import Heart
from artifactsync.journal.log import JournalLog
from artifactsync.journal.opening import begin_attempt
from artifactsync.journal.part_publisher import PartPublisher
from artifactsync.journal.publication import Publisher
from artifactsync.journal.retire import prune
from artifactsync.journal.status import RunStatus
from artifactsync.journal.tails import LogMirror
from artifactsync.journal.together import Contribution, Gatherings, Membership
from artifactsync.run.ending import seconds_left
from artifactsync.stores.retry import RetryPolicy, RetryStore

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from artifactsync.journal.attempt import FinishState
    from artifactsync.journal.catalogue import CheckpointFile
    from artifactsync.journal.publication import Label, LocalFile, PendingCheckpoint
    from artifactsync.journal.retention import RetentionPolicy
    from artifactsync.run.launch import Launch
    from artifactsync.transfer.queue import UploadQueue

_OUTAGE = RetryPolicy(max_attempts=1 << 30, deadline_s=6 * 3600.0, max_delay_s=30.0, unanswered_deadline_s=6 * 3600.0)
"""Patience behind a training loop: it outlasts the long regional outages of the big clouds."""


class Writing:
    """The right to write a run, and what it takes. Claims the run, or joins the claim of rank 0.

    Args:
        log: The run's journal; its store is the remote.
        queue: The run's uploads; asked for when the run is claimed.
        launch: The ranks that save together; None if this process saves alone.
        takeover: See ``Run``; likewise the rest.
        allow_unfenced: ″
        retention: ″
        part_timeout_s: ″

    Raises:
        RunIsLiveError: another process that is alive owns the run.
        UnfencedStoreError: the store cannot tell two writers apart.
        WaitTimeoutError: another rank did not open the run.
    """

    attempt: Attempt | Membership
    publisher: Publisher | PartPublisher
    logs: LogMirror

    def __init__(
        self,
        log: JournalLog,
        *,
        queue: Callable[[], UploadQueue],
        launch: Launch | None,
        takeover: bool,
        allow_unfenced: bool,
        retention: RetentionPolicy | None,
        part_timeout_s: float,
    ) -> None:
        self._log = log
        self._store = log.store
        self._queue = queue
        self._launch = launch
        self._retention = retention
        self._part_timeout_s = part_timeout_s
        self._patient = RetryStore(log.store, _OUTAGE)
        self.heart: Heart | None = None
        self._gatherings: Gatherings | None = None
        self._local_step: int | None = None
        if launch is not None and launch.place.rank > 0:
            self._join(launch)
        else:
            self._claim(takeover=takeover, allow_unfenced=allow_unfenced)

    def _claim(self, *, takeover: bool, allow_unfenced: bool) -> None:
        launch, patient, name = self._launch, self._patient, self._log.layout.run_name
        try:
            attempt = begin_attempt(
                self._store,
                self._log,
                takeover=takeover,
                allow_unfenced=allow_unfenced,
                launch="" if launch is None else launch.claim_word,
            )
        except BaseException as error:
            if launch is not None:
                launch.tell_failure(error)
            if isinstance(error, RunIsLiveError) and supervised_run() == name:
                raise RunIsLiveError(error.message, hint=HINT_SUPERVISED, url=error.url) from error
            raise
        attempt.use(JournalLog(patient, name, policy=_OUTAGE))
        self.attempt = attempt
        self.logs = self._mirror()
        self.publisher = Publisher(
            attempt,
            log=self._log,
            queue=self._queue(),
            store=patient,
            retention=self._retention,
            after_commit=self._retain if self._retention else None,
        )
        self.heart = Heart(
            self._store, self._log.layout, attempt=attempt.number, writer=attempt.writer, gauge=self._gauge
        )
        self.heart.start(attempt.look_for_later)
        if launch is not None:
            self._gatherings = Gatherings(
                attempt,
                log=JournalLog(patient, name),
                store=patient,
                world_size=launch.place.world_size,
                timeout_s=self._part_timeout_s,
            )

    def _join(self, launch: Launch) -> None:
        """A rank above 0: take part in the attempt that rank 0 claims."""
        membership = launch.join(self._log)
        membership.use(JournalLog(self._store, self._log.layout.run_name))
        self.attempt = membership
        self.logs = self._mirror()
        self.publisher = PartPublisher(
            membership,
            log=self._log,
            uploads=self._queue(),
            store=self._patient,
            rank=launch.place.rank,
            world_size=launch.place.world_size,
            timeout_s=self._part_timeout_s,
        )

    def _mirror(self) -> LogMirror:
        return LogMirror(self._log.layout, attempt=self.attempt.number, queue=self._queue, check=self.check_key)

    def tell_ranks(self) -> None:
        """Rank 0 of several tells the others of its claim; else nothing is done.

        Raises:
            WaitTimeoutError: a rank did not open the run; it is named.
        """
        if self._launch is not None and isinstance(self.attempt, Attempt):
            self._launch.tell_claim(self.attempt)

    @property
    def writer(self) -> Attempt | None:
        """The attempt, where this process writes the journal; None on the other ranks."""
        return self.attempt if isinstance(self.attempt, Attempt) else None

    def submit(
        self,
        prepare: Callable[[], Sequence[LocalFile]],
        label: Label,
        *,
        contribution: Contribution | None,
        confirm: Callable[[], None] | None,
    ) -> PendingCheckpoint:
        """Hand a checkpoint over to whoever publishes here; see ``Run.save_prepared``.

        Raises:
            RunFencedError: a later attempt owns the run.
        """
        if isinstance(self.publisher, PartPublisher):
            pending = self.publisher.submit(prepare, label, contribution=contribution)
        elif self._gatherings is None:
            gather = None if confirm is None else functools.partial(_confirmed, confirm)
            pending = self.publisher.submit(prepare, label, gather=gather)
        else:
            gatherings, gathering = self._gatherings, self._gatherings.begin(label)
            gather = functools.partial(gatherings.gather, gathering, contribution or Contribution())
            pending = self.publisher.submit(prepare, label, gather=gather)
            gatherings.watch(gathering, pending)
        self._local_step = max(label.step, self._local_step or 0)
        return pending

    def make_way(self) -> None:
        """See ``Run.make_way``."""
        if isinstance(self.publisher, Publisher):
            self.publisher.make_way()

    def status(self) -> RunStatus:
        """How durable the run is, as this process knows."""
        uploads = self._queue().status()
        failures = self.publisher.failures()
        return RunStatus(
            run_name=self._log.layout.run_name,
            attempt=self.attempt.number,
            state="running",
            alive=True,
            durable_step=self.attempt.durable_step,
            local_step=self._local_step,
            pending_files=uploads.pending_files,
            pending_bytes=uploads.pending_bytes,
            bytes_per_s=uploads.bytes_per_s,
            eta_s=uploads.eta_s,
            last_error=uploads.last_error or self._patient.trouble or (str(failures[0]) if failures else None),
        )

    def check_key(self, key: str) -> None:
        """Behind, before an artifact is put: as ``push`` asks in front, but the whole journal, in an outage too.

        Raises:
            AlreadyExistsError: a committed checkpoint has its bytes there.
        """
        if self.publisher.is_sending(key) or key in self.attempt.read_catalogue(self._log).keys:
            raise not_writable(key, url=self._store.url)

    def wait(self, give_up_at: float | None) -> None:
        """Wait until every checkpoint handed over is committed.

        Raises:
            WaitTimeoutError: not all are yet; says how much is not.
            ArtifactSyncError: the first that failed for good since the last ``wait``.
        """
        for pending in self.publisher.pending():
            with contextlib.suppress(Exception):  # told below, once, with all the others
                pending.result(seconds_left(give_up_at))
        if still := self.publisher.pending():
            status = self.status()
            raise WaitTimeoutError(
                f"{len(still)} checkpoint(s) of run {self._log.layout.run_name!r} are not durable "
                f"({status.pending_files} files, {status.pending_bytes} bytes to go)"
                + (f"; last error: {status.last_error}" if status.last_error else ""),
                hint="wait longer, or see status()",
                url=self._store.url,
            )
        if failures := self.publisher.take_failures():
            with contextlib.suppress(ArtifactSyncError):  # the uploads of the same checkpoints
                self._queue().wait(seconds_left(give_up_at))
            raise failures[0]

    def finish(self, state: FinishState, give_up_at: float | None = None) -> None:
        """Put the whole logs in their place, and write down how the attempt ended, unless that is done.

        Raises:
            RunFencedError: a later attempt owns the run.
        """
        self._seal_logs(state, give_up_at)
        if not self.attempt.is_finished:
            self.attempt.finish(state)
            self.publisher.advise()

    def release(self) -> None:
        """Let everything go, whatever is not durable. The queue is the run's to close."""
        self.publisher.close()
        self._patient.give_up()
        if self.heart:
            self.heart.stop()

    def _gauge(self) -> dict[str, Any]:
        fields = self.status().to_json()
        return {name: fields[name] for name in fields.keys() - {"run_name", "attempt", "state", "alive"}}

    def _seal_logs(self, state: FinishState, give_up_at: float | None) -> None:
        """Put the whole logs under the keys of this attempt, unless the run is another's by now."""
        try:
            head = self._log.find_head()
        except ArtifactSyncError:  # the finish record, which comes next, is more patient, and tells
            return
        if head and head.record.attempt == self.attempt.number:
            # A run that was stopped will be continued, and its logs too, from the segments.
            self.logs.seal(self._store, timeout=lambda: seconds_left(give_up_at), clean=state == "completed")

    def _retain(self) -> None:
        """Apply ``retention``, on the publication thread: nothing is waited for there."""
        if self._retention:
            prune(
                self._store,
                self._log,
                self._retention,
                attempt=self.writer,
                is_patient=False,
                orphans_age_s=None,
            )


def not_writable(key: str, *, url: str) -> AlreadyExistsError:
    """The error for an artifact at the key of a checkpoint's file."""
    return AlreadyExistsError(f"{key} belongs to a committed checkpoint", hint="push it under another name", url=url)


def _confirmed(confirm: Callable[[], None]) -> tuple[Sequence[LocalFile], Sequence[CheckpointFile]]:
    """``confirm`` in the place where other ranks would contribute, which nobody does here."""
    confirm()
    return (), ()
