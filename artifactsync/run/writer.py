"""``Run``: everything of one training run, by its name.

Owns: the wiring of store, queue, journal and publication for one run. Holds no algorithm.

Invariant: whatever is done through a ``Run`` stays below ``<remote>/<run_name>/``.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from artifactsync.errors import (
    AlreadyExistsError,
    ArtifactSyncError,
    ConfigurationError,
    DestinationError,
    ObjectNotFoundError,
    WaitTimeoutError,
)
from artifactsync.journal.attempt import Attempt
from artifactsync.journal.catalogue import Checkpoint, CheckpointFile
from artifactsync.journal.heartbeat import Heart
from artifactsync.journal.local_checkpoints import LocalCheckpoint, resumable_locals, write_local_record
from artifactsync.journal.log import JournalLog
from artifactsync.journal.opening import begin_attempt
from artifactsync.journal.orphans import MIN_AGE_S
from artifactsync.journal.part_publisher import PartPublisher
from artifactsync.journal.publication import Label, LocalFile, PendingCheckpoint, Publisher, local_files
from artifactsync.journal.retire import PruneReport, prune
from artifactsync.journal.status import RunStatus
from artifactsync.journal.tails import LogMirror
from artifactsync.journal.together import Contribution, Gatherings, Membership
from artifactsync.run.ending import end_within, open_runs, seconds_left
from artifactsync.run.launch import Launch, launch_of
from artifactsync.run.pushed import Pushed
from artifactsync.run.torch_backed import state_io
from artifactsync.run.view import RunView
from artifactsync.stores.retry import RetryPolicy, RetryStore
from artifactsync.transfer import at_exit
from artifactsync.transfer.queue import UploadQueue

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

    from artifactsync.journal.attempt import FinishState
    from artifactsync.journal.retention import RetentionPolicy
    from artifactsync.stores.protocol import Store
    from artifactsync.transfer.patience import Patience

_OUTAGE = RetryPolicy(max_attempts=1 << 30, deadline_s=6 * 3600.0, max_delay_s=30.0, unanswered_deadline_s=6 * 3600.0)
"""Patience behind a training loop: it outlasts the long regional outages of the big clouds."""


class Run(RunView):
    """One training run, known by its name.

    Opening a run for writing claims it: a new attempt begins, and any earlier process of the run is fenced off. With
    ``read_only=True`` nothing is claimed and nothing of the journal is written.

    Args:
        run_name: The name; else ``ARTIFACTSYNC_RUN_NAME``, ``RUN_NAME``, or a generated one.
        remote: Root URI under which runs live, else ``ARTIFACTSYNC_REMOTE``; or an opened store,
            which stays the caller's to close.
        local_root: Local folder whose ``<run_name>/`` has the same shape as the remote one; else
            ``ARTIFACTSYNC_LOCAL_ROOT``, else ``runs``.
        storage_options: What fsspec's file system for the remote takes.
        read_only: Look, pull and push artifacts, but never save.
        takeover: Claim the run even if its present owner is alive.
        allow_unfenced: Accept a store without put-if-absent: two processes with one run name can then hurt each other.
        max_concurrency: Files that are uploaded at the same time.
        bandwidth_limit: Bytes per second of all transfers together; None is no limit.
        patience: How long a failing upload is tried again; None outlasts an outage, as behind a training loop.
        max_pending_files: When so many uploads of logs and other files wait, a new one fails at once. Checkpoints have
            room of their own, and go first.
        retention: Checkpoints that this policy does not keep are removed from the remote after each commit, behind
            the training loop; None keeps all.
        backpressure: What a save does while the snapshot before it is still being written to this disk: ``wait`` for
            it; ``skip`` this one, whose pending checkpoint then says so; or ``newest``, give the one before up, though
            never two running. Several ranks that save together always wait.
        split_frozen: Weights that do not change from one ``save`` to the next go to a file of their own beside the
            checkpoint's, and are sent once (from 32 MiB, and an eighth of the state); False keeps one file.
        ranks: Where several processes train together (torchrun, Slurm, Open MPI), ``all`` of them open the run, save
            and resume together, each what is its own, and rank 0 commits; or ``one`` process saves alone.
        part_timeout_s: Seconds that a rank's part of a checkpoint may take before the checkpoint is given up.

    Raises:
        WaitTimeoutError: another rank did not open the run; it is named.
        RunNameError: the name is not allowed.
        ConfigurationError: no remote, or a wrong one.
        RunIsLiveError: another process that is alive owns the run.
        UnfencedStoreError: the store cannot tell two writers apart.
        RemoteUnreachableError, CredentialsError, PermissionDeniedError, BucketNotFoundError: the remote said no.
    """

    def __init__(
        self,
        run_name: str | None = None,
        *,
        remote: str | os.PathLike[str] | Store | None = None,
        local_root: str | os.PathLike[str] | None = None,
        storage_options: Mapping[str, Any] | None = None,
        read_only: bool = False,
        takeover: bool = False,
        allow_unfenced: bool = False,
        max_concurrency: int = 8,
        bandwidth_limit: float | None = None,
        patience: Patience | None = None,
        max_pending_files: int = 10_000,
        retention: RetentionPolicy | None = None,
        backpressure: Literal["wait", "skip", "newest"] = "wait",
        split_frozen: bool = True,
        ranks: Literal["all", "one"] = "all",
        part_timeout_s: float = 1800.0,
    ) -> None:
        super().__init__(
            run_name,
            remote=remote,
            local_root=local_root,
            storage_options=storage_options,
            bandwidth_limit=bandwidth_limit,
        )
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._is_closed = False
        self._local_step: int | None = None
        self._max_concurrency = max_concurrency
        self._patience = patience
        self._max_pending_files = max_pending_files
        self.backpressure = backpressure
        self.split_frozen = split_frozen
        self._retention = retention
        self._lazy_queue: UploadQueue | None = None
        self._attempt: Attempt | Membership | None = None
        self._part_timeout_s = part_timeout_s
        self.launch = None if read_only else launch_of(self.name, ranks)
        """The ranks that save together with this one; None if it saves alone."""
        if not read_only:
            self._open_for_writing(takeover=takeover, allow_unfenced=allow_unfenced)

    def _open_for_writing(self, *, takeover: bool, allow_unfenced: bool) -> None:
        try:
            self.local_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DestinationError(
                f"no folder can be made at {self.local_dir}: {error.strerror}",
                hint="choose a local_root in which folders can be made",
                url=str(self.local_dir),
            ) from error
        patient = self._patient = RetryStore(self._store, _OUTAGE)
        self._heart: Heart | None = None
        self._gatherings: Gatherings | None = None
        launch = self.launch
        if launch is not None and launch.place.rank > 0:
            self._join(launch)
            return
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
            raise
        attempt.use(JournalLog(patient, self.name, policy=_OUTAGE))
        self._attempt = attempt
        self._logs = LogMirror(self._layout, attempt=attempt.number, queue=lambda: self._queue, check=self._check_key)
        self._publisher: Publisher | PartPublisher = Publisher(
            attempt,
            log=self._log,
            queue=self._queue,
            store=patient,
            retention=self._retention,
            after_commit=self._retain if self._retention else None,
        )
        self._heart = Heart(
            self._store, self._log.layout, attempt=attempt.number, writer=attempt.writer, gauge=self._gauge
        )
        self._heart.start()
        open_runs.add(self)
        if launch is not None:
            self._gatherings = Gatherings(
                attempt,
                log=JournalLog(patient, self.name),
                store=patient,
                world_size=launch.place.world_size,
                timeout_s=self._part_timeout_s,
            )
            try:
                launch.tell_claim(attempt)
            except BaseException:
                self.close(0, state="failed")
                raise

    def _join(self, launch: Launch) -> None:
        """A rank above 0: take part in the attempt that rank 0 claims."""
        membership = launch.join(self._log)
        membership.use(JournalLog(self._store, self.name))
        self._attempt = membership
        self._logs = LogMirror(
            self._layout, attempt=membership.number, queue=lambda: self._queue, check=self._check_key
        )
        self._publisher = PartPublisher(
            membership,
            log=self._log,
            uploads=self._queue,
            store=self._patient,
            rank=launch.place.rank,
            world_size=launch.place.world_size,
            timeout_s=self._part_timeout_s,
        )
        open_runs.add(self)

    @property
    def attempt(self) -> int:
        """Number of this process's attempt; of the newest one when read-only; 0 if nobody ever claimed the run."""
        return self._attempt.number if self._attempt else super().attempt

    def latest(self) -> Checkpoint | None:
        """The checkpoint that a resume takes; None if nothing is committed. Known to the run's writer."""
        return self._attempt.latest() if self._attempt else super().latest()

    def status(self) -> RunStatus:
        """How durable the run is now: of this process if it is the writer, else from journal and heartbeat.

        Raises:
            RunNotFoundError: there is no such run.
        """
        if self._attempt is None:
            return super().status()
        uploads = self._queue.status()
        failures = self._publisher.failures()
        return RunStatus(
            run_name=self.name,
            attempt=self._attempt.number,
            state="running",
            alive=True,
            durable_step=self._attempt.durable_step,
            local_step=self._local_step,
            pending_files=uploads.pending_files,
            pending_bytes=uploads.pending_bytes,
            bytes_per_s=uploads.bytes_per_s,
            eta_s=uploads.eta_s,
            last_error=uploads.last_error or (str(failures[0]) if failures else None),
        )

    def save(
        self,
        state: Any,
        *,
        step: int,
        name: str | None = None,
        epoch: int | None = None,
        batch: int | None = None,
        metrics: Mapping[str, float] | None = None,
        overlap: Any = (),
        per_rank: Collection[str] = (),
    ) -> PendingCheckpoint:
        """Take a snapshot of training state, and publish it behind the training loop. Needs torch.

        Args:
            state: Nested dicts, lists and tuples of tensors, numbers and strings, or of objects with ``state_dict()``.
                All of it may be changed as soon as this returns, unless ``overlap`` says otherwise.
            step: Optimizer steps done; orders checkpoints.
            name: Its name; ``ep{epoch}-ba{batch}`` unless given.
            epoch: Epochs done, 0 unless given.
            batch: Batches done, ``step`` unless given.
            metrics: For ``best``.
            overlap: Optimizers. Their parameters and their state are copied during the next forward and backward, and
                their ``step`` waits for what is left; everything else is copied before this returns. Whatever else
                changes those tensors calls ``wait_copied`` first; if it does not, the checkpoint fails and says so.
            per_rank: Where several ranks save together (every one calls this): names of the entries of ``state`` that
                each has for itself, as its position in the data. Of the rest, rank 0's is saved, or the shards of all.

        Raises:
            RunFencedError: a later attempt owns the run.
            ConfigurationError: the state holds something that could not be loaded again safely; names where.
            MissingPackageError: torch is not installed.
        """
        began = time.monotonic()
        pending: PendingCheckpoint = state_io().save_state(
            self,
            state,
            step=step,
            name=name,
            epoch=epoch,
            batch=batch,
            metrics=metrics,
            per_rank=per_rank,
            overlap=overlap,
        )
        pending.timing.stalled(time.monotonic() - began)
        return pending

    def prepare(self, state: Any) -> None:
        """Have the memory for checkpoints of ``state`` at hand, so that the first ``save`` is as quick as any other.

        Call it once everything is there, after the first step of the optimizers: that makes their state.

        Args:
            state: As for ``save``, or a part of it.

        Raises:
            ConfigurationError: the state holds something that could not be loaded again safely; names where.
        """
        state_io().prepare_state(self, state)

    def wait_copied(self) -> None:
        """Hold the caller until the last ``save`` with ``overlap`` is copied, before it changes what was saved."""
        state_io().wait_copied(self)

    def resume(
        self,
        state: Any = None,
        *,
        map_location: Any = "cpu",
        strict: bool = True,
        per_rank: Collection[str] = (),
    ) -> Any:
        """Load the newest whole checkpoint of the run; None if it has none. Needs torch.

        Args:
            state: Objects of the same shape as were saved; those with ``load_state_dict`` and tensors are loaded in
                place.
            map_location: Where tensors go, as for ``torch.load``.
            strict: Whether missing or unexpected keys are errors.
            per_rank: As for ``save``: left out where another number of ranks saved.

        Returns:
            ``Resumed`` with ``.checkpoint``, ``.state`` (what was saved) and ``.step``.

        Raises:
            DamagedError: every checkpoint of the run is damaged.
        """
        return state_io().resume_state(self, state, map_location=map_location, strict=strict, per_rank=per_rank)

    def save_files(
        self,
        files: Iterable[str | os.PathLike[str]] | Mapping[str, str | os.PathLike[str]],
        *,
        step: int,
        name: str | None = None,
        epoch: int | None = None,
        batch: int | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> PendingCheckpoint:
        """Publish whole local files as one checkpoint: all of them become visible at once, or none.

        Args:
            files: Local paths below ``local_dir`` (same path on the remote), or ``{path below the run: local path}``.
                They must not change until the result is there.
            step: Optimizer steps done; orders checkpoints.
            name: Its name; ``ep{epoch}-ba{batch}`` unless given.
            epoch: Epochs done, 0 unless given.
            batch: Batches done, ``step`` unless given.
            metrics: For ``best``.

        Raises:
            ObjectNotFoundError: a file is not there.
            RunFencedError: a later attempt owns the run.
        """
        by_path = files if isinstance(files, Mapping) else {self._path_below(Path(file)): file for file in files}
        described = local_files(by_path)
        return self.save_prepared(lambda: described, step=step, name=name, epoch=epoch, batch=batch, metrics=metrics)

    def save_prepared(
        self,
        prepare: Callable[[], Sequence[LocalFile]],
        *,
        step: int,
        name: str | None = None,
        epoch: int | None = None,
        batch: int | None = None,
        metrics: Mapping[str, float] | None = None,
        contribution: Contribution | None = None,
        confirm: Callable[[], None] | None = None,
    ) -> PendingCheckpoint:
        """Publish files that are still to be written: ``prepare`` writes them on the publication thread.

        Args:
            prepare: Writes the files and describes them. Called once; of several checkpoints that wait, that of the
                greatest step goes first.
            step: See ``save_files``; likewise the rest.
            name: ″
            epoch: ″
            batch: ″
            metrics: ″
            contribution: What else this rank says or does, where several save together.
            confirm: Called when every file is durable and nothing is committed yet; raises if the files are not what
                they were taken for. Only where one process saves alone.

        Raises:
            RunFencedError: a later attempt owns the run.
        """
        publisher = self._writable()._publisher  # noqa: SLF001 - its own
        epoch, batch = epoch or 0, step if batch is None else batch
        label = Label(
            name=name or f"ep{epoch}-ba{batch}", step=step, epoch=epoch, batch=batch, metrics=dict(metrics or {})
        )
        if isinstance(publisher, PartPublisher):
            pending = publisher.submit(prepare, label, contribution=contribution)
        elif self._gatherings is None:
            gather = None if confirm is None else functools.partial(_confirmed, confirm)
            pending = publisher.submit(prepare, label, gather=gather)
        else:
            gatherings, gathering = self._gatherings, self._gatherings.begin(label)
            gather = functools.partial(gatherings.gather, gathering, contribution or Contribution())
            pending = publisher.submit(prepare, label, gather=gather)
            gatherings.watch(gathering, pending)
        self._local_step = max(label.step, self._local_step or 0)
        return pending

    def record_local(
        self,
        files: Sequence[LocalFile],
        *,
        step: int,
        name: str,
        epoch: int,
        batch: int,
        metrics: Mapping[str, float],
    ) -> None:
        """Note that the files of a checkpoint are whole on this disk: a resume here may take it before it is committed.

        Args:
            files: With their hashes.
            step: As for ``save_prepared``; likewise the rest.
            name: ″
            epoch: ″
            batch: ″
            metrics: ″
        """
        if self._attempt is None or self.launch is not None:  # one rank's files are no whole checkpoint
            return
        entries = tuple(
            CheckpointFile(path=f.path, key=self._layout.artifact(f.path), size=f.size_bytes, sha256=f.sha256 or "")
            for f in files
        )
        label = Label(name=name, step=step, epoch=epoch, batch=batch, metrics=metrics)
        checkpoint = Checkpoint(
            name=label.name,
            step=label.step,
            epoch=label.epoch,
            batch=label.batch,
            attempt=self._attempt.number,
            metrics=label.metrics,
            files=entries,
            committed_at="",
            seq=0,
        )
        write_local_record(self.local_dir, checkpoint, claim_id=self._attempt.claim_id)

    def local_checkpoints(self) -> list[LocalCheckpoint]:
        """Checkpoints on this disk that are newer than every commit, of this very run; newest first, not verified."""
        if self._attempt is None or self.launch is not None:
            return []
        return resumable_locals(self.local_dir, latest=self.latest, catalogue=self.catalogue, run_name=self.name)

    def _is_safe_unpinned(self, checkpoint: Checkpoint) -> bool:
        """Of the run that this process owns, no prune takes the newest: a newer commit alone frees it, one of ours."""
        return self._attempt is not None and checkpoint == self._attempt.latest()

    def push(
        self, path: str | os.PathLike[str], remote_file_name: str | None = None, *, growing: bool = False
    ) -> Pushed:
        """Mirror a file or a folder under the run; returns at once. A newer push of a file replaces an older one.

        Args:
            path: A local file or folder.
            remote_file_name: Where below the run; else the same path as below ``local_dir``, else its own name.
            growing: The file is append-only, a log: only what is new since its last push is sent, and readers see it
                as one file all the same. The whole file follows when the run ends. For files, and
                where the run is open for writing; else the file is sent as it is when it is read.

        Raises:
            ObjectNotFoundError: there is nothing at ``path``.
            AlreadyExistsError: a committed checkpoint has its bytes there. Where the journal was not read by now, it is
                read behind, and the upload fails instead.
            UnsafeKeyError: the name leaves the run's folder.
        """
        source = Path(path)
        base = (remote_file_name or self._own_path(source)).rstrip("/")
        if source.is_dir():
            found = sorted(file for file in source.rglob("*") if file.is_file() and not _is_ours(file))
            files = {f"{base}/{file.relative_to(source).as_posix()}": file for file in found}
        elif source.is_file():
            files = {base: source}
        else:
            raise ObjectNotFoundError(f"there is nothing at {source}", hint="check the path", url=str(source))
        keys = {self._layout.artifact(name): file for name, file in files.items()}
        known = self._attempt.known_catalogue if self._attempt else self.catalogue()
        for key in keys:
            if (known and key in known.keys) or (self._attempt and self._publisher.is_sending(key)):
                raise self._not_writable(key)
        if growing and self._attempt and source.is_file():
            return Pushed([self._logs.push(base, source)])
        return Pushed(
            [
                self._queue.submit(
                    key, file, overwrite=True, growing=growing, check=functools.partial(self._check_key, key)
                )
                for key, file in keys.items()
            ]
        )

    def finish(self, state: FinishState = "completed") -> None:
        """Write down how the run ended; no checkpoint can be saved afterwards. ``close`` does it if nobody did.

        Growing logs are put as whole files before, which may take as long as uploads take.

        Raises:
            RunFencedError: a later attempt owns the run.
        """
        with self._lock:
            run = self._writable()
            if run._attempt and not run._attempt.is_finished:  # noqa: SLF001 - its own
                run._seal_logs(state, None)  # noqa: SLF001
                run._attempt.finish(state)  # noqa: SLF001
                self._publisher.advise()

    def prune(
        self, policy: RetentionPolicy, *, dry_run: bool = False, orphans_age_s: float | None = MIN_AGE_S
    ) -> PruneReport:
        """Remove the checkpoints that the policy does not keep, and what crashes left. Works read-only too.

        Safe at any time: nobody sees half a checkpoint, the newest always stays, and what somebody is pulling right
        now stays until the next prune. A process that trains meanwhile is not disturbed.

        Args:
            policy: What to keep.
            dry_run: Say what would be removed.
            orphans_age_s: Age in seconds from which leftovers of crashes and unfinished uploads are removed too;
                None leaves them.

        Raises:
            RunNotFoundError: there is no such run.
            ConfigurationError: the policy names a metric that no checkpoint has.
            PermissionDeniedError: the credentials may not write or delete.
            RunFencedError: this process has lost the run.
        """
        if self._attempt is None and self._log.find_head() is None:
            self._require(self.contents())
        return prune(
            self._store,
            self._log,
            policy,
            attempt=self._attempt if isinstance(self._attempt, Attempt) else None,
            dry_run=dry_run,
            orphans_age_s=orphans_age_s,
        )

    def make_way(self) -> None:
        """Give the newest checkpoint the line for itself: everything else that is on its way is given up, and fails.

        For a process that has not long to live. What was given up can be handed over again afterwards.
        """
        publisher = self._writable()._publisher  # noqa: SLF001 - its own
        if isinstance(publisher, Publisher):
            publisher.make_way()

    def wait(self, timeout: float | None = None) -> None:
        """Wait until everything handed over is durable and committed.

        Args:
            timeout: Seconds at most; None waits as long as it takes.

        Raises:
            WaitTimeoutError: not everything is durable yet; says how much is not.
            ArtifactSyncError: what failed for good since the last ``wait``.
        """
        give_up_at = None if timeout is None else time.monotonic() + timeout
        with self._queue.watching():  # the uploads need not be polite while somebody waits
            self._wait(give_up_at)

    def _wait(self, give_up_at: float | None) -> None:
        if self._attempt:
            for pending in self._publisher.pending():
                with contextlib.suppress(Exception):  # told below, once, with all the others
                    pending.result(seconds_left(give_up_at))
            if still := self._publisher.pending():
                status = self._queue.status()
                raise WaitTimeoutError(
                    f"{len(still)} checkpoint(s) of run {self.name!r} are not durable "
                    f"({status.pending_files} files, {status.pending_bytes} bytes to go)"
                    + (f"; last error: {status.last_error}" if status.last_error else ""),
                    hint="wait longer, or see status()",
                    url=self.remote,
                )
            if failures := self._publisher.take_failures():
                with contextlib.suppress(ArtifactSyncError):  # the uploads of the same checkpoints
                    self._queue.wait(seconds_left(give_up_at))
                raise failures[0]
        if self._lazy_queue:
            self._lazy_queue.wait(seconds_left(give_up_at))

    def close(self, timeout: float | None = None, *, state: FinishState = "completed") -> None:
        """Wait until everything is durable, write down how the run ended, and release what is held. Idempotent.

        Args:
            timeout: Seconds to wait at most; None waits as long as it takes.
            state: What the finish record says if ``finish`` was not called before.

        Raises:
            As ``wait``. Everything is released nevertheless.
        """
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
        open_runs.discard(self)
        give_up_at = None if timeout is None else time.monotonic() + timeout
        try:
            self.wait(timeout)
            if self._attempt:
                end_within(
                    give_up_at,
                    lambda: self._write_end(state, give_up_at),
                    run_name=self.name,
                    url=self.remote,
                )
        finally:
            self._release()

    def end(self, timeout: float, *, state: FinishState) -> None:
        """Write down how the run ended, and release what is held, whatever is not durable. Idempotent.

        For a process that has not long to live, after ``wait``: logs stay in their segments, for the next attempt.

        Args:
            timeout: Seconds that the record may take.
            state: What it says.

        Raises:
            WaitTimeoutError: it could not be written in time; nothing is lost by that.
            RunFencedError: a later attempt owns the run.
        """
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
        open_runs.discard(self)
        attempt = self._attempt
        try:
            if attempt and not attempt.is_finished:
                give_up_at = time.monotonic() + timeout
                end_within(give_up_at, lambda: attempt.finish(state), run_name=self.name, url=self.remote)
        finally:
            self._release()

    def _release(self) -> None:
        if self._attempt:
            self._publisher.close()
            self._patient.give_up()
            if self._heart:
                self._heart.stop()
        try:
            if self._lazy_queue:
                self._lazy_queue.close(0)
        except ArtifactSyncError:  # told by wait before
            pass
        finally:
            if self._is_store_ours:
                self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
            return
        try:
            self.close(at_exit.grace_s(), state="failed")
        except Exception as problem:  # noqa: BLE001 - must not hide the error that ended the block
            at_exit.tell(f"not everything is durable: {problem}")

    def belongs_to(self, pid: int) -> bool:
        """Whether the process ``pid`` opened the run; a forked child did not."""
        return self._pid == pid

    @property
    def _queue(self) -> UploadQueue:
        with self._lock:
            if self._lazy_queue is None:
                self._lazy_queue = UploadQueue(
                    self._store,
                    max_concurrency=self._max_concurrency,
                    patience=self._patience,
                    max_pending_files=self._max_pending_files,
                    keeps_room=self._attempt is not None,
                )
            return self._lazy_queue

    def _writable(self) -> Run:
        if os.getpid() != self._pid:
            raise ConfigurationError(
                f"run {self.name!r} was opened by the process that forked this one",
                hint="save in the process that opened it, or open another run after the fork",
            )
        if self._attempt is None or self._is_closed:
            what = "closed" if self._is_closed else "open for reading only"
            raise ConfigurationError(f"run {self.name!r} is {what}", hint="open it anew: Run(name, remote=…)")
        return self

    def _gauge(self) -> dict[str, Any]:
        fields = self.status().to_json()
        return {name: fields[name] for name in fields.keys() - {"run_name", "attempt", "state", "alive"}}

    def _write_end(self, state: FinishState, give_up_at: float | None) -> None:
        self._seal_logs(state, give_up_at)
        if self._attempt and not self._attempt.is_finished:
            self._attempt.finish(state)
            self._publisher.advise()

    def _seal_logs(self, state: FinishState, give_up_at: float | None) -> None:
        """Put the whole logs under the keys of this attempt, unless the run is another's by now."""
        try:
            head = self._log.find_head()
        except ArtifactSyncError:  # the finish record, which comes next, is more patient, and tells
            return
        if self._attempt and head and head.record.attempt == self._attempt.number:
            # A run that was stopped will be continued, and its logs too, from the segments.
            self._logs.seal(self._store, timeout=lambda: seconds_left(give_up_at), clean=state == "completed")

    def _retain(self) -> None:
        """Apply ``retention``, on the publication thread: nothing is waited for there."""
        if self._retention:
            prune(
                self._store,
                self._log,
                self._retention,
                attempt=self._attempt if isinstance(self._attempt, Attempt) else None,
                is_patient=False,
                orphans_age_s=None,
            )

    def _check_key(self, key: str) -> None:
        """Behind, before an artifact is put: as ``push`` asks in front, but the whole journal, in an outage too.

        Raises:
            AlreadyExistsError: a committed checkpoint has its bytes there.
        """
        if self._attempt and (self._publisher.is_sending(key) or key in self._attempt.read_catalogue(self._log).keys):
            raise self._not_writable(key)

    def _not_writable(self, key: str) -> AlreadyExistsError:
        return AlreadyExistsError(
            f"{key} belongs to a committed checkpoint", hint="push it under another name", url=self.remote
        )

    def _own_path(self, source: Path) -> str:
        try:
            return source.resolve().relative_to(self.local_dir.resolve()).as_posix()
        except ValueError:
            return source.resolve().name

    def _path_below(self, file: Path) -> str:
        try:
            return file.resolve().relative_to(self.local_dir.resolve()).as_posix()
        except ValueError as error:
            raise ConfigurationError(
                f"{file} does not lie below {self.local_dir}", hint="give {path below the run: local path} instead"
            ) from error


def _confirmed(confirm: Callable[[], None]) -> tuple[Sequence[LocalFile], Sequence[CheckpointFile]]:
    """``confirm`` in the place where other ranks would contribute, which nobody does here."""
    confirm()
    return (), ()


def _is_ours(file: Path) -> bool:
    return any(part.startswith((".artifactsync", ".git")) for part in file.parts) or ".artifactsync-" in file.name
