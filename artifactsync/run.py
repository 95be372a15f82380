"""``Run``: everything of one training run, by its name.

Owns: the wiring of store, queue, journal and publication for one run, and their end. Holds no algorithm.

Invariant: whatever is done through a ``Run`` stays below ``<remote>/<run_name>/``; what ``checkpoints()`` lists is
committed, and whole.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from artifactsync.errors import (
    AlreadyExistsError,
    ArtifactSyncError,
    ConfigurationError,
    DestinationError,
    MissingPackageError,
    ObjectNotFoundError,
    RunNotFoundError,
    WaitTimeoutError,
)
from artifactsync.journal.catalogue import Catalogue, Checkpoint, CheckpointFile
from artifactsync.journal.contents import Artifact, Contents, read_contents
from artifactsync.journal.copying import CopyReport, copy_run
from artifactsync.journal.heartbeat import Heart
from artifactsync.journal.local_checkpoints import LocalCheckpoint, resumable_locals, write_local_record
from artifactsync.journal.log import JournalLog, read_catalogue
from artifactsync.journal.opening import begin_attempt
from artifactsync.journal.orphans import MIN_AGE_S
from artifactsync.journal.pins import keeping_pin
from artifactsync.journal.publication import Label, LocalFile, PendingCheckpoint, Publisher, local_files
from artifactsync.journal.removal import RemovalReport, plan_removal, remove_run
from artifactsync.journal.restore import PullReport, Selection, pull_run
from artifactsync.journal.retention import RetentionPolicy
from artifactsync.journal.retire import PruneReport, prune
from artifactsync.journal.runs import RunSummary
from artifactsync.journal.runs import list_runs as _list_runs
from artifactsync.journal.status import RunStatus, read_status
from artifactsync.journal.tails import LogMirror, fetch_log
from artifactsync.journal.verification import VerifyReport, verify
from artifactsync.naming import RunLayout, resolve_run_name
from artifactsync.naming.layout import safe_local_path
from artifactsync.stores import open_store
from artifactsync.stores.prefix import PrefixStore
from artifactsync.stores.protocol import Store
from artifactsync.stores.retry import RetryPolicy, RetryStore
from artifactsync.transfer import at_exit
from artifactsync.transfer.pull import PullItem, pull_files
from artifactsync.transfer.queue import UploadQueue

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

    from artifactsync.journal.attempt import Attempt, FinishState
    from artifactsync.stores.filesystem import StoreFileSystem
    from artifactsync.transfer.patience import Patience
    from artifactsync.transfer.upload import Upload, UploadedFile

__all__ = [
    "Artifact",
    "Checkpoint",
    "LocalFile",
    "PendingCheckpoint",
    "PruneReport",
    "Pushed",
    "RetentionPolicy",
    "Run",
    "RunStatus",
    "RunSummary",
    "list_runs",
]

_END_S = 1.0
"""Seconds that the last record of a run has at least, when the time to wait is used up: it is one small request."""

_OUTAGE = RetryPolicy(max_attempts=1 << 30, deadline_s=6 * 3600.0, max_delay_s=30.0, unanswered_deadline_s=6 * 3600.0)
"""Patience behind a training loop: it outlasts the long regional outages of the big clouds."""


class Pushed:
    """Files on their way to the run's folder. Iterable: one ``Upload`` a file."""

    def __init__(self, uploads: Sequence[Upload]) -> None:
        self.uploads = tuple(uploads)
        """In path order."""

    def __iter__(self) -> Any:
        return iter(self.uploads)

    def __len__(self) -> int:
        return len(self.uploads)

    def result(self, timeout: float | None = None) -> tuple[UploadedFile, ...]:
        """Wait until all are durable. ``timeout`` in seconds is for all together.

        Raises:
            UploadError: the first that failed.
            WaitTimeoutError: not all are durable yet.
        """
        give_up_at = None if timeout is None else time.monotonic() + timeout
        return tuple(upload.result(_left(give_up_at)) for upload in self.uploads)

    def done(self) -> bool:
        """Whether all are durable, failed or cancelled."""
        return all(upload.done() for upload in self.uploads)


