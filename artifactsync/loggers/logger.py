"""Where metrics go: the ``Logger`` that training talks to.

Owns: ``Logger``. Does not own: any format (each destination), or when something is logged (``artifactsync.training``).

Invariants: logging a tensor never waits for its device: numbers are read in batches, when something needs them. A
destination that fails never stops training, nor the other destinations; it is told once.
"""

from __future__ import annotations

import time
import warnings
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from artifactsync.errors import ArtifactSyncError, RunOwnedError
from artifactsync.loggers.destination import LogContext, LoggerDestination, check_path_template

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from artifactsync.journal.attempt import FinishState
    from artifactsync.run import Pushed

__all__ = ["LogContext", "Logger", "LoggerDestination", "check_path_template", "named"]

_HELD_STEPS = 64
"""Steps whose numbers are read together: one wait for the device in so many steps."""
_HELD_S = 5.0
"""Numbers are held back no longer than this while steps go on: who looks at slow training shall see it."""

T = TypeVar("T")


class Logger:
    """Hands metrics to every destination.

    In a loop of your own: ``open(context_of_run(run))``, then ``run.resume({"loggers": logger, …})`` if the run may be
    there already, then ``start``, and at the end ``close`` before the run's.

    Args:
        destinations: Where they go.
    """

    def __init__(self, destinations: Sequence[LoggerDestination] = ()) -> None:
        self.destinations = tuple(destinations)
        self.step = 0
        """The step that metrics without a step of their own belong to; the trainer sets it."""
        self._held: list[tuple[int, dict[str, Any]]] = []
        self._held_since = 0.0
        self._told: set[int] = set()

    def open(self, context: LogContext) -> None:
        """Tell every destination which run this is.

        Raises:
            ArtifactSyncError: a package is missing, or settings make no sense.
        """
        for destination in self.destinations:
            self._guarded(destination, lambda d=destination: d.open(context), is_strict=True)  # type: ignore[misc]  # mypy cannot infer a default's type

    def start(self, *, resumed_at: int | None = None) -> None:
        """Begin to log.

        Args:
            resumed_at: The step that a resumed run continues from; None in a new one.

        Raises:
            ArtifactSyncError: a log cannot be written at all.
        """
        self.step = resumed_at or 0
        for destination in self.destinations:
            self._guarded(destination, lambda d=destination: d.start(resumed_at=resumed_at), is_strict=True)  # type: ignore[misc]  # as above

    def log_metrics(self, metrics: Mapping[str, float | torch.Tensor], step: int | None = None) -> None:
        """Log numbers, or tensors of one element each, which must not be changed in place afterwards.

        Args:
            metrics: Names and values.
            step: Optimizer steps done; the current one if None.
        """
        if not self.destinations:
            return
        # A CPU tensor is read at once: that waits for nothing, and small tensors that live on scatter the heap, which
        # costs the training loop more than all the rest of logging (0.1 ms a step where gradients take 2 MB).
        held = {name: _held_back(value) for name, value in metrics.items()}
        now = time.monotonic()
        if not self._held:
            self._held_since = now
        self._held.append((self.step if step is None else step, held))
        if len(self._held) >= _HELD_STEPS or now - self._held_since >= _HELD_S:
            self.deliver()

    def log_hyperparameters(self, parameters: Mapping[str, Any]) -> None:
        """Log settings of the run."""
        for destination in self.destinations:
            self._guarded(destination, lambda d=destination: d.log_hyperparameters(parameters))  # type: ignore[misc]  # as above

    def deliver(self) -> None:
        """Read the numbers held back, and hand them to the destinations."""
        if not self._held:
            return
        held, self._held = self._held, []
        tensors = [v.reshape(()) for _, metrics in held for v in metrics.values() if isinstance(v, torch.Tensor)]
        numbers = iter(_read(tensors))
        rows = [
            (step, {n: next(numbers) if isinstance(v, torch.Tensor) else float(v) for n, v in metrics.items()})
            for step, metrics in held
        ]
        for destination in self.destinations:
            self._guarded(destination, lambda d=destination: _log_rows(d, rows))  # type: ignore[misc]  # as above

    def flush(self) -> list[Pushed]:
        """Deliver, write down everything, and return what is now on its way to the remote."""
        self.deliver()
        pushed: list[Pushed] = []
        for destination in self.destinations:
            pushed += self._guarded(destination, lambda d=destination: list(d.flush())) or ()  # type: ignore[misc]  # as above
        return pushed

    def close(self, state: FinishState = "completed") -> None:
        """Deliver, tell every destination how training ended, and close it.

        Args:
            state: ``completed``, ``preempted`` or ``failed``; W&B, Comet and MLflow show it.

        Raises:
            RunOwnedError: another process owns the run.
        """
        first: RunOwnedError | None = None
        self.deliver()
        for destination in self.destinations:
            try:
                self._guarded(destination, lambda d=destination: d.ended(state))  # type: ignore[misc]  # as above
                self._guarded(destination, destination.close)
            except RunOwnedError as error:  # noqa: PERF203  (all are closed, whatever one of them says)
                first = first or error
        if first is not None:
            raise first

    def state_dict(self) -> dict[str, Any]:
        """The state of every destination that has one."""
        pairs = [(name, self._guarded(d, d.state_dict)) for name, d in named(self.destinations)]
        return {name: state for name, state in pairs if state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Give the destinations their state; one that was not there when it was saved gets none."""
        for name, destination in named(self.destinations):
            if name in state:
                destination.load_state_dict(state[name])

    def _guarded(self, destination: LoggerDestination, act: Callable[[], T], *, is_strict: bool = False) -> T | None:
        """Do something with a destination; what goes wrong is told once, and does not stop training."""
        try:
            return act()
        except RunOwnedError:
            raise
        except Exception as error:  # a package may raise anything; training is worth more
            if is_strict and isinstance(error, ArtifactSyncError):
                raise
            if id(destination) not in self._told:
                self._told.add(id(destination))
                warnings.warn(
                    f"{type(destination).__name__} fails, and training goes on: {type(error).__name__}: {error}",
                    RuntimeWarning,
                    stacklevel=3,
                )
            return None


def _log_rows(destination: LoggerDestination, rows: Sequence[tuple[int, Mapping[str, float]]]) -> None:
    for step, metrics in rows:
        destination.log_metrics(metrics, step)


def named(things: Iterable[Any]) -> list[tuple[str, Any]]:
    """Name each thing after its class and its number among those of its class: what states are saved under."""
    counts: dict[str, int] = {}
    pairs = []
    for thing in things:
        kind = type(thing).__qualname__
        number = counts[kind] = counts.get(kind, -1) + 1
        pairs.append((f"{kind}-{number}", thing))
    return pairs


def _held_back(value: float | torch.Tensor) -> float | torch.Tensor:
    if not isinstance(value, torch.Tensor):
        return value
    return value.item() if value.device.type == "cpu" else value.detach()


def _read(tensors: list[torch.Tensor]) -> list[float]:
    """The numbers of many tensors, with one wait for each device and type they are of."""
    groups: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for index, tensor in enumerate(tensors):
        groups.setdefault((tensor.device, tensor.dtype), []).append(index)
    numbers = [0.0] * len(tensors)
    for indices in groups.values():
        for index, number in zip(indices, torch.stack([tensors[i] for i in indices]).tolist(), strict=True):
            numbers[index] = float(number)
    return numbers
