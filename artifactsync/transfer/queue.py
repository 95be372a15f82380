"""Uploads behind the caller's back: a bounded queue and the threads that work it off.

Owns: ``UploadQueue``: submitting, the worker threads, trying again, waiting, closing. Does not own: which upload is
next (``schedule``), when to give up (``patience``), one try (``sending``), the drain at exit (``at_exit``).

Invariants: ``submit`` never blocks on the network nor reads the file; every upload settles; a failure is raised once
by ``wait``, ``close`` or the upload itself, and never kills or hangs the training.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from concurrent import futures
from typing import TYPE_CHECKING

from artifactsync.errors import (
    AlreadyExistsError,
    ArtifactSyncError,
    ConfigurationError,
    RemoteUnreachableError,
    UploadError,
    WaitTimeoutError,
)
from artifactsync.stores import runtime
from artifactsync.transfer import at_exit
from artifactsync.transfer.clock import wait_on
from artifactsync.transfer.hashing import FileBody, open_file
from artifactsync.transfer.meter import Meter, Throttle
from artifactsync.transfer.patience import Patience
from artifactsync.transfer.schedule import Schedule
from artifactsync.transfer.sending import send_file
from artifactsync.transfer.starvation import RunDelay, can_be_raised
from artifactsync.transfer.upload import Upload, UploadedFile, UploadStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from typing_extensions import Self

    from artifactsync.stores.protocol import Store
    from artifactsync.transfer.clock import Clock

__all__ = ["Upload", "UploadQueue", "UploadStatus", "UploadedFile"]

_log = logging.getLogger("artifactsync.transfer")

MAX_HELD_FDS = 256
"""Most descriptors held for waiting uploads; never more than a quarter of what the process may open."""

_IDLE_S = 60.0  # an idle thread ends after this long
_TICK_S = 1.0  # the keeper looks this often for starvation
_FIRST_CONTACT_PAUSE_S = 1.0  # longest pause while someone waits for a remote that was never heard of
_STALLED_S = 20.0  # no byte moved for this long: do not be polite
_STARVED_SHARE = 0.2  # a polite thread waited for a core for this share of the time: do not be polite
_IMPOLITE_S = 60.0  # for this long, then try again
_MAX_TOLD = 1000  # failures kept to be raised; more are counted


class UploadQueue:
    """Uploads files in the background, each key in order, different keys at the same time.

    The stores' own threads, which send the bytes, are ``SCHED_IDLE`` (Linux) while there are cores to spare and nobody
    waits for the uploads. On a saturated machine they are ordinary threads (``starvation`` says why). The worker
    threads always are: they take the interpreter lock, and an idle thread that gets no core while it holds that lock
    stops the training (docs/benchmarks.md). A process without ``CAP_SYS_NICE`` cannot raise its threads again, so
    there nothing is lowered in the first place.

    Between ``submit`` and
    the upload a file may be deleted or replaced by a rename: its descriptor is held while a budget of descriptors
    lasts (the smaller of 256 and a quarter of ``RLIMIT_NOFILE``); beyond that the path is opened later. A file that
    is rewritten in place is sent as it is when it is read, always whole.

    Args:
        store: Where to, or what opens it on first use, on a worker thread; not closed by the queue.
        max_concurrency: Files uploaded at a time.
        bandwidth_limit_bytes_per_s: Upper limit of all uploads together; None is none.
        max_pending_files: When so many uploads wait, a new one fails at once instead of blocking the training.
        patience: How long failing uploads are tried again.
        polite: Whether the stores' threads give way to training.
        clock: The ``time`` module, or a ``FakeClock``.

    Raises:
        ConfigurationError: a limit that makes no sense.
    """

    def __init__(
        self,
        store: Store | Callable[[], Store],
        *,
        max_concurrency: int = 8,
        bandwidth_limit_bytes_per_s: float | None = None,
        max_pending_files: int = 10_000,
        patience: Patience | None = None,
        polite: bool = True,
        clock: Clock = time,
    ) -> None:
        if max_concurrency < 1 or max_pending_files < 1:
            raise ConfigurationError("max_concurrency and max_pending_files must be at least 1")
        if bandwidth_limit_bytes_per_s is not None and bandwidth_limit_bytes_per_s <= 0:
            raise ConfigurationError(
                f"the bandwidth limit must be above 0 bytes per second, not {bandwidth_limit_bytes_per_s}",
                hint="leave it out for no limit",
            )
        self._open = store if callable(store) else None
        self._opened = None if callable(store) else store
        self._patience = patience or Patience()
        self._clock = clock
        self._max_concurrency = max_concurrency
        self._max_pending_files = max_pending_files
        self._polite = polite and can_be_raised()
        self._meter = Meter(clock)
        self._throttle = Throttle(bandwidth_limit_bytes_per_s, clock) if bandwidth_limit_bytes_per_s else None
        self._fds_left = _fd_budget()
        self._pid = os.getpid()
        self._changed = threading.Condition()
        # All below is guarded by self._changed.
        self._schedule = Schedule(max_concurrency)
        self._pending_files = 0
        self._pending_bytes = 0
        self._uploaded_files = 0
        self._uploaded_bytes = 0
        self._failed_files = 0
        self._untold: dict[str, Upload] = {}  # failed and not yet raised, by key
        self._troubles: dict[str, ArtifactSyncError] = {}  # by key, the newest last
        self._workers: set[threading.Thread] = set()
        self._keeper: threading.Thread | None = None
        self._watchers = 0
        self._run_delay = RunDelay()
        self._last_tick_s = clock.monotonic()
        self._polite_again_s = self._last_tick_s
        self._was_answered = False
        self._was_warned = False
        self._is_closed = False
        self._is_aborted = False

    def submit(
        self, key: str, path: str | os.PathLike[str], *, overwrite: bool = True, growing: bool = False
    ) -> Upload:
        """Put a file in line and return at once; nothing of it is read here.

        Args:
            key: Key below the store's root.
            path: A local file.
            overwrite: False fails with ``AlreadyExistsError`` if the key has other bytes, atomically where the store
                can. An overwriting upload replaces those of its key that still wait.
            growing: The file is append-only; its length at the time it is read is what is sent.

        Raises:
            ObjectNotFoundError: there is no file at ``path``.
            ConfigurationError: the queue is closed, or belongs to the process that forked this one.
        """
        self._check_process()
        fd = open_file(path)
        try:
            upload = Upload(
                key,
                os.path.abspath(path),  # noqa: PTH100 - resolve() would ask the file system
                size_bytes=os.fstat(fd).st_size,
                overwrite=overwrite,
                growing=growing,
                cancel=self._cancel,
                waiting=self.watching,
            )
            with self._changed:
                if self._is_closed:
                    raise ConfigurationError(f"cannot upload {key}: the uploader is closed")
                if self._pending_files >= self._max_pending_files:
                    self._refuse(upload)
                    return upload
                if self._fds_left > 0:
                    self._fds_left -= 1
                    upload.fd, fd = fd, -1
                self._enqueue(upload)
        finally:
            if fd >= 0:
                os.close(fd)
        return upload

    def status(self) -> UploadStatus:
        """The queue at this moment; cheap, and never blocks on the network."""
        rate = self._meter.bytes_per_s()
        with self._changed:
            running = self._schedule.running() if self._pending_files else []
            moved = sum(min(upload.moved_bytes, upload.size_bytes) for upload in running)
            pending_bytes = max(0, self._pending_bytes - moved)
            trouble = next(reversed(self._troubles.values()), None)
            eta_s = 0.0 if not self._pending_files else pending_bytes / rate if rate else None
            return UploadStatus(
                pending_files=self._pending_files,
                pending_bytes=pending_bytes,
                uploaded_files=self._uploaded_files,
                uploaded_bytes=self._uploaded_bytes,
                bytes_per_s=rate,
                eta_s=eta_s,
                last_error=None if trouble is None else str(trouble),
                failed_files=self._failed_files,
            )

    def wait(self, timeout: float | None = None) -> None:
        """Wait until everything submitted before this call is settled.

        Args:
            timeout: Seconds to wait at most; None waits as long as it takes.

        Raises:
            UploadError: something failed for good that was not raised before, by ``wait`` or by the upload itself.
                One failure is raised as it is; several as one that names them.
            AlreadyExistsError: the one failure is of a create-only upload.
            WaitTimeoutError: not everything is settled in time; says how many files and bytes remain. All goes on.
        """
        self._check_process()
        with self._changed:
            waiting_for = [upload.future for upload in self._schedule.pending()]
        with self.watching():
            _, unsettled = futures.wait(waiting_for, timeout)
        if unsettled:
            raise self._late(timeout)
        self._raise_failures()

    def close(self, timeout: float | None = None, *, abort: bool = True) -> None:
        """Accept nothing more, wait for all, and end the threads. Idempotent.

        Args:
            timeout: Seconds to wait at most.
            abort: Whether what is not durable by then is given up, and fails; else it goes on.

        Raises:
            UploadError: as ``wait``.
            AlreadyExistsError: as ``wait``.
            WaitTimeoutError: not everything was durable in time.
        """
        if os.getpid() != self._pid:
            return
        with self._changed:
            self._is_closed = True
        try:
            self.wait(timeout)
        except (WaitTimeoutError, KeyboardInterrupt):
            if not abort:
                raise
            self.abort()
            at_exit.forget(self)
            raise
        except ArtifactSyncError:
            at_exit.forget(self)
            raise
        at_exit.forget(self)

    def abort(self) -> None:
        """Give up everything that is not durable, at once; running uploads stop at their next chunk."""
        with self._changed:
            self._is_closed = self._is_aborted = True
            for upload in self._schedule.pending():
                if self._schedule.remove(upload):
                    self._settle(upload, UploadError(f"the uploader was closed before {upload.key} was durable"))
            self._changed.notify_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, exc_type: object, exc: BaseException | None, traceback: object) -> None:
        """Close; an exception from within the block is not masked, but all is still waited for."""
        if exc is None:
            self.close()
            return
        try:
            self.close(at_exit.grace_s())
        except ArtifactSyncError as error:
            _log.error("%s", error)  # the exception under way is the one to see

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """While inside, someone waits for the uploads: the threads claim their full share of the processor."""
        with self._changed:
            self._watchers += 1
            self._apply_priority()
            if not self._was_answered:
                self._schedule.hurry()  # a remote that was never heard of: find out now, not after the pause
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._watchers -= 1
                self._apply_priority()

    def _store(self) -> Store:
        if self._opened is None:
            assert self._open is not None
            self._opened = self._open()  # gives the same store to all who ask
        return self._opened

    @property
    def _url(self) -> str:
        return "the remote" if self._opened is None else self._opened.url.rstrip("/")

    # Submitting. The lock is held.

    def _enqueue(self, upload: Upload) -> None:
        for old in self._schedule.add(upload):
            upload.replaced += [old, *old.replaced]
            old.replaced.clear()
            self._leave(old)
        self._pending_files += 1
        self._pending_bytes += upload.size_bytes
        at_exit.remember(self)
        self._ensure_threads()
        self._changed.notify_all()

    def _refuse(self, upload: Upload) -> None:
        error = UploadError(
            f"upload of {upload.key} refused: {self._pending_files} uploads are waiting already"
            + (f"; the last error was: {next(reversed(self._troubles.values()))}" if self._troubles else ""),
            hint="see status() for what holds them up; upload less often, or raise max_pending_files",
            url=f"{self._url}/{upload.key}",
        )
        upload.settle(error)
        self._note_failure(upload, error)

    def _cancel(self, upload: Upload) -> bool:
        if os.getpid() != self._pid:
            return False
        with self._changed:
            if not self._schedule.remove(upload):
                return False
            self._troubles.pop(upload.key, None)
            self._leave(upload)
            upload.reported = True
            upload.settle(UploadError(f"the upload of {upload.key} was cancelled"))
            self._changed.notify_all()
            return True

    # Settling. The lock is held.

    def _leave(self, upload: Upload) -> None:
        """The upload is not pending any more."""
        self._pending_files -= 1
        self._pending_bytes -= upload.size_bytes
        self._fds_left += upload.release_fd()

    def _settle(self, upload: Upload, outcome: UploadedFile | ArtifactSyncError) -> None:
        self._leave(upload)
        if isinstance(outcome, UploadedFile):
            self._uploaded_files += 1
            self._uploaded_bytes += outcome.size_bytes
            self._troubles.pop(upload.key, None)
            if upload.overwrite:
                self._untold.pop(upload.key, None)  # a newer upload makes an older failure good
        else:
            self._note_failure(upload, outcome, is_told=self._is_aborted)
        upload.settle(outcome)
        self._changed.notify_all()

    def _note_failure(self, upload: Upload, error: ArtifactSyncError, *, is_told: bool = False) -> None:
        self._failed_files += 1
        self._troubles.pop(upload.key, None)
        if len(self._troubles) < _MAX_TOLD:
            self._troubles[upload.key] = error
        if len(self._untold) < _MAX_TOLD:
            self._untold[upload.key] = upload
        if not is_told:  # whoever aborts says so once, not for each file
            _log.error("%s", error)

    def _raise_failures(self) -> None:
        with self._changed:
            failed = [upload for upload in self._untold.values() if not upload.reported]
            self._untold.clear()
        for upload in failed:
            upload.reported = True
        errors = [upload.future.exception() for upload in failed]
        if not errors:
            return
        first = errors[0]
        assert isinstance(first, ArtifactSyncError)
        if len(errors) == 1:
            raise first
        told = "; ".join(str(error) for error in errors[:5])
        more = f"; and {len(errors) - 5} more" if len(errors) > 5 else ""  # noqa: PLR2004 - as many as one reads
        raise UploadError(f"{len(errors)} uploads failed: {told}{more}", hint=first.hint, url=self._url) from first

    def _late(self, timeout: float | None) -> WaitTimeoutError:
        status = self.status()
        why = f"; the last error was: {status.last_error}" if status.last_error else ""
        return WaitTimeoutError(
            f"after {timeout or 0:.3g} s these are not durable: {self.describe_pending()}{why}",
            hint="wait longer; the local files are still there",
            url=self._url,
        )

    # Threads. The lock is held in those that say so.

    def _ensure_threads(self) -> bool:
        """Start the keeper, and as many workers as there is work for; False if no thread works. The lock is held."""
        try:
            if self._keeper is None:
                self._keeper = threading.Thread(target=self._keep, name="artifactsync-keeper", daemon=True)
                self._keeper.start()
            wanted = min(self._max_concurrency, len(self._schedule.running()) + self._schedule.ready)
            while len(self._workers) < wanted:
                worker = threading.Thread(target=self._work, name="artifactsync-upload", daemon=True)
                self._workers.add(worker)
                worker.start()
        except RuntimeError:  # the interpreter is ending and starts no more threads: see drain
            self._workers = {worker for worker in self._workers if worker.ident is not None}
            if self._keeper is not None and self._keeper.ident is None:
                self._keeper = None
        return self._keeper is not None and bool(self._workers)

    def _keep(self) -> None:
        """Wake what is due, start workers, and look out for starvation; a thread of ordinary priority."""
        with self._changed:
            while self._pending_files:
                now = self._clock.monotonic()
                due_s = self._schedule.wake(now)
                if self._schedule.ready:
                    self._ensure_threads()
                    self._changed.notify_all()
                self._check_starvation(now)
                timeout_s = _TICK_S if due_s is None else max(0.0, due_s - now)
                if self._schedule.running():
                    timeout_s = min(timeout_s, _TICK_S)
                wait_on(self._changed, timeout_s, self._clock)
            self._keeper = None

    def _check_starvation(self, now: float) -> None:
        """Give politeness up for a while on a machine that has no core to spare. The lock is held."""
        if not self._polite:
            return
        if not self._schedule.running():
            self._meter.last_moved_s = now
        waited_s = self._run_delay.longest_s()
        share = waited_s / max(now - self._last_tick_s, 0.1)
        self._last_tick_s = now
        is_stalled = now - self._meter.last_moved_s > _STALLED_S
        if self._polite_again_s <= now and (share > _STARVED_SHARE or is_stalled):
            self._polite_again_s = now + _IMPOLITE_S
        self._apply_priority()  # also for threads that came into being with their first request

    def _apply_priority(self) -> None:
        """Let the stores' own threads give way to training, or not. The lock is held."""
        if self._polite:
            is_starved = self._clock.monotonic() < self._polite_again_s
            runtime.set_runtime_priority(polite=not self._watchers and not is_starved)

    def _work(self) -> None:
        """A worker thread: run uploads until there has been none for a while."""
        try:
            while True:
                with self._changed:
                    upload = self._schedule.take()
                    if upload is None:
                        if not self._changed.wait(_IDLE_S) and not self._schedule.ready:
                            return
                        continue
                self._run(upload)
        finally:
            with self._changed:
                self._workers.discard(threading.current_thread())
                self._changed.notify_all()

    def drain(self, timeout_s: float | None, *, tell: Callable[[str], None], tell_after_s: float) -> None:
        """Close at the end of the interpreter, saying what is waited for if it takes long. For ``at_exit``.

        Raises:
            NotDurableError: as ``close``.
        """
        with self._changed:
            self._is_closed = True
            has_threads = not self._pending_files or self._ensure_threads()
        if not has_threads:
            self._drain_here(timeout_s)
        if timeout_s is None or timeout_s > tell_after_s:
            try:
                self.close(tell_after_s, abort=False)
            except WaitTimeoutError:
                tell(f"waiting for {self.describe_pending()} (Ctrl-C gives up)")
                timeout_s = None if timeout_s is None else timeout_s - tell_after_s
            else:
                return
        try:
            self.close(timeout_s, abort=False)
        except WaitTimeoutError:
            self.abort()
            raise

    def describe_pending(self) -> str:
        """What is not durable, in words."""
        status = self.status()
        files = "1 file" if status.pending_files == 1 else f"{status.pending_files} files"
        return f"{files} ({status.pending_bytes} bytes) on the way to {self._url}"

    def _drain_here(self, timeout_s: float | None) -> None:
        """Work the queue off on the calling thread, for an interpreter that starts no more threads."""
        end_s = None if timeout_s is None else self._clock.monotonic() + timeout_s
        while self._pending_files and (end_s is None or self._clock.monotonic() < end_s):
            with self._changed:
                now = self._clock.monotonic()
                due_s = self._schedule.wake(now)
                upload = self._schedule.take()
                if upload is None:
                    wait_on(self._changed, min(_TICK_S, max(0.0, (due_s or now + _TICK_S) - now)), self._clock)
                    continue
            self._run(upload)

    # One upload.

    def _run(self, upload: Upload) -> None:
        now = self._clock.monotonic()
        upload.first_try_s = now if upload.first_try_s is None else upload.first_try_s
        upload.attempts += 1
        upload.moved_bytes = 0

        def on_read(count_bytes: int) -> None:
            self._check_abort(upload)
            upload.moved_bytes += count_bytes
            self._meter.add(count_bytes)
            if self._throttle is not None:
                self._throttle.take(count_bytes, lambda: self._check_abort(upload))

        try:
            self._check_abort(upload)
            source = upload.path if upload.fd is None else upload.fd
            with FileBody(source, growing=upload.growing, on_read=on_read) as upload.body:
                outcome = send_file(self._store(), upload.key, upload.body, overwrite=upload.overwrite)
        except ArtifactSyncError as error:
            self._failed(upload, error)
        except BaseException as error:  # noqa: BLE001 - a thread that dies silently would hang wait()
            self._failed(upload, self._given_up(upload, error))
        else:
            with self._changed:
                self._was_answered = True
                self._was_warned = False
                self._schedule.finish(upload)
                self._settle(upload, outcome)

    def _failed(self, upload: Upload, error: ArtifactSyncError) -> None:
        """Try again later, or give up."""
        now = self._clock.monotonic()
        with self._changed:
            self._was_answered = self._was_answered or not isinstance(error, RemoteUnreachableError)
            newer = self._schedule.replacement(upload) if upload.overwrite else None
            if newer is not None:
                newer.replaced += [upload, *upload.replaced]
                upload.replaced.clear()
                self._leave(upload)
                newer.first_try_s = upload.first_try_s
                newer.attempts = upload.attempts
                upload = newer
            gives_up = (
                self._is_aborted
                or isinstance(error, UploadError)
                or self._patience.gives_up(
                    error,
                    attempts=upload.attempts,
                    since_first_try_s=now - (now if upload.first_try_s is None else upload.first_try_s),
                    never_answered=not self._was_answered,
                    is_watched=self._watchers > 0,
                )
            )
            if gives_up:
                self._schedule.finish(upload)
                self._settle(upload, self._given_up(upload, error))
                return
            self._troubles.pop(upload.key, None)
            self._troubles[upload.key] = error
            if not self._was_warned:
                self._was_warned = True
                _log.warning("upload of %s failed and will be tried again: %s", upload.key, error)
            pause_s = self._patience.pause_s(error, upload.attempts)
            if self._watchers and not self._was_answered:
                pause_s = min(pause_s, _FIRST_CONTACT_PAUSE_S)  # or the pause would outlast the deadline
            self._schedule.postpone(upload, now + pause_s)
            self._changed.notify_all()

    def _given_up(self, upload: Upload, error: BaseException) -> ArtifactSyncError:
        if isinstance(error, (UploadError, AlreadyExistsError)):
            return error
        tries = "1 attempt" if upload.attempts == 1 else f"{upload.attempts} attempts"
        failure = UploadError(
            f"upload of {upload.key} failed after {tries}: {error or type(error).__name__}",
            hint=getattr(error, "hint", "") or "the local file is untouched; upload it again",
            url=f"{self._url}/{upload.key}",
        )
        failure.__cause__ = error
        return failure

    def _check_abort(self, upload: Upload) -> None:
        if self._is_aborted:
            raise UploadError(f"the uploader was closed before {upload.key} was durable")

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise ConfigurationError(
                "this uploader belongs to the process that forked this one",
                hint="make one in each process that uploads",
            )

    def forget_in_child(self) -> None:
        """In a forked child: release what the parent holds, without touching its locks."""
        for upload in self._schedule.pending():
            upload.release_fd()
            if upload.body is not None:
                upload.body.close()


def _fd_budget() -> int:
    try:
        import resource  # noqa: PLC0415 - not on Windows

        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    except (ImportError, OSError):
        return MAX_HELD_FDS // 4
    return MAX_HELD_FDS if soft == resource.RLIM_INFINITY else min(MAX_HELD_FDS, soft // 4)
