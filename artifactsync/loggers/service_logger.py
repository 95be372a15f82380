"""What W&B, Comet and MLflow have in common: rows that go to a service behind the training loop, each once.

Owns: the thread that hands rows over, what is still to be handed over, and what is not handed over a second time.
Does not own: any service's interface (each logger).

Invariants: the training thread never waits for a service. A row is kept, in the checkpoint too, until the service has
it for good. A row that an earlier attempt has handed over is not handed over again, though training repeats its step.
"""

from __future__ import annotations

import threading
import time
import warnings
from collections import deque
from typing import TYPE_CHECKING, Any

from artifactsync.loggers.destination import LogContext, LoggerDestination

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from artifactsync.journal.attempt import FinishState

Row = tuple[int, dict[str, float]]
"""A step, and its numbers by name."""

_MAX_ROWS = 50_000
"""Rows kept for a service that does not answer; the oldest are given up then."""
_BATCH_ROWS = 256
_MAX_DELAY_S = 30.0
_CONFIRM_S = 0.5


class ServiceLogger(LoggerDestination):
    """A destination whose rows are handed over by a thread of its own.

    Subclasses override the methods that begin with ``_service``; all but ``_service_check`` run on that thread.

    Args:
        rank_zero_only: Only rank 0 logs.
        close_timeout_s: Seconds that ``close`` waits for the service at most.
    """

    _merges_steps = False
    """Whether the service wants each step in one row, so that a step's row waits until the next step begins."""

    def __init__(self, *, rank_zero_only: bool = True, close_timeout_s: float = 60.0) -> None:
        self._rank_zero_only = rank_zero_only
        self._close_timeout_s = close_timeout_s
        self._context: LogContext | None = None
        self._identity = ""
        self._resumed_at: int | None = None
        self._is_known = False  # a checkpoint has told of this log
        self._condition = threading.Condition()
        self._current: Row | None = None
        self._waiting: deque[Row] = deque()
        self._sent: deque[Row] = deque()  # handed over, but not known to be there for good
        self._parameters: dict[str, Any] = {}
        self._thread: threading.Thread | None = None
        self._is_closing = False
        self._trouble: Exception | None = None
        self._is_told = False
        self._dropped = 0
        self._end: FinishState = "completed"

    # -- for subclasses -------------------------------------------------------------------------------------------

    def _service_check(self, context: LogContext) -> None:
        """Check packages and settings, on the training thread, before training; may raise."""

    def _service_connect(self, context: LogContext) -> None:
        """Find or make the run at the service. Called again after it raised."""

    def _service_recorded(self, floor: int) -> Collection[tuple[int, str]]:  # noqa: ARG002  (for subclasses)
        """Step and name of what the service has already of steps from ``floor`` on."""
        return ()

    def _service_parameters(self, parameters: Mapping[str, Any]) -> None:
        """Hand over settings."""

    def _service_send(self, rows: Sequence[Row]) -> None:
        """Hand over rows. All of them again after it raised."""

    def _service_confirm(self, sent: Sequence[Row]) -> int:
        """How many of the first of ``sent`` the service has for good."""
        return len(sent)

    def _service_finish(self) -> None:
        """Say that the run is over, and how it ended: ``self._end``."""

    def _service_state(self) -> dict[str, Any]:
        """What a resumed run must know besides the rows; on the training thread."""
        return {}

    def _service_load(self, state: Mapping[str, Any]) -> None:
        """Take back what ``_service_state`` gave; on the training thread."""

    # -- for the Logger -------------------------------------------------------------------------------------------

    def open(self, context: LogContext) -> None:
        """Check packages and settings.

        Raises:
            MissingPackageError: the service's package is not installed.
            ConfigurationError: settings make no sense.
        """
        if self._rank_zero_only and context.rank:
            return
        self._service_check(context)
        self._context = context

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back which run it is at the service, and the rows that were not there for good."""
        self._identity = str(state["identity"])
        self._waiting.extend((int(step), dict(row)) for step, row in state["rows"])
        self._is_known = True
        self._service_load(state)

    def start(self, *, resumed_at: int | None) -> None:
        """Begin to hand over."""
        context = self._context
        if context is None:
            return
        self._resumed_at = resumed_at
        if not self._identity:
            self._identity = context.identity()
        self._thread = threading.Thread(target=self._work, name=f"artifactsync-{type(self).__name__}", daemon=True)
        self._thread.start()

    def log_hyperparameters(self, parameters: Mapping[str, Any]) -> None:
        """Hand over settings, before the rows."""
        with self._condition:
            self._parameters.update(parameters)
            self._condition.notify_all()

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Keep a row until the thread takes it."""
        if self._thread is None:
            return
        with self._condition:
            if self._current is not None and self._current[0] == step:
                self._current[1].update(metrics)
            else:
                self._push_current()
                self._current = (step, dict(metrics))
            if not self._merges_steps:
                self._push_current()
            self._condition.notify_all()
        self._tell()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until the service has every whole row for good; says whether it has.

        Args:
            timeout_s: Seconds to wait at most; None waits as long as it takes.
        """
        with self._condition:
            return self._condition.wait_for(lambda: not self._waiting and not self._sent, timeout_s)

    def ended(self, state: FinishState) -> None:
        """Keep how training ended for the service."""
        self._end = state

    def close(self) -> None:
        """Hand over what is left, as long as ``close_timeout_s`` allows, and say that the run is over."""
        thread = self._thread
        if thread is None:
            return
        with self._condition:
            self._push_current()
            self._is_closing = True
            self._condition.notify_all()
        thread.join(self._close_timeout_s)
        self._thread = None
        self._tell()
        with self._condition:
            left = len(self._waiting)
        if thread.is_alive() or left:
            warnings.warn(
                f"{type(self).__name__} is closed with {left} steps not handed over", RuntimeWarning, stacklevel=2
            )

    def state_dict(self) -> dict[str, Any]:
        """Which run it is at the service, and the rows that are not there for good."""
        if self._thread is None:
            return {}
        with self._condition:
            current = () if self._current is None else (self._current,)
            rows = [[step, dict(row)] for step, row in (*self._sent, *self._waiting, *current)]
            return {"identity": self._identity, "rows": rows, **self._service_state()}

    # -- the thread -----------------------------------------------------------------------------------------------

    def _push_current(self) -> None:
        if self._current is not None:
            self._waiting.append(self._current)
            self._current = None
            if len(self._waiting) > _MAX_ROWS:
                self._waiting.popleft()
                self._dropped += 1

    def _work(self) -> None:
        delay_s, known, give_up_at = 0.5, None, float("inf")
        while True:
            try:
                if known is None:
                    known = self._connected()
                while self._hand_over(known):
                    delay_s = 0.5
                self._service_finish()
            except Exception as error:  # noqa: BLE001  (a service's package may raise anything)
                self._trouble = error
            else:
                return
            with self._condition:
                if self._is_closing:  # once more, for what a short hiccup left
                    now = time.monotonic()
                    give_up_at = min(give_up_at, now + self._close_timeout_s / 2)
                    if now >= give_up_at:
                        return
                    delay_s = min(delay_s, 1.0)
                self._condition.wait(delay_s)
            delay_s = min(delay_s * 2, _MAX_DELAY_S)

    def _connected(self) -> set[tuple[int, str]]:
        """Connect, and return what need not be handed over any more."""
        assert self._context is not None
        self._service_connect(self._context)
        with self._condition:
            first = self._waiting[0][0] if self._waiting else (self._resumed_at or 0)
        return set(self._service_recorded(min(first, self._resumed_at or 0)))

    def _hand_over(self, known: set[tuple[int, str]]) -> bool:
        """Wait for rows and hand them over; False when all is done."""
        with self._condition:
            while not self._waiting and not self._parameters and not self._is_closing:
                if not self._condition.wait(_CONFIRM_S if self._sent else None) and self._sent:
                    break
            parameters = dict(self._parameters)
            rows = [self._waiting[index] for index in range(min(len(self._waiting), _BATCH_ROWS))]
            dropped = self._dropped
            is_last = self._is_closing and len(rows) == len(self._waiting)
        if parameters:
            self._service_parameters(parameters)
        fresh = [(step, new) for step, row in rows if (new := {n: v for n, v in row.items() if (step, n) not in known})]
        if fresh:
            self._service_send(fresh)
        with self._condition:
            for name in parameters:
                self._parameters.pop(name, None)
            for _ in range(max(0, len(rows) - (self._dropped - dropped))):
                self._waiting.popleft()
            self._sent.extend(fresh)
            sent = tuple(self._sent)
        confirmed = self._service_confirm(sent)
        with self._condition:
            for _ in range(confirmed):
                self._sent.popleft()
            self._condition.notify_all()
        return not is_last

    def _tell(self) -> None:
        """On the training thread: say once that the service fails."""
        if self._trouble is not None and not self._is_told:
            self._is_told = True
            error = self._trouble
            warnings.warn(
                f"{type(self).__name__} cannot reach its service, tries again, and training goes on: "
                f"{type(error).__name__}: {error}",
                RuntimeWarning,
                stacklevel=2,
            )
