"""One thread that does one thing after the other, and never keeps the interpreter from ending.

``ThreadPoolExecutor`` is not used here because Python joins its threads at exit, however long an outage lasts.

Invariant: tasks run in the order of their submission; a task that was cancelled in time never runs.
"""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

_Result = TypeVar("_Result")


class SerialWorker(Generic[_Result]):
    """Runs submitted calls one by one on a daemon thread.

    Args:
        name: Name of the thread.
    """

    def __init__(self, name: str) -> None:
        self._tasks: deque[tuple[Future[_Result], Callable[[], _Result]]] = deque()
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def submit(self, call: Callable[[], _Result]) -> Future[_Result]:
        """Enqueue ``call``; returns at once.

        Raises:
            RuntimeError: the worker is closed.
        """
        future: Future[_Result] = Future()
        with self._changed:
            if self._is_closed:
                raise RuntimeError("the worker is closed")
            self._tasks.append((future, call))
            self._changed.notify_all()
        return future

    def close(self) -> None:
        """Take no more tasks; the thread ends after those that it has."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def cancel_waiting(self) -> None:
        """Cancel every task that has not begun."""
        with self._changed:
            for future, _ in self._tasks:
                future.cancel()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._tasks or self._is_closed)
                if not self._tasks:
                    return
                future, call = self._tasks.popleft()
            if future.set_running_or_notify_cancel():
                _settle(future, call)


def _settle(future: Future[Any], call: Callable[[], Any]) -> None:
    try:
        result = call()
    except BaseException as error:  # noqa: BLE001 - the waiting thread decides what to do with it
        future.set_exception(error)
    else:
        future.set_result(result)
