"""``Run``: everything of one training run, by its name.

Owns: what users open, push, wait for and close. Does not own: reading (``view``), checkpoints (``saving``), what a run
that is open holds (``writing``).

Invariant: whatever is done through a ``Run`` stays below ``<remote>/<run_name>/``.
"""

from __future__ import annotations

import functools
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from artifactsync.errors import (
    ArtifactSyncError,
    DestinationError,
    ObjectNotFoundError,
)
from artifactsync.journal.orphans import MIN_AGE_S
from artifactsync.journal.retire import PruneReport, prune
from artifactsync.run.ending import end_within, open_runs, seconds_left
from artifactsync.run.launch import launch_of
from artifactsync.run.pushed import Pushed, paths_below
from artifactsync.run.saving import SavingRun
from artifactsync.run.writing import Writing, not_writable
from artifactsync.transfer import at_exit
from artifactsync.transfer.queue import UploadQueue

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping
    from types import TracebackType

    from typing_extensions import Self

    from artifactsync.journal.attempt import FinishState
    from artifactsync.journal.catalogue import Checkpoint
    from artifactsync.journal.retention import RetentionPolicy
    from artifactsync.journal.status import RunStatus
    from artifactsync.stores.protocol import Store
    from artifactsync.transfer.patience import Patience


class Run(SavingRun):
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
        self._lock = threading.RLock()
        self._max_concurrency = max_concurrency
        self._patience = patience
        self._max_pending_files = max_pending_files
        self.backpressure = backpressure
        self.split_frozen = split_frozen
        self._lazy_queue: UploadQueue | None = None
        self._is_read_only = read_only
        self.launch = None if read_only else launch_of(self.name, ranks)
        """The ranks that save together with this one; None if it saves alone."""
        if read_only:
            return
        self._make_local_dir()
        self._writing = Writing(
            self._log,
            queue=lambda: self._queue,
            launch=self.launch,
            takeover=takeover,
            allow_unfenced=allow_unfenced,
            retention=retention,
            part_timeout_s=part_timeout_s,
        )
        open_runs.add(self)
        try:
            self._writing.tell_ranks()
        except BaseException:
            self.close(0, state="failed")
            raise

    def _make_local_dir(self) -> None:
        try:
            self.local_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DestinationError(
                f"no folder can be made at {self.local_dir}: {error.strerror}",
                hint="choose a local_root in which folders can be made",
                url=str(self.local_dir),
            ) from error

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
        return self._writing.status() if self._writing else super().status()

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
        keys = self.plan_push(source, remote_file_name)
        if growing and self._writing and source.is_file():
            return Pushed([self._writing.logs.push(self._pushed_name(source, remote_file_name), source)])
        return Pushed(
            [
                self._queue.submit(
                    key, file, overwrite=True, growing=growing, check=functools.partial(self._check_key, key)
                )
                for key, file in keys.items()
            ]
        )

    def plan_push(self, path: str | os.PathLike[str], remote_file_name: str | None = None) -> Mapping[str, Path]:
        """The keys below the remote that ``push`` would write, and the local file of each; nothing is sent.

        Raises:
            ObjectNotFoundError, AlreadyExistsError, UnsafeKeyError: as ``push``.
        """
        source = Path(path)
        base = self._pushed_name(source, remote_file_name)
        if source.is_dir():
            files = {f"{base}/{path}": source / path for path in paths_below(source, remote=self.remote)}
        elif source.is_file():
            files = {base: source}
        else:
            raise ObjectNotFoundError(f"there is nothing at {source}", hint="check the path", url=str(source))
        keys = {self._layout.artifact(name): file for name, file in files.items()}
        known = self._attempt.known_catalogue if self._attempt else self.catalogue()
        for key in keys:
            if (known and key in known.keys) or (self._writing and self._writing.publisher.is_sending(key)):
                raise not_writable(key, url=self.remote)
        return keys

    def _pushed_name(self, source: Path, remote_file_name: str | None) -> str:
        return (remote_file_name or self._own_path(source)).rstrip("/")

    def finish(self, state: FinishState = "completed") -> None:
        """Write down how the run ended; no checkpoint can be saved afterwards. ``close`` does it if nobody did.

        Growing logs are put as whole files before, which may take as long as uploads take.

        Raises:
            RunFencedError: a later attempt owns the run.
        """
        with self._lock:
            writing = self._writable()
            if not writing.attempt.is_finished:
                writing.finish(state)

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
            attempt=self._writing.writer if self._writing else None,
            dry_run=dry_run,
            orphans_age_s=orphans_age_s,
        )

    def check_owned(self) -> None:
        """Do nothing while no other process is known to have taken the run over; asks nobody.

        A commit always finds out; between two, the heartbeat does, within some 20 seconds.

        Raises:
            RunFencedError: a later attempt owns the run.
        """
        self._writable().attempt.check()

    def make_way(self) -> None:
        """Give the newest checkpoint the line for itself: everything else that is on its way is given up, and fails.

        For a process that has not long to live. What was given up can be handed over again afterwards.
        """
        self._writable().make_way()

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
            if self._writing:
                self._writing.wait(give_up_at)
            if self._lazy_queue:
                self._lazy_queue.wait(seconds_left(give_up_at))

    def close(self, timeout: float | None = None, *, state: FinishState = "completed") -> None:
        """Wait until everything is durable, write down how the run ended, and release what is held. Idempotent.

        Args:
            timeout: Seconds to wait at most; None waits as long as it takes.
            state: What the finish record says if ``finish`` was not called before.

        Raises:
            WaitTimeoutError: as ``wait``; everything is released nevertheless.
            ArtifactSyncError: what failed for good since the last ``wait``; likewise.
        """
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
        open_runs.discard(self)
        give_up_at = None if timeout is None else time.monotonic() + timeout
        try:
            self.wait(timeout)
            if writing := self._writing:
                end_within(
                    give_up_at,
                    lambda: writing.finish(state, give_up_at),
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
        if self._writing:
            self._writing.release()
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
                    keeps_room=not self._is_read_only,
                )
            return self._lazy_queue

    def _check_key(self, key: str) -> None:
        if self._writing:
            self._writing.check_key(key)

    def _own_path(self, source: Path) -> str:
        try:
            return source.resolve().relative_to(self.local_dir.resolve()).as_posix()
        except ValueError:
            return source.resolve().name
