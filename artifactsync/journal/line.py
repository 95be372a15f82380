"""One thread that publishes one checkpoint after the other, the newest first.

Owns: which call runs next, and when the one that runs may give way. Does not own: what a call does (``publication``).

``ThreadPoolExecutor`` is not used because Python joins its threads at exit, however long an outage lasts.

Invariants: of the calls that wait, the one of the greatest rank runs next, and of equal ones the first that came; so
two checkpoints of one step are committed in the order in which they were saved. A call that was cancelled in time never
runs; one that gave way runs again, from where it left off, when nothing of a greater rank waits.
"""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

_Result = TypeVar("_Result")


class GaveWayError(Exception):
    """Raised by a call that shall run again later: one of a greater rank waits."""


@dataclass(frozen=True)
class _Task(Generic[_Result]):
    rank: int
    number: int
    future: Future[_Result]
    call: Callable[[], _Result]

    @property
    def order(self) -> tuple[int, int]:
        """Less is sooner."""
        return -self.rank, self.number


class Line(Generic[_Result]):
    """Runs submitted calls one by one on a daemon thread.

    Args:
        name: Name of the thread.
    """

    def __init__(self, name: str) -> None:
        self._waiting: list[_Task[_Result]] = []
        self._running: _Task[_Result] | None = None
        self._count = 0
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def submit(self, call: Callable[[], _Result], *, rank: int) -> Future[_Result]:
        """Put ``call`` in line; returns at once.

        Args:
            call: May raise :class:`GaveWayError` if :meth:`is_overtaken`; it is called again then.
            rank: The greatest goes first.

        Raises:
            RuntimeError: the line is closed.
        """
        future: Future[_Result] = Future()
        with self._changed:
            if self._is_closed:
                raise RuntimeError("the line is closed")
            self._count += 1
            self._waiting.append(_Task(rank, self._count, future, call))
            self._changed.notify_all()
        return future

    def is_overtaken(self) -> bool:
        """Whether a call of a greater rank than the running one's waits."""
        with self._changed:
            return self._is_overtaken()

    def pause(self, seconds: float) -> bool:
        """Let the running call stand still; True, and at once, if it shall give way or the line is closed."""
        with self._changed:
            return self._changed.wait_for(lambda: self._is_overtaken() or self._is_closed, seconds)

    def close(self) -> None:
        """Take no more calls, and cancel those that do not run; the one that runs goes on."""
        with self._changed:
            self._is_closed = True
            for task in self._waiting:
                # One that gave way has begun, and cannot be cancelled as a future can.
                if not task.future.cancel() and not task.future.done():
                    task.future.set_exception(CancelledError())
            self._waiting.clear()
            self._changed.notify_all()

    def _is_overtaken(self) -> bool:
        running = self._running
        return running is not None and any(task.rank > running.rank for task in self._waiting if _is_wanted(task))

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._is_closed)
                if not self._waiting:
                    return
                task = self._running = min(self._waiting, key=lambda task: task.order)
                self._waiting.remove(task)
                # One that gave way is running in the eyes of its future, and stays so.
                is_wanted = task.future.running() or task.future.set_running_or_notify_cancel()
            if is_wanted:
                self._run(task)
            with self._changed:
                self._running = None

    def _run(self, task: _Task[_Result]) -> None:
        try:
            result = task.call()
        except GaveWayError:
            with self._changed:
                if self._is_closed:
                    task.future.set_exception(CancelledError())
                else:
                    self._waiting.append(task)
        except BaseException as error:  # noqa: BLE001 - the waiting thread decides what to do with it
            task.future.set_exception(error)
        else:
            task.future.set_result(result)


def _is_wanted(task: _Task[_Result]) -> bool:
    return not task.future.cancelled()
