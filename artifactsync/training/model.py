"""The two forms in which a model may be given, as one.

Owns: how outputs and losses are got from a model and a batch. Does not own: devices, precision, backward (``trainer``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from artifactsync.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable


class TrainableModel:
    """A model with ``forward(batch)`` and ``loss(outputs, batch)``, or an ``nn.Module`` and a loss function.

    Args:
        module: The model. In Composer's style it has ``loss(outputs, batch)``, its ``forward`` takes the whole batch,
            and it may have ``eval_forward(batch)``. A plain module is called with the inputs of ``(inputs, targets)``.
        loss_fn: For a plain module: ``loss_fn(outputs, targets)``.

    Raises:
        ConfigurationError: it is neither.
    """

    def __init__(self, module: torch.nn.Module, loss_fn: Callable[[Any, Any], torch.Tensor] | None = None) -> None:
        if not isinstance(module, torch.nn.Module):
            raise ConfigurationError(
                f"the model is a {type(module).__name__}, not a torch.nn.Module", hint="derive it from torch.nn.Module"
            )
        if loss_fn is None and not callable(getattr(module, "loss", None)):
            raise ConfigurationError(
                f"{type(module).__name__} has no loss(outputs, batch) method, and no loss_fn was given",
                hint="pass loss_fn=torch.nn.CrossEntropyLoss() or the like, or give the model a loss method",
            )
        self.module = module
        self.called: torch.nn.Module = module
        """What a training step calls: the module, or what shares its gradients with other ranks."""
        self._loss_fn = loss_fn

    def forward(self, batch: Any) -> Any:
        """Outputs for a batch."""
        return self._call(self.called, batch)

    def _call(self, module: torch.nn.Module, batch: Any) -> Any:
        return module(batch) if self._loss_fn is None else module(_pair(batch)[0])

    def eval_forward(self, batch: Any) -> Any:
        """Outputs for a batch of an evaluation."""
        own = getattr(self.module, "eval_forward", None)
        return own(batch) if callable(own) else self._call(self.module, batch)

    def loss(self, outputs: Any, batch: Any) -> torch.Tensor:
        """The mean loss of a batch: a tensor of one element."""
        if self._loss_fn is not None:
            return self._loss_fn(outputs, _pair(batch)[1])
        loss = self.module.loss(outputs, batch)  # type: ignore[operator]  # checked when this was made
        if isinstance(loss, (list, tuple)):
            return torch.stack(list(loss)).sum()
        if isinstance(loss, dict):
            return loss["total"] if "total" in loss else torch.stack(list(loss.values())).sum()
        if not isinstance(loss, torch.Tensor):
            raise ConfigurationError(f"the model's loss() gave a {type(loss).__name__}", hint="return a tensor")
        return loss


def _pair(batch: Any) -> tuple[Any, Any]:
    if isinstance(batch, (list, tuple)) and len(batch) == 2:  # noqa: PLR2004  (inputs and targets)
        return batch[0], batch[1]
    raise ConfigurationError(
        f"with loss_fn a batch must be (inputs, targets), not a {type(batch).__name__}",
        hint="give the model a loss(outputs, batch) method, and leave loss_fn out",
    )