class Run:
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
        max_pending_files: When so many uploads wait, a new one fails at once.
        retention: Checkpoints that this policy does not keep are removed from the remote after each commit, behind
            the training loop; None keeps all.

    Raises:
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
    ) -> None:
        self.name = resolve_run_name(run_name)
        """The run name."""
        root = local_root or os.environ.get("ARTIFACTSYNC_LOCAL_ROOT") or "runs"
        self.local_dir = Path(root) / self.name
        """The run's local folder."""
        self._store = (
            remote
            if isinstance(remote, Store)
            else open_store(remote_of(remote), storage_options, bandwidth_limit_bytes_per_s=bandwidth_limit)
        )
        self._is_store_ours = self._store is not remote
        self.remote = self._store.url
        """The root under which the run lies, without secrets."""
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._is_closed = False
        self._local_step: int | None = None
        self._max_concurrency = max_concurrency
        self._patience = patience
        self._max_pending_files = max_pending_files
        self._retention = retention
        self._lazy_queue: UploadQueue | None = None
        self._log = JournalLog(self._store, self.name)
        self._attempt: Attempt | None = None
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
        attempt = begin_attempt(self._store, self._log, takeover=takeover, allow_unfenced=allow_unfenced)
        attempt.use(JournalLog(patient, self.name, policy=_OUTAGE))
        self._attempt = attempt
        self._logs = LogMirror(self._layout, attempt=attempt.number, queue=lambda: self._queue)
        self._publisher = Publisher(
            attempt,
            log=JournalLog(patient, self.name),
            queue=self._queue,
            store=patient,
            after_commit=self._retain if self._retention else None,
        )
        self._heart = Heart(
            self._store, self._log.layout, attempt=attempt.number, writer=attempt.writer, gauge=self._gauge
        )
        self._heart.start()
        _open_runs.add(self)

    # -- what is there ------------------------------------------------------------------------------------------

    @property
    def attempt(self) -> int:
        """Number of this process's attempt; of the newest one when read-only; 0 if nobody ever claimed the run."""
        return self._attempt.number if self._attempt else self.catalogue().attempt

    @property
    def fs(self) -> StoreFileSystem:
        """The run's remote folder as an fsspec file system: plain objects, journal included."""
        from artifactsync.stores.filesystem import StoreFileSystem  # noqa: PLC0415 - fsspec is slow to import

        return StoreFileSystem(PrefixStore(self._store, self.name))

    def catalogue(self) -> Catalogue:
        """Read the whole journal."""
        return read_catalogue(self._log)

    def contents(self) -> Contents:
        """List the run's remote folder."""
        return read_contents(self._store, self._layout, self.catalogue())

    def checkpoints(self) -> list[Checkpoint]:
        """The committed checkpoints, oldest first."""
        return list(self.catalogue().checkpoints)

    def latest(self) -> Checkpoint | None:
        """The checkpoint that a resume takes; None if nothing is committed. Four requests however long the run."""
        head = self._log.find_head()
        seq = head.record.totals.get("latest") if head else None
        slot = self._log.read(seq) if isinstance(seq, int) else None
        if slot is None:
            return self.catalogue().latest() if seq else None
        return Checkpoint.from_record(slot.record, run_name=self.name, url=self.remote)

    def best(self, metric: str, mode: Literal["min", "max"] = "min") -> Checkpoint | None:
        """The checkpoint with the smallest (``mode="max"``: greatest) ``metric``; None if none has it."""
        return self.catalogue().best(metric, mode)

    def artifacts(self) -> list[Artifact]:
        """Files of the run that belong to no checkpoint."""
        return list(self.contents().artifacts)

    def status(self) -> RunStatus:
        """How durable the run is now: of this process if it is the writer, else from journal and heartbeat.

        Raises:
            RunNotFoundError: there is no such run.
        """
        if self._attempt is None:
            status = read_status(self._store, self._log)
            if status.attempt == 0:
                self._require(self.contents())
            return status
        uploads = self._queue.status()
        latest = self._attempt.catalogue.latest()
        failures = self._publisher.failures()
        return RunStatus(
            run_name=self.name,
            attempt=self._attempt.number,
            state="running",
            alive=True,
            durable_step=latest.step if latest else None,
            local_step=self._local_step,
            pending_files=uploads.pending_files,
            pending_bytes=uploads.pending_bytes,
            bytes_per_s=uploads.bytes_per_s,
            eta_s=uploads.eta_s,
            last_error=uploads.last_error or (str(failures[0]) if failures else None),
        )

    # -- to the remote ------------------------------------------------------------------------------------------

    def save(
        self,
        state: Any,
        *,
        step: int,
        name: str | None = None,
        epoch: int | None = None,
        batch: int | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> PendingCheckpoint:
        """Take a snapshot of training state, and publish it behind the training loop. Needs torch.

        Args:
            state: Nested dicts, lists and tuples of tensors, numbers and strings, or of objects with ``state_dict()``.
                All of it may be changed as soon as this returns.
            step: Optimizer steps done; orders checkpoints.
            name: Its name; ``ep{epoch}-ba{batch}`` unless given.
            epoch: Epochs done, 0 unless given.
            batch: Batches done, ``step`` unless given.
            metrics: For ``best``.

        Raises:
            RunFencedError: a later attempt owns the run.
            ConfigurationError: the state holds something that could not be loaded again safely; names where.
            MissingPackageError: torch is not installed.
        """
        state_io = self._torch_backed()
        pending: PendingCheckpoint = state_io.save_state(
            self, state, step=step, name=name, epoch=epoch, batch=batch, metrics=metrics
        )
        return pending

    def resume(self, state: Any = None, *, map_location: Any = "cpu", strict: bool = True) -> Any:
        """Load the newest whole checkpoint of the run; None if it has none. Needs torch.

        Args:
            state: Objects of the same shape as were saved; those with ``load_state_dict`` and tensors are loaded in
                place.
            map_location: Where tensors go, as for ``torch.load``.
            strict: Whether missing or unexpected keys are errors.

        Returns:
            ``Resumed`` with ``.checkpoint``, ``.state`` (what was saved) and ``.step``.

        Raises:
            DamagedError: every checkpoint of the run is damaged.
        """
        return self._torch_backed().resume_state(self, state, map_location=map_location, strict=strict)

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
    ) -> PendingCheckpoint:
        """Publish files that are still to be written: ``prepare`` writes them on the publication thread.

        Args:
            prepare: Writes the files and describes them. Called once, after every earlier checkpoint is through.
            step: See ``save_files``; likewise the rest.
            name: ″
            epoch: ″
            batch: ″
            metrics: ″

        Raises:
            RunFencedError: a later attempt owns the run.
        """
        publisher = self._writable()._publisher  # noqa: SLF001 - its own
        epoch, batch = epoch or 0, step if batch is None else batch
        label = Label(
            name=name or f"ep{epoch}-ba{batch}", step=step, epoch=epoch, batch=batch, metrics=dict(metrics or {})
        )
        pending = publisher.submit(prepare, label)
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
        if self._attempt is None:
            return
        entries = tuple(
            CheckpointFile(path=f.path, key=self._layout.artifact(f.path), size=f.size_bytes, sha256=f.sha256 or "")
            for f in files
        )
        checkpoint = Checkpoint(
            name=name,
            step=step,
            epoch=epoch,
            batch=batch,
            attempt=self._attempt.number,
            metrics=metrics,
            files=entries,
            committed_at="",
            seq=0,
        )
        write_local_record(self.local_dir, checkpoint, claim_id=self._attempt.claim_id)

    def local_checkpoints(self) -> list[LocalCheckpoint]:
        """Checkpoints on this disk that are newer than every commit, of this very run; newest first, not verified."""
        if self._attempt is None:
            return []
        return resumable_locals(self.local_dir, self.catalogue(), run_name=self.name)

    def push(
        self, path: str | os.PathLike[str], remote_file_name: str | None = None, *, growing: bool = False
    ) -> Pushed:
        """Mirror a file or a folder under the run; returns at once. A newer push of a file replaces an older one.

        Args:
            path: A local file or folder.
            remote_file_name: Where below the run; else the same path as below ``local_dir``, else its own name.
            growing: The file is append-only, a log: only what is new since its last push is sent, and readers see it
                as one file all the same. The whole file goes to its plain key when the run ends. For files, and
                where the run is open for writing; else the file is sent as it is when it is read.

        Raises:
            ObjectNotFoundError: there is nothing at ``path``.
            AlreadyExistsError: a committed checkpoint has its bytes there.
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
        committed = self._attempt.catalogue.keys if self._attempt else self.catalogue().keys
        for key in keys:
            if key in committed or (self._attempt and self._publisher.uses(key)):
                what = "holds bytes of a committed checkpoint" if key in committed else "belongs to a checkpoint"
                raise AlreadyExistsError(f"{key} {what}", hint="push it under another name", url=self.remote)
        if growing and self._attempt and source.is_file():
            return Pushed([self._logs.push(base, source)])
        return Pushed([self._queue.submit(key, file, overwrite=True, growing=growing) for key, file in keys.items()])

    def finish(self, state: FinishState = "completed") -> None:
        """Write down how the run ended; no checkpoint can be saved afterwards. ``close`` does it if nobody did.

        Growing logs are put as whole files under their plain keys before, which may take as long as uploads take.

        Raises:
            RunFencedError: a later attempt owns the run.
        """
        with self._lock:
            run = self._writable()
            if run._attempt and not run._attempt.is_finished:  # noqa: SLF001 - its own
                run._seal_logs(state, None)  # noqa: SLF001
                run._attempt.finish(state)  # noqa: SLF001
                self._log.advise(run._attempt.catalogue.seq)  # noqa: SLF001

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
            attempt=self._attempt,
            dry_run=dry_run,
            orphans_age_s=orphans_age_s,
        )

    # -- from the remote ----------------------------------------------------------------------------------------

    def pull(
        self,
        destination: str | os.PathLike[str],
        *,
        checkpoint: str = "latest",
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        metric: str | None = None,
        mode: Literal["min", "max"] = "min",
        only: Literal["checkpoints", "logs", "all"] = "all",
        dry_run: bool = False,
        **observers: Any,
    ) -> PullReport:
        """Bring the run to a local folder, verified; what is there already with the right bytes is not fetched again.

        Args:
            destination: The folder; made if it is not there.
            checkpoint: ``latest``, ``best``, ``none``, or a name. A damaged latest one falls back to the one before.
            include: Shell patterns of paths to bring; none given means all.
            exclude: Shell patterns of paths to leave.
            metric: What decides ``best``.
            mode: Whether the smallest or the greatest value is best.
            only: ``checkpoints``, ``logs`` (everything else) or ``all``.
            dry_run: Say what would come.
            **observers: ``on_plan``, ``on_progress``, ``on_fallback`` of ``journal.restore.pull``.

        Raises:
            RunNotFoundError: there is no such run.
            CheckpointNotFoundError: it has no such checkpoint.
            DamagedError: bytes differ from what was committed, and there is nothing to fall back to.
            DestinationError, DiskFullError: the destination cannot be used; nothing half-written has a visible name.
        """
        catalogue = self.catalogue()
        contents = self._require(read_contents(self._store, self._layout, catalogue))
        return pull_run(
            self._store,
            self._layout,
            Path(destination),
            selection=Selection(
                checkpoint=checkpoint,
                metric=metric,
                mode=mode,
                only=only,
                include=tuple(include),
                exclude=tuple(exclude),
            ),
            catalogue=catalogue,
            contents=contents,
            log=self._log,
            dry_run=dry_run,
            **observers,
        )

    def verify(self, *, deep: bool = False) -> VerifyReport:
        """Check that every committed file is there with its size; ``deep`` reads and hashes every byte.

        Raises:
            RunNotFoundError: there is no such run.
        """
        catalogue = self.catalogue()
        if not catalogue.seq:
            self._require(self.contents())
        return verify(self._store, self.name, catalogue, deep=deep)

    def copy_to(
        self,
        remote: str | os.PathLike[str] | Store,
        *,
        storage_options: Mapping[str, Any] | None = None,
        **observers: Any,
    ) -> CopyReport:
        """Copy the whole run to another remote, verified; an interrupted copy shows nothing there, and is continued.

        Args:
            remote: Root URI of the other remote, or an opened store.
            storage_options: What fsspec's file system for it takes.
            **observers: ``on_plan`` and ``on_progress`` of ``journal.copying.copy_run``.

        Raises:
            RunNotFoundError: there is no such run.
            DestinationError: another run of that name is there.
            DamagedError: bytes differ from what was committed; nothing became visible there.
        """
        if isinstance(remote, Store):
            return copy_run(self._store, remote, self.name, **observers)
        target = open_store(remote, storage_options)
        try:
            return copy_run(self._store, target, self.name, **observers)
        finally:
            target.close()

    def remove(self, *, dry_run: bool = False, **observers: Any) -> RemovalReport:
        """Remove the run from the remote; what was interrupted is finished by removing again.

        Args:
            dry_run: Say what would go.
            **observers: ``on_plan`` and ``on_progress`` of ``journal.removal.remove_run``.

        Raises:
            RunNotFoundError: there is no such run.
            RunIsLiveError: it has a writer that is alive, perhaps this process; nothing was changed.
            PermissionDeniedError: these credentials may not delete; nothing was changed.
        """
        if dry_run:
            return plan_removal(self._store, self._log)
        return remove_run(self._store, self._log, **observers)

    def ensure_local(self, checkpoint: Checkpoint) -> dict[str, Path]:
        """Have every file of a checkpoint below ``local_dir``, verified by hash; fetches what is missing or differs.

        Returns:
            Path below the run → local file.

        Raises:
            DamagedError: bytes on the remote differ from what was committed.
        """
        items = [PullItem(key=f.key, path=f.path, size_bytes=f.size, sha256=f.sha256) for f in checkpoint.files]
        with keeping_pin(self._store, self._layout) as keeper:
            keeper.pin(checkpoint.seq)
            pull_files(self._store, items, self.local_dir)
        return {item.path: safe_local_path(self.local_dir, item.path) for item in items}

    def fetch_log(self, path: str, local: Path, *, size_bytes: int, sha256: str) -> bool:
        """Bring back a mirrored log whose first ``size_bytes`` have this hash; says whether there is such a one.

        Args:
            path: Below the run's folder.
            local: Where to; replaced. It may come longer than asked for.
            size_bytes: How many bytes are known.
            sha256: Their hash.
        """
        return fetch_log(self._store, self._layout, path, local, size_bytes=size_bytes, sha256=sha256)

    # -- the end ------------------------------------------------------------------------------------------------

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
                    pending.result(_left(give_up_at))
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
                    self._queue.wait(_left(give_up_at))
                raise failures[0]
        if self._lazy_queue:
            self._lazy_queue.wait(_left(give_up_at))

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
        _open_runs.discard(self)
        give_up_at = None if timeout is None else time.monotonic() + timeout
        try:
            self.wait(timeout)
            if self._attempt:
                self._within(give_up_at, lambda: self._write_end(state, give_up_at))
        finally:
            if self._attempt:
                self._publisher.close()
                self._patient.give_up()
                self._heart.stop()
            try:
                if self._lazy_queue:
                    self._lazy_queue.close(0)
            except ArtifactSyncError:  # told by wait above
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

    def __repr__(self) -> str:
        return f"<Run {self.name!r} at {self.remote}>"

    # -- within -------------------------------------------------------------------------------------------------

    @property
    def _layout(self) -> RunLayout:
        return self._log.layout

    @property
    def _queue(self) -> UploadQueue:
        with self._lock:
            if self._lazy_queue is None:
                self._lazy_queue = UploadQueue(
                    self._store,
                    max_concurrency=self._max_concurrency,
                    patience=self._patience,
                    max_pending_files=self._max_pending_files,
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
            self._log.advise(self._attempt.catalogue.seq)

    def _within(self, give_up_at: float | None, call: Callable[[], None]) -> None:
        """Call, but wait no longer than until ``give_up_at``: the journal is patient, and a store may hang.

        Raises:
            WaitTimeoutError: it goes on in the background.
        """
        if give_up_at is None:
            call()
            return
        ended: Future[None] = Future()

        def run() -> None:
            try:
                call()
            except BaseException as error:  # noqa: BLE001 - raised below
                ended.set_exception(error)
            else:
                ended.set_result(None)

        try:
            threading.Thread(target=run, name="artifactsync-end", daemon=True).start()
        except RuntimeError:  # the interpreter is ending and starts no more threads
            run()
        try:
            ended.result(max(_END_S, give_up_at - time.monotonic()))
        except FutureTimeoutError as error:
            if ended.done():
                raise
            raise WaitTimeoutError(
                f"how run {self.name!r} ended is not written down on the remote, which does not answer",
                hint="nothing is lost: the next attempt can begin all the same",
                url=self.remote,
            ) from error

    def _seal_logs(self, state: FinishState, give_up_at: float | None) -> None:
        """Put the whole logs under their plain keys, unless the run is another's by now."""
        try:
            head = self._log.find_head()
        except ArtifactSyncError:  # the finish record, which comes next, is more patient, and tells
            return
        if self._attempt and head and head.record.attempt == self._attempt.number:
            # A run that was stopped will be continued, and its logs too, from the segments.
            self._logs.seal(self._store, timeout=lambda: _left(give_up_at), clean=state == "completed")

    def _retain(self) -> None:
        """Apply ``retention``, on the publication thread: nothing is waited for there."""
        if self._retention:
            prune(
                self._store,
                self._log,
                self._retention,
                attempt=self._attempt,
                is_patient=False,
                orphans_age_s=None,
            )

    def _require(self, contents: Contents) -> Contents:
        if contents.is_empty:
            from difflib import get_close_matches  # noqa: PLC0415 - only for an error message

            near = get_close_matches(self.name, list(self._store.list_folders()), n=3)
            raise RunNotFoundError(
                f"there is no run {self.name!r} at {self.remote}",
                hint=f"did you mean {' or '.join(near)}?" if near else "see `artifactsync ls` for the runs there",
                url=f"{self.remote}/{self.name}",
            )
        return contents

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

    @staticmethod
    def _torch_backed() -> Any:
        # The half that needs torch plugs in from above by name, so that this room imports nothing above it.
        try:
            return importlib.import_module("artifactsync.checkpoint.state_io")
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] not in {"torch", "numpy"}:
                raise
            raise MissingPackageError(
                "Run.save and Run.resume need torch, which is not installed",
                hint="pip install 'artifactsync[torch]', or use save_files",
            ) from error


