"""Metrics that gather over an evaluation: torchmetrics' own, and whatever has ``update``, ``compute`` and ``reset``.

Owns: telling them from plain functions, feeding them, and their results as numbers. Does not own: functions whose mean
is taken (``evaluation``).

Invariant: they are reset before each evaluation, and what they hold never goes into a checkpoint.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from artifactsync.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


class GatheringMetrics:
    """Those of the given metrics that gather, and the model's own.

    Args:
        metrics: By name: functions of ``(outputs, batch)``, or objects with ``update``, ``compute`` and ``reset``.
        module: The model. In Composer's style it may have ``get_metrics(is_train)`` and ``update_metric(batch, outputs,
            metric)``; without the latter, ``update(outputs, targets)`` is called for batches ``(inputs, targets)``.
        device: Where they gather.
    """

    def __init__(self, metrics: Mapping[str, Any], module: torch.nn.Module, device: torch.device) -> None:
        own = getattr(module, "get_metrics", None)
        every = {**(own(is_train=False) if callable(own) else {}), **metrics}
        self._gathering = {name: metric for name, metric in every.items() if _gathers(metric)}
        self.functions: dict[str, Callable[[Any, Any], Any]] = {
            name: metric for name, metric in every.items() if name not in self._gathering
        }
        """Those whose mean over the samples is the result."""
        self._update = getattr(module, "update_metric", None)
        for metric in self._gathering.values():
            if callable(getattr(metric, "to", None)):
                metric.to(device)
            metric.reset()

    def update(self, outputs: Any, batch: Any) -> None:
        """Take in a batch.

        Raises:
            ConfigurationError: it has no targets that could be given to a metric.
        """
        for name, metric in self._gathering.items():
            if callable(self._update):
                self._update(batch, outputs, metric)
            elif isinstance(batch, (list, tuple)) and len(batch) == 2:  # noqa: PLR2004  (inputs and targets)
                metric.update(outputs, batch[1])
            else:
                raise ConfigurationError(
                    f"the metric {name!r} cannot be given a batch that is a {type(batch).__name__}",
                    hint="give the model an update_metric(batch, outputs, metric) method",
                )

    def results(self) -> dict[str, float]:
        """What they gathered, by name; a collection or a vector gives several numbers."""
        return {
            f"metrics/eval/{path}": float(value)
            for name, metric in self._gathering.items()
            for path, value in _flat(name, metric.compute())
        }


def _gathers(metric: Any) -> bool:
    return all(callable(getattr(metric, method, None)) for method in ("update", "compute", "reset"))


def _flat(name: str, value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        return [pair for key, part in value.items() for pair in _flat(f"{name}/{key}", part)]
    if isinstance(value, torch.Tensor) and value.numel() != 1:
        return [(f"{name}/{index}", part) for index, part in enumerate(value.flatten().tolist())]
    return [(name, value)]
