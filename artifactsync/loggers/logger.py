"""Where metrics go: the ``Logger`` that training talks to, and what a destination must do.

Owns: ``LoggerDestination``, ``LogContext`` and ``Logger``. Does not own: any format (each destination), or when
something is logged (``artifactsync.training``).

Invariant: logging a tensor never waits for its device: numbers are read in batches, when something needs them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from artifactsync.errors import ArtifactSyncError
from artifactsync.naming import PLACEHOLDERS, render_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from artifactsync.run import Pushed

_HELD_STEPS = 64
"""Steps whose numbers are read together: one wait for the device in so many steps."""


@dataclass(frozen=True, kw_only=True)
class LogContext:
    """What a destination is told of the run it logs."""

    run_name: str
    """The run's name."""
    local_dir: Path
    """The run's local folder; what is written below it can be mirrored."""
    attempt: int = 1
    """Number of this attempt, from 1."""
    placeholders: Mapping[str, Any] = field(default_factory=dict)
    """Values for templates besides the run name: ``rank`` and the like."""
    mirror: Callable[[Path], Pushed | None] = lambda _: None
    """Mirror a file below ``local_dir`` that only grows; returns at once."""
    fetch: Callable[[str, Path, int, str], bool] = lambda _path, _local, _size_bytes, _sha256: False
    """Bring what is mirrored under a path below the run to a local file, if its first so many bytes have that sha256;
    says whether there was such a one."""


class LoggerDestination:
    """One place where metrics go. Override what you need.

    ``open`` comes first, then ``load_state_dict`` if the run is resumed, then ``start``, then everything else.
    """

    def open(self, context: LogContext) -> None:
        """The run is known."""

    def start(self, *, resumed_at: int | None) -> None:
        """Logging begins; ``resumed_at`` is the step that a resumed run continues from, None in a new one."""

    def log_hyperparameters(self, parameters: Mapping[str, Any]) -> None:
        """Settings of the run, once."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Numbers of one step. Steps never go back."""

    def flush(self) -> Iterable[Pushed]:
        """Write down everything; what is now on its way to the remote."""
        return ()

    def close(self) -> None:
        """Write down everything, and release what is held. Idempotent."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs in order to continue this log."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what ``state_dict`` gave."""


class Logger:
    """Hands metrics to every destination.

    Args:
        destinations: Where they go.
    """

    def __init__(self, destinations: Sequence[LoggerDestination] = ()) -> None:
        self.destinations = tuple(destinations)
        self.step = 0
        """The step that metrics without a step of their own belong to; the trainer sets it."""
        self._held: list[tuple[int, dict[str, Any]]] = []

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
        self._held.append((self.step if step is None else step, held))
        if len(self._held) >= _HELD_STEPS:
            self.deliver()

    def log_hyperparameters(self, parameters: Mapping[str, Any]) -> None:
        """Log settings of the run."""
        for destination in self.destinations:
            destination.log_hyperparameters(parameters)

    def deliver(self) -> None:
        """Read the numbers held back, and hand them to the destinations."""
        if not self._held:
            return
        held, self._held = self._held, []
        tensors = [v.reshape(()) for _, metrics in held for v in metrics.values() if isinstance(v, torch.Tensor)]
        numbers = iter(_read(tensors))
        for step, metrics in held:
            plain = {n: next(numbers) if isinstance(v, torch.Tensor) else float(v) for n, v in metrics.items()}
            for destination in self.destinations:
                destination.log_metrics(plain, step)

    def flush(self) -> list[Pushed]:
        """Deliver, write down everything, and return what is now on its way to the remote."""
        self.deliver()
        return [pushed for destination in self.destinations for pushed in destination.flush()]

    def close(self) -> None:
        """Deliver, and close every destination; raises the first error after all were closed."""
        first: ArtifactSyncError | None = None
        self.deliver()
        for destination in self.destinations:
            try:
                destination.close()
            except ArtifactSyncError as error:  # noqa: PERF203  (all are closed, whatever one of them says)
                first = first or error
        if first is not None:
            raise first

    def state_dict(self) -> dict[str, Any]:
        """The state of every destination that has one."""
        return {name: state for name, d in named(self.destinations) if (state := d.state_dict())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Give the destinations their state; one that was not there when it was saved gets none."""
        for name, destination in named(self.destinations):
            if name in state:
                destination.load_state_dict(state[name])


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


def check_path_template(template: str) -> str:
    """Return a path template if it can be filled, before anything is done with it.

    Raises:
        TemplateError: an unknown placeholder, or a path that leaves the run's folder.
    """
    values = dict.fromkeys(PLACEHOLDERS.keys() - {"run_name", "remote_file_name"}, 1)
    render_path(template, run_name="run", **values)
    return template


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