def list_runs(
    remote: str | os.PathLike[str] | None = None, storage_options: Mapping[str, Any] | None = None
) -> list[RunSummary]:
    """The runs under a remote, the one with the newest commit first.

    Args:
        remote: Root URI, else ``ARTIFACTSYNC_REMOTE``.
        storage_options: What fsspec's file system for the remote takes.
    """
    store = open_store(remote_of(remote), storage_options)
    try:
        return _list_runs(store)
    finally:
        store.close()


def remote_of(remote: str | os.PathLike[str] | None) -> str | os.PathLike[str]:
    """The given remote, else that of the environment.

    Raises:
        ConfigurationError: there is none.
    """
    found = remote or os.environ.get("ARTIFACTSYNC_REMOTE")
    if not found:
        raise ConfigurationError(
            "no remote is given", hint="pass remote='s3://bucket/prefix', or set ARTIFACTSYNC_REMOTE"
        )
    return found


def _left(give_up_at: float | None) -> float | None:
    return None if give_up_at is None else max(0.0, give_up_at - time.monotonic())


def _is_ours(file: Path) -> bool:
    return any(part.startswith((".artifactsync", ".git")) for part in file.parts) or ".artifactsync-" in file.name


_open_runs: weakref.WeakSet[Run] = weakref.WeakSet()


def _close_at_exit() -> None:
    """Drain runs that were never closed, for as long as the grace period allows."""
    for run in list(_open_runs):
        if run._pid == os.getpid():  # noqa: SLF001 - a forked child must leave its parent's runs alone
            try:
                run.close(at_exit.grace_s(), state="failed" if _died_of_an_exception() else "completed")
            except Exception as error:  # noqa: BLE001 - what a caller's prepare raised must not keep the others back
                at_exit.tell(f"not everything is durable: {error}")


def _died_of_an_exception() -> bool:
    return getattr(sys, "last_exc", None) is not None or getattr(sys, "last_value", None) is not None


at_exit.before_drain(_close_at_exit)
