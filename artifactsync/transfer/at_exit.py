"""The drain when the interpreter ends: what was submitted is uploaded before the process is gone.

Owns: which queues are open in this process, and waiting for them at exit. Does not own: uploading (``queue``).

The workers are daemon threads, and the drain is registered twice. First with ``threading``'s own exit hooks, which run
while executors and event loops of every store still work and before non-daemon threads are joined; then with
``atexit`` for what such threads submitted in between. A process that ends by ``os._exit``, by SIGKILL or by SIGTERM
without a handler has no exit hooks: nothing half-written is visible then, and what was not uploaded is on the local
disk. The second Ctrl-C ends the drain. A forked child drains nothing: the queues are its parent's.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import sys
import threading
import time
from typing import TYPE_CHECKING

from artifactsync import batch
from artifactsync.errors import ArtifactSyncError, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from artifactsync.transfer.queue import UploadQueue

_TELL_AFTER_S = 3.0  # a drain that takes longer says what it waits for

_open: set[UploadQueue] = set()
_before: list[Callable[[], None]] = []  # what still submits at exit: runs with checkpoints on their way
_is_registered = False


def remember(queue: UploadQueue) -> None:
    """Drain ``queue`` at exit."""
    _open.add(queue)
    _register()


def _register() -> None:
    global _is_registered  # noqa: PLW0603 - one hook per process
    if _is_registered:
        return
    _is_registered = True
    atexit.register(_drain)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_forget_all)
    with contextlib.suppress(AttributeError, RuntimeError):  # private, in CPython 3.9 to 3.14 at least
        threading._register_atexit(_drain)  # type: ignore[attr-defined]  # noqa: SLF001


def before_drain(call: Callable[[], None]) -> None:
    """Have ``call`` called at exit before the queues are drained: it may still submit, and wait."""
    _before.append(call)
    _register()


def forget(queue: UploadQueue) -> None:
    """``queue`` is closed."""
    _open.discard(queue)


def grace_s() -> float | None:
    """Seconds that a drain may take (``ARTIFACTSYNC_GRACE_S``), None for as long as the uploads take."""
    try:
        return batch.grace_s()
    except ConfigurationError as error:  # at the end there is nobody left to raise it to
        _tell_once(f"{error}; waiting without a bound")
        return None


@functools.cache
def _tell_once(text: str) -> None:
    tell(text)  # the drain comes twice, and each run asks too


def _drain() -> None:
    grace = grace_s()
    deadline_s = None if grace is None else time.monotonic() + grace
    try:
        for call in _before:
            call()
        while _open:
            queue = next(iter(_open))
            _drain_one(queue, deadline_s)
            _open.discard(queue)
    except KeyboardInterrupt:
        for queue in list(_open):
            tell(f"interrupted; not durable: {queue.describe_pending()}")
            queue.abort()
        _open.clear()


def _drain_one(queue: UploadQueue, deadline_s: float | None) -> None:
    left_s = None if deadline_s is None else max(0.0, deadline_s - time.monotonic())
    try:
        queue.drain(left_s, tell=tell, tell_after_s=_TELL_AFTER_S)
    except ArtifactSyncError as error:
        tell(f"not everything is durable: {error}")


def tell(line: str) -> None:
    """Say one line on stderr, if there still is one."""
    with contextlib.suppress(OSError, ValueError):
        print(f"artifactsync: {line}", file=sys.stderr, flush=True)  # noqa: T201 - the one line at exit


def _forget_all() -> None:
    for queue in _open:
        queue.forget_in_child()
    _open.clear()
