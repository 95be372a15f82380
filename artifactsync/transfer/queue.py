"""Uploads behind the caller's back: a bounded queue and the threads that work it off.

Owns: ``UploadQueue``: submitting, waiting, closing, and the wiring of what does the rest. Does not own: what is
pending (``backlog``), which upload is next (``schedule``), a try and what follows (``delivery``), threads
(``workers``), when to give up (``patience``), when to give way (``politeness``), the drain at exit (``at_exit``).

Invariants: ``submit`` never blocks on the network nor reads the file; every upload settles; a failure is raised once
by ``wait``, ``close`` or the upload itself, and never kills or hangs the training.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from concurrent import futures
from typing import TYPE_CHECKING

from artifactsync.errors import ArtifactSyncError, ConfigurationError, WaitTimeoutError
from artifactsync.transfer import at_exit
from artifactsync.transfer.backlog import Backlog
from artifactsync.transfer.courier import the_courier
from artifactsync.transfer.delivery import Delivery
from artifactsync.transfer.failures import raise_failures
from artifactsync.transfer.hashing import open_file
from artifactsync.transfer.meter import Meter, Throttle
from artifactsync.transfer.patience import Patience
from artifactsync.transfer.politeness import Politeness
from artifactsync.transfer.remote import Remote
from artifactsync.transfer.upload import Upload, UploadedFile, UploadStatus
from artifactsync.transfer.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

    from typing_extensions import Self

    from artifactsync.stores.protocol import Store
    from artifactsync.transfer.being_written import FileBeingWritten
    from artifactsync.transfer.clock import Clock
    from artifactsync.transfer.tail import Tail

__all__ = ["Upload", "UploadQueue", "UploadStatus", "UploadedFile"]

_log = logging.getLogger("artifactsync.transfer")

MAX_HELD_FDS = 256
"""Most descriptors held for waiting uploads; never more than a quarter of what the process may open."""

_SLICE_S = 0.5  # of a wait without an end


class UploadQueue:
    """Uploads files in the background, each key in order, different keys at the same time.

    Between ``submit`` and the upload a file may be deleted or replaced by a rename: its descriptor is held while a
    budget of descriptors lasts (the smaller of 256 and a quarter of ``RLIMIT_NOFILE``); beyond that the path is opened
    later. A file that is rewritten in place is sent as it is when it is read, always whole.

    Args:
        store: Where to, or what opens it on first use, on a worker thread; not closed by the queue.
        max_concurrency: Files uploaded at a time; if more than one, small ones (64 KiB) may be up to 64 at a time.
        bandwidth_limit_bytes_per_s: Upper limit of all uploads together; None is none.
        max_pending_files: When so many uploads wait that are not urgent, a new one of them fails at once instead of
            blocking the training.
        keeps_room: Whether a quarter of the uploads at a time, at least one where there are several, are kept for
            urgent ones, so that none waits behind large files.
        patience: How long failing uploads are tried again.
        polite: Whether uploads give way to training (``politeness``), and large files are sent by a process of
            their own (``courier``).
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
        keeps_room: bool = False,
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
        self._pid = os.getpid()
        self._remote = Remote(store)
        self._meter = Meter(clock)
        courier = the_courier() if polite else None
        self._politeness = Politeness(self._meter, clock, courier, is_wanted=polite)
        self._backlog = Backlog(
            max_running=max_concurrency,
            max_pending_files=max_pending_files,
            held_fds=_held_fds(),
            keeps_room=keeps_room,
        )
        self._delivery = Delivery(
            self._backlog,
            self._remote,
            patience=patience or Patience(),
            meter=self._meter,
            throttle=Throttle(bandwidth_limit_bytes_per_s, clock) if bandwidth_limit_bytes_per_s else None,
            politeness=self._politeness,
            courier=courier,
            clock=clock,
        )
        self._workers = Workers(
            self._backlog,
            self._delivery.run,
            self._delivery.run_ahead,
            lambda: self._delivery.can_run_ahead,
            lambda is_running: self._politeness.look(is_running=is_running),
            max_threads=max_concurrency,
            clock=clock,
        )

    def submit(
        self,
        key: str,
        path: str | os.PathLike[str],
        *,
        overwrite: bool = True,
        growing: bool = False,
        tail: Tail | None = None,
        is_urgent: bool = False,
        writing: FileBeingWritten | None = None,
        check: Callable[[], object] = lambda: None,
    ) -> Upload:
        """Put a file in line and return at once; nothing of it is read here.

        Args:
            key: Key below the store's root.
            path: A local file.
            overwrite: False fails with ``AlreadyExistsError`` if the key has other bytes, atomically where the store
                can. An overwriting upload replaces those of its key that still wait.
            growing: The file is append-only; its length at the time it is read is what is sent.
            is_urgent: It belongs to a checkpoint: it goes before other files, and there is always room for it.
            tail: Sends only what is new of such a file, to keys of its own; ``key`` keeps its order.
            writing: The file is still being written, and need not be at ``path`` yet: it is sent as far as it is, and
                the object exists only once the file is whole.
            check: Asked behind, before each try; what it raises is treated as an error of the store.

        Raises:
            ObjectNotFoundError: there is no file at ``path``.
            ConfigurationError: the queue is closed, or belongs to the process that forked this one.
        """
        self._check_process()
        fd = open_file(path) if writing is None else None
        is_held = False
        try:
            upload = Upload(
                key,
                os.path.abspath(path),  # noqa: PTH100 - resolve() would ask the file system
                size_bytes=writing.size_bytes if writing else _size_to_send(fd, tail),
                overwrite=overwrite,
                growing=growing,
                tail=tail,
                is_urgent=is_urgent,
                writing=writing,
                check=check,
                cancel=self._cancel,
                waiting=self.watching,
            )
            with self._backlog.held():
                is_held = self._backlog.add(upload, fd, url=self._remote.url)
                if self._backlog.pending_files:
                    at_exit.remember(self)
                    self._workers.ensure()
                    self._backlog.changed.notify()  # one more is ready: one worker is enough
        finally:
            if fd is not None and not is_held:
                os.close(fd)
        return upload

    def status(self) -> UploadStatus:
        """The queue at this moment; cheap, and never blocks on the network."""
        rate = self._meter.bytes_per_s()
        backlog = self._backlog
        with backlog.changed:
            running = backlog.schedule.running() if backlog.pending_files else []
            moved = sum(min(upload.moved_bytes, upload.size_bytes) for upload in running)
            pending_bytes = max(0, backlog.pending_bytes - moved)
            eta_s = 0.0 if not backlog.pending_files else pending_bytes / rate if rate else None
            return UploadStatus(
                pending_files=backlog.pending_files,
                pending_bytes=pending_bytes,
                uploaded_files=backlog.uploaded_files,
                uploaded_bytes=backlog.uploaded_bytes,
                bytes_per_s=rate,
                eta_s=eta_s,
                last_error=backlog.failures.last_error,
                failed_files=backlog.failures.failed_files,
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
        with self._backlog.changed:
            waiting_for = [upload.future for upload in self._backlog.schedule.pending()]
        with self.watching():
            is_settled = _wait_for(waiting_for, timeout)
        if not is_settled:
            raise self._late(timeout)
        with self._backlog.changed:
            failed, more = self._backlog.failures.take()
        raise_failures(failed, more, url=self._remote.url)

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
        self._accept_no_more()
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

    def give_up_all_but(self, kept: Collection[Upload]) -> None:
        """Give up every other upload; those that run stop at their next chunk. ``wait`` does not raise them.

        More can be submitted afterwards: it is how one upload gets the line for itself.
        """
        with self._backlog.held():
            for upload in self._backlog.schedule.pending():
                if upload not in kept and not self._backlog.cancel(upload):
                    upload.is_given_up = upload.reported = True
            self._backlog.schedule.hurry()
            self._backlog.tell_all()

    def abort(self) -> None:
        """Give up everything that is not durable, at once; running uploads stop at their next chunk."""
        with self._backlog.held():
            self._backlog.abort()

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
        self._politeness.watch(1)
        try:
            with self._backlog.changed:
                if not self._delivery.was_answered:
                    # A remote that was never heard of: find out now, not after the pause.
                    self._backlog.schedule.hurry()
                    self._backlog.tell_all()
            yield
        finally:
            self._politeness.watch(-1)

    def describe_pending(self) -> str:
        """What is not durable, in words."""
        status = self.status()
        files = "1 file" if status.pending_files == 1 else f"{status.pending_files} files"
        return f"{files} ({status.pending_bytes} bytes) on the way to {self._remote.url}"

    # For at_exit.

    def drain(self, timeout_s: float | None, *, tell: Callable[[str], None], tell_after_s: float) -> None:
        """Close at the end of the interpreter, saying what is waited for if it takes long.

        Raises:
            NotDurableError: as ``close``.
        """
        self._accept_no_more()
        with self._backlog.changed:
            has_threads = not self._backlog.pending_files or self._workers.ensure()
        if not has_threads:
            self._workers.work_here(timeout_s)
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

    def forget_in_child(self) -> None:
        """In a forked child: release what the parent holds, without waiting for its locks."""
        self._backlog.forget_in_child()

    # Within.

    def _accept_no_more(self) -> None:
        with self._backlog.changed:
            self._backlog.is_closed = True
            self._backlog.tell_all()  # workers without work end

    def _cancel(self, upload: Upload) -> bool:
        if os.getpid() != self._pid:
            return False
        with self._backlog.held():
            return self._backlog.cancel(upload)

    def _late(self, timeout: float | None) -> WaitTimeoutError:
        status = self.status()
        why = f"; the last error was: {status.last_error}" if status.last_error else ""
        return WaitTimeoutError(
            f"after {timeout or 0:.3g} s these are not durable: {self.describe_pending()}{why}",
            hint="wait longer; the local files are still there",
            url=self._remote.url,
        )

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise ConfigurationError(
                "this uploader belongs to the process that forked this one",
                hint="make one in each process that uploads",
            )


def _size_to_send(fd: int | None, tail: Tail | None) -> int:
    assert fd is not None, "what is not being written is open"
    return max(0, os.fstat(fd).st_size - (tail.durable_bytes if tail else 0))


def _held_fds() -> int:
    """How many descriptors a queue may hold for waiting uploads."""
    try:
        import resource  # noqa: PLC0415 - not on Windows

        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    except (ImportError, OSError):
        return MAX_HELD_FDS // 4
    return MAX_HELD_FDS if soft == resource.RLIM_INFINITY else min(MAX_HELD_FDS, soft // 4)


def _wait_for(pending: Iterable[futures.Future[UploadedFile]], timeout: float | None) -> bool:
    """Wait until all are settled, and say whether they are.

    In slices: CPython misses a Ctrl-C that comes just before a wait without an end, and would then wait for ever.
    """
    until_s = None if timeout is None else time.monotonic() + timeout
    while True:
        left_s = _SLICE_S if until_s is None else min(_SLICE_S, max(0.0, until_s - time.monotonic()))
        pending = futures.wait(pending, left_s).not_done
        if not pending:
            return True
        if until_s is not None and time.monotonic() >= until_s:
            return False
