"""The process beside the training: it waits for jobs, does each on a thread of its own, and ends with the training.

Owns: ``main`` and the jobs. Does not own: what the training's process makes of an outcome (``courier``), one try of an
upload (``sending``), priorities (set by the other from outside, as a starved process could not).

Invariants: it does not outlive the training's process, and no signal but SIGKILL ends it earlier:
those that a job gets from its scheduler are the training's to answer, and what it still wants to send goes through
here. It commits nothing: whatever it sends too late is an object that no record names.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import select
import signal
import socket
import threading
import time
from typing import TYPE_CHECKING

from artifactsync.errors import ArtifactSyncError, TransientStoreError, UploadError
from artifactsync.transfer.courier import wire
from artifactsync.transfer.courier.other import Other

if TYPE_CHECKING:
    from collections.abc import Callable

    from artifactsync.stores.origin import Origin
    from artifactsync.stores.protocol import Store
    from artifactsync.transfer.being_written import FileBeingWritten
    from artifactsync.transfer.upload import UploadedFile

_LOOK_S = 0.5  # how often it looks whether the training's process is still there, where nobody tells it
_FDS_OF_A_JOB = 2  # its socket, and its file
_TELL_S = 0.25  # how often a job says how far it is
_READ_BYTES = 4 * 1024 * 1024
_IGNORED = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGTSTP")


def main(control_fd: int, training_pid: int) -> None:
    """Serve the process ``training_pid`` until it is gone.

    Args:
        control_fd: A ``SOCK_SEQPACKET`` socket: a ``Hello``, then jobs.
        training_pid: Whose files it sends.
    """
    for name in _IGNORED:
        with contextlib.suppress(AttributeError, OSError, ValueError):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    training = Other(training_pid)
    control = socket.socket(fileno=control_fd)
    hello, _ = wire.hear(control)
    if not isinstance(hello, wire.Hello):
        os._exit(0)
    stores = _Stores()
    with contextlib.suppress(ArtifactSyncError):  # whoever sends first is told
        stores.get(hello.origin)
    with contextlib.suppress(OSError):
        wire.say(control, wire.Ready(os.getpid()))
    poll = select.poll()
    for end in (control.fileno(), training.fd):
        if end is not None:
            poll.register(end, select.POLLIN)
    while training.is_alive:
        if not any(fd == control.fileno() for fd, _ in poll.poll(_LOOK_S * 1000 if training.fd is None else None)):
            continue
        job, fds = wire.hear(control, _FDS_OF_A_JOB)
        if job is None:
            break
        if len(fds) == _FDS_OF_A_JOB:
            threading.Thread(target=_work, args=(job, *fds, stores), daemon=True).start()
        else:  # too many files are open here; the end of the job's socket says so
            for fd in fds:
                os.close(fd)
    os._exit(0)  # without waiting for anything: the training's process has settled what it wanted


class _Stores:
    """The stores that jobs name, each opened once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[tuple[object, ...], Store] = {}

    def get(self, origin: Origin) -> Store:
        from artifactsync.stores import open_store  # noqa: PLC0415 after the parent's module path is known
        from artifactsync.stores.prefix import PrefixStore  # noqa: PLC0415

        with self._lock:
            key = origin.key()
            if key not in self._known:
                origin.restore_environment()
                store = open_store(origin.url, origin.options, retry=origin.retry)
                self._known[key] = PrefixStore(store, origin.prefix) if origin.prefix else store
            return self._known[key]


def _work(job: object, job_fd: int, file_fd: int, stores: _Stores) -> None:
    """Do one job; whatever comes of it is said on its socket."""
    with socket.socket(fileno=job_fd) as there:
        outcome: object
        try:
            if isinstance(job, wire.Put):
                sent = _put(job, file_fd, there, stores)
                outcome = wire.Sent(sent.size_bytes, sent.sha256, sent.etag)
            else:
                assert isinstance(job, wire.Hash)
                outcome = wire.Hashed(_hash(job, file_fd, there))
        except ArtifactSyncError as error:
            outcome = wire.Failed(error)
        except BaseException as error:  # noqa: BLE001 - the other is to know, whatever it was
            outcome = wire.Failed(TransientStoreError(f"the uploading process failed: {error or type(error).__name__}"))
        finally:
            os.close(file_fd)
        with contextlib.suppress(OSError):  # nobody waits for it any more
            wire.say(there, outcome)


def _put(job: wire.Put, fd: int, there: socket.socket, stores: _Stores) -> UploadedFile:
    from artifactsync.transfer.being_written import FileBeingWritten  # noqa: PLC0415 loads what only jobs need
    from artifactsync.transfer.hashing import FileBody  # noqa: PLC0415
    from artifactsync.transfer.sending import send_file  # noqa: PLC0415

    store = stores.get(job.origin)
    if job.is_being_written:
        source = FileBeingWritten(fd, job.name, job.size_bytes)
        threading.Thread(target=_follow, args=(source, there), daemon=True).start()
        try:
            with source.open(_teller(there, is_followed=True)) as growing:
                return send_file(store, job.key, growing, overwrite=job.overwrite)
        finally:
            source.close()
    with FileBody(fd, growing=job.growing, on_read=_teller(there), name=job.name) as body:
        return send_file(store, job.key, body, overwrite=job.overwrite)


def _hash(job: wire.Hash, fd: int, there: socket.socket) -> str:
    """Hash a file as far as it is written, and go on when more is."""
    digest, at, written = hashlib.sha256(), 0, 0
    while at < job.size_bytes:
        while written <= at:
            message, _ = wire.hear(there)
            if not isinstance(message, wire.Written):
                raise UploadError("the hash is not wanted any more")
            written = message.total_bytes
        data = os.pread(fd, min(_READ_BYTES, written - at), at)
        if not data:
            raise UploadError("the file was cut while it was hashed")
        digest.update(data)
        at += len(data)
    return digest.hexdigest()


def _follow(source: FileBeingWritten, there: socket.socket) -> None:
    """Pass on what the writer says, in the other process."""
    known = 0
    with contextlib.suppress(OSError):  # the job is over, and its socket closed
        while True:
            message, _ = wire.hear(there)
            if isinstance(message, wire.Written):
                source.advance(message.total_bytes - known)
                known = message.total_bytes
            elif isinstance(message, wire.Whole):
                source.finish(message.sha256, message.identity)
            else:
                source.fail(_given_up())
                return


def _teller(there: socket.socket, *, is_followed: bool = False) -> Callable[[int], None]:
    """Say how much was read, now and then; and stop when the job is not wanted any more."""
    total, told_s = 0, time.monotonic()

    def on_read(count_bytes: int) -> None:
        nonlocal total, told_s
        total += count_bytes
        if not is_followed and select.select([there], [], [], 0)[0]:  # nothing is ever said but the end
            raise _given_up()
        if time.monotonic() - told_s >= _TELL_S:
            told_s = time.monotonic()
            try:
                wire.say(there, wire.Moved(total))
            except OSError:
                raise _given_up() from None

    return on_read


def _given_up() -> UploadError:
    return UploadError("the upload was given up")
