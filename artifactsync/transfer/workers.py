"""The threads of an upload queue: as many workers as there is work, and a keeper that wakes what is due.

Owns: starting and ending threads, and which of them stand aside. Does not own: what a worker does with an upload
(``delivery``), how many pay (``pace``).

Invariant: while anything is pending there is a keeper, and it looks at least every second, so no upload is left lying
because a wake-up was missed; a closed queue with nothing left to do keeps no thread. Workers stand aside only while as
many small uploads run as pay, and all of them step in when those come to a stop.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from artifactsync.transfer.clock import wait_on
from artifactsync.transfer.pace import SMALL_BYTES, Pace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from artifactsync.transfer.backlog import Backlog
    from artifactsync.transfer.clock import Clock
    from artifactsync.transfer.upload import Upload

_IDLE_S = 60.0  # an idle thread ends after this long
_TICK_S = 1.0  # how often the keeper looks
_TURN = 1000  # quick uploads in a row by one worker, before it looks at what else there is
_BURST = 2  # so many that were submitted while one was sent: there is somebody who submits one after the other
_GATHER_S = 0.001  # then sending waits for so long, or the two take the interpreter lock from each other all the time
_GATHERING_S = 0.03  # and no longer than this in a turn
_STOP_S = 0.05  # no small upload was through for so long: those that run are not quick


class Workers:
    """Works a backlog off.

    Args:
        backlog: What there is to do.
        run: One try of one upload; never raises.
        run_ahead: One try of each of some quick ones, many under way at a time; never raises.
        can_run_ahead: Whether that can be.
        look: Called every second or so while uploads are pending, without the lock; told whether any runs.
        max_threads: How many uploads at a time.
        clock: The ``time`` module, or a ``FakeClock``.
    """

    def __init__(
        self,
        backlog: Backlog,
        run: Callable[[Upload], None],
        run_ahead: Callable[[Iterable[Upload | None]], None],
        can_run_ahead: Callable[[], bool],
        look: Callable[[bool], None],
        *,
        max_threads: int,
        clock: Clock,
    ) -> None:
        self._backlog, self._run, self._look = backlog, run, look
        self._run_ahead, self._can_run_ahead = run_ahead, can_run_ahead
        self._max_threads = max_threads
        self._clock = clock
        self._pace = Pace(max_threads)
        self._running_small = self._passed_small = 0
        self._is_watched = False  # one of those that stand aside looks whether the others go on
        self._threads: set[threading.Thread] = set()
        self._keeper: threading.Thread | None = None

    def ensure(self) -> bool:
        """Start the keeper, and as many workers as there is work for; False if no thread works. The lock is held."""
        schedule = self._backlog.schedule
        try:
            if self._keeper is None:
                self._keeper = threading.Thread(target=self._keep, name="artifactsync-keeper", daemon=True)
                self._keeper.start()
            wanted = min(self._max_threads, schedule.running_count + schedule.ready)
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
                if _is_small(upload):
                    self._run_small(upload)
                else:
                    self._run(upload)
                del upload  # and with it the last hold on a file that may have been deleted
        finally:
            with self._backlog.changed:
                self._threads.discard(threading.current_thread())
                self._backlog.changed.notify_all()

    def _run_small(self, upload: Upload) -> None:
        watch = _Watch()
        if upload.is_quick and self._max_threads > 1 and self._can_run_ahead():
            self._run_ahead(self._and_quick_ones(upload, watch))
        else:
            self._run(upload)
        self._note(watch)
        with self._backlog.changed:
            self._running_small -= 1

    def _next(self) -> Upload | None:
        """The next upload to run; None if this thread is not needed any more."""
        backlog = self._backlog
        with backlog.changed:
            while True:
                if self._running_small >= self._pace.limit:
                    if not self._stand_aside():
                        break
                elif (upload := backlog.schedule.take()) is not None:
                    if _is_small(upload):
                        self._running_small += 1
                    elif backlog.schedule.ready:
                        backlog.spare.notify()  # in place of this one
                    return upload
                elif not self._may_come_more():
                    break
            self._threads.discard(threading.current_thread())  # under the same lock: nobody counts on it
            return None

    def _may_come_more(self) -> bool:
        """Wait for something to do; False if there was nothing for a while, or never will be. The lock is held."""
        backlog = self._backlog
        is_over = backlog.is_closed and not backlog.pending_files
        return not is_over and (backlog.changed.wait(_IDLE_S) or bool(backlog.schedule.ready))

    def _and_quick_ones(self, upload: Upload, watch: _Watch) -> Iterator[Upload | None]:
        """Yield a quick upload, and those after it as they are asked for; None where there is none just now.

        What passes between two of them is taken for what one took: with many under way it is, on the whole.
        """
        yield upload
        added, patience_s = self._backlog.added, _GATHERING_S
        for _ in range(_TURN):
            self._note(watch)
            while patience_s > 0 and self._backlog.added - added >= _BURST:
                added, patience_s = self._backlog.added, patience_s - _GATHER_S
                time.sleep(_GATHER_S)
                watch.lap()
            added = self._backlog.added
            with self._backlog.changed:
                if self._running_small > self._pace.limit:
                    return
                following = self._backlog.schedule.take_quick()
            yield following

    def _note(self, watch: _Watch) -> None:
        """A small upload was tried."""
        wall_s, cpu_s = watch.lap()
        with self._backlog.changed:
            self._passed_small += 1
            if self._pace.note(wall_s, cpu_s):
                self._backlog.spare.notify_all()

    def _stand_aside(self) -> bool:
        """Wait while more workers would not pay; says whether this one may still be needed. The lock is held."""
        backlog = self._backlog
        if self._is_watched:
            return backlog.spare.wait(_IDLE_S)
        self._is_watched = True
        passed = self._passed_small
        try:
            is_woken = backlog.spare.wait(_STOP_S)
        finally:
            self._is_watched = False
        if not is_woken and passed == self._passed_small and backlog.schedule.ready:
            self._pace.open_up()
            backlog.spare.notify_all()
        return True


class _Watch:
    """What passed on this thread since it was looked at last."""

    def __init__(self) -> None:
        self._wall_s, self._cpu_s = time.perf_counter(), time.thread_time()

    def lap(self) -> tuple[float, float]:
        """Seconds, and seconds of a core."""
        wall_s, cpu_s = self._wall_s, self._cpu_s
        self._wall_s, self._cpu_s = time.perf_counter(), time.thread_time()
        return self._wall_s - wall_s, self._cpu_s - cpu_s


def _is_small(upload: Upload) -> bool:
    """Whether it is one request that takes next to no time."""
    return upload.size_bytes <= SMALL_BYTES and upload.writing is None and upload.tail is None
