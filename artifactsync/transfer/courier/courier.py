"""The training's end of the process beside it.

Owns: ``Courier``: starting that process, handing jobs over, and what its end means. Does not own: which uploads go
there (``delivery``), when it gives way (``politeness``), what it does (``process``).

Invariants: nothing waits for the process to start: until it is ready, and whenever it cannot be, uploads are sent from
here. A job that the process did not end is one that failed, and is tried again; if it ends by itself time and again,
it is not started any more.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import subprocess
import threading
from typing import TYPE_CHECKING

from artifactsync.errors import TransientStoreError
from artifactsync.stores.origin import origin_of
from artifactsync.transfer.cores import allow_cores, training_core
from artifactsync.transfer.courier import wire
from artifactsync.transfer.courier.job import FileHash, Job
from artifactsync.transfer.courier.other import Other
from artifactsync.transfer.courier.start import READY_S, can_be, spawn
from artifactsync.transfer.hashing import open_file
from artifactsync.transfer.starvation import can_be_raised
from artifactsync.transfer.upload import UploadedFile

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

    from artifactsync.stores.origin import Origin
    from artifactsync.stores.protocol import Store
    from artifactsync.transfer.being_written import FileBeingWritten
    from artifactsync.transfer.upload import Closable

_MOST_ENDS = 3


class Courier:
    """A process that uploads for this one. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: Other | None = None
        self._control: socket.socket | None = None
        self._is_starting = False
        self._ends = 0
        self._hurries = 0
        self._told: tuple[int, bool, bool] = (0, False, False)
        self._kept_off: tuple[int, int | None] = (0, None)
        self._wish = (True, False)
        self._pid = os.getpid()

    @property
    def pid(self) -> int | None:
        """The process; None while there is none that is ready."""
        with self._lock:
            return self._process.pid if self._process is not None and self._control is not None else None

    @property
    def is_ready(self) -> bool:
        """Whether jobs can be handed over."""
        return self._control is not None

    def begin(self, origin: Origin, *, polite: bool) -> threading.Thread | None:
        """Start the process, unless there is one, or none can be; returns at once.

        Args:
            origin: A store that jobs will be for: it is opened before the process is ready.
            polite: Whether it begins as one that takes only what nobody else wants.

        Returns:
            The thread that waits until it is ready, if it is being started now.
        """
        with self._lock:
            if self._is_starting or self._control is not None or self._ends >= _MOST_ENDS or not can_be():
                return None
            self._is_starting = True
        thread = threading.Thread(target=self._start, args=(origin, polite), name="artifactsync-courier", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the interpreter is ending
            self._is_starting = False
            return None
        return thread

    def put(
        self,
        origin: Origin,
        key: str,
        source: str | int | FileBeingWritten,
        *,
        name: str,
        overwrite: bool,
        growing: bool,
        on_read: Callable[[int], None],
        hold: Callable[[Closable], object] = lambda _: None,
    ) -> UploadedFile:
        """Have a file sent once, as ``sending.send_file`` does it.

        Args:
            origin: The store.
            key: Key below it.
            source: A path, a descriptor, or a file that is still being written.
            name: What messages call it.
            overwrite: As there.
            growing: The file is append-only.
            on_read: Called with what was read since the last call, at least every quarter of a second, on this
                thread; raises to give the upload up.
            hold: Given what a forked child has to close.

        Raises:
            TransientStoreError: the process is gone.
            ArtifactSyncError: as ``send_file``.
        """
        from artifactsync.transfer.being_written import FileBeingWritten  # noqa: PLC0415 it imports this package's user

        writing = None
        with contextlib.ExitStack() as open_until_sent:
            if isinstance(source, FileBeingWritten):
                writing = source
                open_until_sent.enter_context(writing.open(on_read))
                fd = writing.duplicate()
            else:
                fd = os.dup(source) if isinstance(source, int) else open_file(source)
            try:
                size_bytes = writing.size_bytes if writing else os.fstat(fd).st_size
                put = wire.Put(origin, key, name, size_bytes, overwrite, growing, is_being_written=writing is not None)
                job = self._hand_over(put, fd)
            finally:
                os.close(fd)
            hold(open_until_sent.enter_context(job))
            if writing is not None:
                open_until_sent.enter_context(writing.heard_by(job.pass_on))
            sent = job.outcome(on_read)
        assert isinstance(sent, wire.Sent)
        return UploadedFile(key, sent.size_bytes, sent.sha256, sent.etag)

    def hash(self, fd: int, size_bytes: int) -> FileHash:
        """Have a file hashed while it is being written.

        Raises:
            TransientStoreError: the process is gone.
        """
        return FileHash(self._hand_over(wire.Hash(size_bytes), fd), size_bytes)

    def set_polite(self, *, polite: bool, lowers: bool) -> None:
        """Let the process keep out of the training's way, or not.

        It has its full share while somebody waits for it (``hurry``), whatever is said here.

        Args:
            polite: Out of the way: off the core that the training's main thread runs on, and there only what nobody
                else wants.
            lowers: Whether its threads may be made idle-class, as they can be raised again.
        """
        self._wish = polite, lowers
        self._obey()

    def hurry(self, count: int) -> None:
        """Somebody begins (1) or ends (-1) to wait for what the process does: it takes its full share meanwhile."""
        with self._lock:
            self._hurries += count
        self._obey()

    @contextlib.contextmanager
    def hurried(self) -> Iterator[None]:
        """Somebody waits inside."""
        self.hurry(1)
        try:
            yield
        finally:
            self.hurry(-1)

    def end(self) -> None:
        """End the process; jobs that run fail. Idempotent."""
        with self._lock:
            process, control = self._process, self._control
            self._process = self._control = None
        if control is not None:
            control.close()
        if process is not None:
            process.kill()

    def forget_in_child(self) -> None:
        """In a forked child: the process is its parent's, which it must not outlive because of this one's sockets."""
        self._lock = threading.Lock()
        control, process = self._control, self._process
        self._control = self._process = None
        if control is not None:
            control.close()
        if process is not None:
            process.close()

    # Within.

    def _start(self, origin: Origin, polite: bool) -> None:
        control, process = None, None
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            control, theirs = wire.pair()
            with theirs:
                spawn(theirs.fileno(), polite=polite)
            control.settimeout(READY_S)
            wire.say(control, wire.Hello(origin))
            message, _ = wire.hear(control)
            process = Other(message.pid) if isinstance(message, wire.Ready) else None
        with self._lock:
            self._is_starting = False
            if process is not None:
                self._process, self._control = process, control
                return
            self._ends += 1
        if control is not None:
            control.close()  # it ends, should it still come to that

    def _obey(self) -> None:
        """Give the process's threads the place that is wanted for them."""
        pid, (is_polite, lowers) = self.pid, self._wish
        if pid is None:
            return
        is_polite &= not self._hurries
        core = training_core() if is_polite else None
        if self._kept_off != (pid, core):
            self._kept_off = (pid, core)
            allow_cores(_threads(pid), but=core)
        if not lowers or not hasattr(os, "SCHED_IDLE") or self._told == (pid, is_polite, True):
            return  # its threads have the class of those that started them
        # Said twice: a thread that was just being started may have been missed.
        self._told = (pid, is_polite, self._told[:2] == (pid, is_polite))
        wanted = os.SCHED_IDLE if is_polite else os.SCHED_OTHER
        for thread_id in _threads(pid):
            with contextlib.suppress(OSError):  # it is gone, or may not be raised
                if os.sched_getscheduler(thread_id) != wanted:
                    os.sched_setscheduler(thread_id, wanted, os.sched_param(0))

    def _hand_over(self, job: wire.Put | wire.Hash, fd: int) -> Job:
        ours, theirs = wire.pair()
        with self._lock:
            control, process = self._control, self._process
        self._obey()  # training may be on another core by now
        is_said = False
        with theirs, contextlib.suppress(OSError):
            if control is not None and process is not None:
                wire.say(control, job, [theirs.fileno(), fd])
                is_said = True
        if process is None or not is_said:
            ours.close()
            raise self.lost()
        return Job(process, ours, self.lost)

    def lost(self) -> TransientStoreError:
        """The process is gone, or does not answer: what to raise. Another one may be started."""
        with self._lock:
            is_news = self._control is not None
            self._ends += is_news
        if is_news:
            self.end()
        return TransientStoreError(
            "the uploading process has ended", hint="it is started again; if it was killed, is there memory enough?"
        )


_the_courier: Courier | None = None
_making = threading.Lock()


def _threads(pid: int) -> list[int]:
    """The kernel's ids of a process's threads; empty if it is gone."""
    with contextlib.suppress(OSError):
        return [int(name) for name in os.listdir(f"/proc/{pid}/task")]  # noqa: PTH208 - names are all that is wanted
    return []


def begin_courier(store: Store) -> threading.Thread | None:
    """Have the process of this one ready before the first large file for ``store``; returns at once, as ``begin``."""
    origin = origin_of(store)
    return None if origin is None else the_courier().begin(origin, polite=can_be_raised())


def the_courier() -> Courier:
    """The one of this process."""
    global _the_courier  # noqa: PLW0603 it is the process's
    with _making:
        if _the_courier is None:
            _the_courier = Courier()
        return _the_courier


def _forget() -> None:
    global _the_courier, _making  # noqa: PLW0603 they are the parent's
    _making = threading.Lock()
    if _the_courier is not None:
        _the_courier.forget_in_child()
        _the_courier = None


def _end() -> None:
    if _the_courier is not None:
        _the_courier.end()


atexit.register(_end)  # when this is imported, so that it comes after whatever still uploads at exit
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
