"""The threads of an upload queue: as many workers as there is work, and a keeper that wakes what is due.

Owns: starting and ending threads. Does not own: what a worker does with an upload (``delivery``).

Invariant: while anything is pending there is a keeper, and it looks at least every second, so no upload is left lying
because a wake-up was missed; a closed queue with nothing left to do keeps no thread.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from artifactsync.transfer.clock import wait_on

if TYPE_CHECKING:
    from collections.abc import Callable

    from artifactsync.transfer.backlog import Backlog
    from artifactsync.transfer.clock import Clock
    from artifactsync.transfer.upload import Upload

_IDLE_S = 60.0  # an idle thread ends after this long
_TICK_S = 1.0  # how often the keeper looks


class Workers:
    """Works a backlog off.

    Args:
        backlog: What there is to do.
        run: One try of one upload; never raises.
        look: Called every second or so while uploads are pending, without the lock; told whether any runs.
        max_threads: How many uploads at a time.
        clock: The ``time`` module, or a ``FakeClock``.
    """

    def __init__(
        self,
        backlog: Backlog,
        run: Callable[[Upload], None],
        look: Callable[[bool], None],
        *,
        max_threads: int,
        clock: Clock,
    ) -> None:
        self._backlog, self._run, self._look = backlog, run, look
        self._max_threads = max_threads
        self._clock = clock
        self._threads: set[threading.Thread] = set()
        self._keeper: threading.Thread | None = None

    def ensure(self) -> bool:
        """Start the keeper, and as many workers as there is work for; False if no thread works. The lock is held."""
        schedule = self._backlog.schedule
        try:
            if self._keeper is None:
                self._keeper = threading.Thread(target=self._keep, name="artifactsync-keeper", daemon=True)
                self._keeper.start()
            wanted = min(self._max_threads, len(schedule.running()) + schedule.ready)
            while len(self._threads) < wanted:
                worker = threading.Thread(target=self._work, name="artifactsync-upload", daemon=True)
                self._threads.add(worker)
                worker.start()
        except RuntimeError:  # the interpreter is ending and starts no more threads: see work_here
            self._threads = {worker for worker in self._threads if worker.ident is not None}
            if self._keeper is not None and self._keeper.ident is None:
                self._keeper = None
        return self._keeper is not None and bool(self._threads)

    def work_here(self, timeout_s: float | None) -> None:
        """Work the backlog off on the calling thread, for an interpreter that starts no more threads."""
        backlog = self._backlog
        end_s = None if timeout_s is None else self._clock.monotonic() + timeout_s
        while backlog.pending_files and (end_s is None or self._clock.monotonic() < end_s):
            with backlog.changed:
                now = self._clock.monotonic()
                due_s = backlog.schedule.wake(now)
                upload = backlog.schedule.take()
                if upload is None:
                    wait_on(backlog.changed, min(_TICK_S, max(0.0, (due_s or now + _TICK_S) - now)), self._clock)
                    continue
            self._run(upload)

    def _keep(self) -> None:
        """Wake what is due, start workers, and have somebody look; a thread of ordinary priority."""
        backlog = self._backlog
        while True:
            with backlog.changed:
                if not backlog.pending_files:
                    self._keeper = None
                    return
                is_running = bool(backlog.schedule.running())
            self._look(is_running)
            with backlog.changed:
                now = self._clock.monotonic()
                due_s = backlog.schedule.wake(now)
                if backlog.schedule.ready:
                    self.ensure()
                    backlog.changed.notify_all()
                timeout_s = _TICK_S if due_s is None else max(0.0, due_s - now)
                if backlog.schedule.running():
                    timeout_s = min(timeout_s, _TICK_S)
                wait_on(backlog.due, timeout_s, self._clock)

    def _work(self) -> None:
        """A worker thread: run uploads until there has been none for a while."""
        try:
            while (upload := self._next()) is not None:
                self._run(upload)
        finally:
            with self._backlog.changed:
                self._threads.discard(threading.current_thread())
                self._backlog.changed.notify_all()

    def _next(self) -> Upload | None:
        """The next upload to run; None if this thread is not needed any more."""
        backlog = self._backlog
        with backlog.changed:
            while (upload := backlog.schedule.take()) is None:
                is_over = backlog.is_closed and not backlog.pending_files
                if is_over or (not backlog.changed.wait(_IDLE_S) and not backlog.schedule.ready):
                    self._threads.discard(threading.current_thread())  # under the same lock: nobody counts on it
                    return None
            return upload
