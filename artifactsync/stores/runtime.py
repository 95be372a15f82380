"""The threads on which obstore works: polite beside a training loop, and never used in a forked child.

Owns: the scheduling class of the tokio threads, and the guard against ``fork``. Does not own: when uploads should be
polite (``transfer``).

The first obstore call of a process starts the threads, and they inherit the scheduling class of the thread that made
that call. On Linux a thread that made itself ``SCHED_IDLE`` gets only what nobody else wants. A process without
privileges may lower a thread to ``SCHED_IDLE`` but, unless ``RLIMIT_NICE`` allows its nice value (most systems: no),
not raise it again: ``set_runtime_priority`` says whether it could.

Invariant: nothing here fails; where a platform has no scheduling classes it does nothing.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from artifactsync.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator

_THREAD_NAME = "tokio-rt-worker"
_TASKS = Path("/proc/self/task")
_SETTLE_S = 0.1  # where a cgroup allows fewer threads than there are processors, the first call waits that long
_lock = threading.Lock()
_started_in_pid: int | None = None
_is_settled = False  # the threads were waited for once
_waiting = 0  # blocks of ``in_the_foreground`` that run


def start_polite_runtime() -> bool:
    """Start obstore's threads in the scheduling class ``SCHED_IDLE``.

    Returns:
        True if the threads are there and idle-class; False where they run already or the platform cannot.
    """
    if not hasattr(os, "SCHED_IDLE") or _started_in_pid is not None:
        return False
    starter = threading.Thread(target=_start_idle, name="artifactsync-runtime-start")
    starter.start()
    starter.join()
    threads = runtime_thread_ids()
    return bool(threads) and all(_policy(thread_id) == os.SCHED_IDLE for thread_id in threads)


def set_runtime_priority(*, polite: bool) -> bool:
    """Move obstore's threads to ``SCHED_IDLE`` (polite) or back to the normal class.

    Returns:
        True if there are such threads and all of them are now in that class; False while they work in the foreground.
    """
    if not hasattr(os, "SCHED_IDLE") or (polite and _waiting):
        return False
    wanted = os.SCHED_IDLE if polite else os.SCHED_OTHER
    threads = runtime_thread_ids()
    for thread_id in threads:
        with contextlib.suppress(OSError):  # gone meanwhile, or not allowed: the answer below tells
            os.sched_setscheduler(thread_id, wanted, os.sched_param(0))
    return bool(threads) and all(_policy(thread_id) in {wanted, None} for thread_id in threads)


@contextmanager
def in_the_foreground() -> Iterator[None]:
    """Somebody waits for what is fetched in this block: the threads give way to nobody, an uploader's wish or not.

    They are polite again when their uploader says so next.
    """
    global _waiting  # noqa: PLW0603 the threads are one set for each process
    with _lock:
        _waiting += 1
    try:
        set_runtime_priority(polite=False)
        yield
    finally:
        with _lock:
            _waiting -= 1


def _named_thread_ids() -> list[int]:
    found = []
    with contextlib.suppress(OSError):
        for task in _TASKS.iterdir():
            with contextlib.suppress(OSError):
                if (task / "comm").read_text().strip() == _THREAD_NAME:
                    found.append(int(task.name))
    return found


def runtime_thread_ids() -> list[int]:
    """The kernel's ids of obstore's threads; empty before the first use of obstore, and where there is no ``/proc``.

    A thread gets its name a moment after it begins: this waits for those that are about to.
    """
    if _started_in_pid != os.getpid():
        return []
    expected = int(os.environ.get("TOKIO_WORKER_THREADS", "0")) or len(os.sched_getaffinity(0))
    global _is_settled  # noqa: PLW0603 the threads are one set for each process
    until_s = time.monotonic() + _SETTLE_S
    while len(found := _named_thread_ids()) < expected and not _is_settled and time.monotonic() < until_s:
        time.sleep(0.001)
    _is_settled = True
    return found


def note_use(url: str) -> None:
    """Note that obstore is about to run in this process.

    Raises:
        ConfigurationError: this process was forked after obstore's threads started; a call would hang for ever.
    """
    global _started_in_pid  # noqa: PLW0603 obstore's runtime is one for each process, so is this
    if _started_in_pid == os.getpid():
        return
    with _lock:
        if _started_in_pid is not None and _started_in_pid != os.getpid():
            raise ConfigurationError(
                f"{url} cannot be used in a process forked after the store was first used: its threads are gone",
                hint="start such processes with multiprocessing's 'spawn' or 'forkserver' method",
                url=url,
            )
        _started_in_pid = os.getpid()


def _start_idle() -> None:
    import obstore  # noqa: PLC0415 loads the cloud library
    from obstore.store import MemoryStore  # noqa: PLC0415

    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    note_use("memory://")
    obstore.put(MemoryStore(), "start", b"")


def _policy(thread_id: int) -> int | None:
    try:
        return os.sched_getscheduler(thread_id)
    except OSError:
        return None


def _renew_lock() -> None:
    global _lock, _waiting
    _lock, _waiting = threading.Lock(), 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)
