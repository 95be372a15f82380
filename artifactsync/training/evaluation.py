"""The model on data that it is not trained on.

Invariant: an evaluation changes nothing of training: not the mode of the model, not the random state.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from artifactsync.checkpoint.rng import preserved_rng
from artifactsync.training.batch import count_samples, to_device
from artifactsync.training.event import Event

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from artifactsync.training.callback import CallbackTable
    from artifactsync.training.model import TrainableModel
    from artifactsync.training.precision import Precision
    from artifactsync.training.state import State


def evaluate(
    state: State,
    model: TrainableModel,
    dataloader: Iterable[Any],
    *,
    precision: Precision,
    callbacks: CallbackTable,
    metrics: Mapping[str, Callable[[Any, Any], Any]],
) -> dict[str, float]:
    """Run the model over a dataloader.

    Args:
        state: The state; ``eval_metrics`` is set.
        model: How outputs and losses are got.
        dataloader: The data.
        precision: What is computed in fewer bits.
        callbacks: Who is told.
        metrics: Functions of (outputs, batch) that give the mean of a number over a batch.

    Returns:
        ``loss/eval/total`` and ``metrics/eval/<name>``, each the mean over all samples.
    """
    names = ["loss/eval/total", *(f"metrics/eval/{name}" for name in metrics)]
    was_training = state.model.training
    kept = state.batch, state.outputs, state.loss
    state.model.eval()
    callbacks.run(Event.EVAL_START)
    sums, seen = torch.zeros(len(names), dtype=torch.float64, device=_wide(state.device)), 0
    with preserved_rng(), torch.no_grad():
        for batch in dataloader:
            state.batch = to_device(batch, state.device)
            samples = count_samples(state.batch)
            with precision.context():
                state.outputs = model.eval_forward(state.batch)
                state.loss = model.loss(state.outputs, state.batch)
            values = [state.loss, *(function(state.outputs, state.batch) for function in metrics.values())]
            sums += samples * torch.stack([torch.as_tensor(v).detach().to(sums).reshape(()) for v in values])
            seen += samples
            callbacks.run(Event.EVAL_BATCH_END)
    state.eval_metrics = dict(zip(names, (sums / max(seen, 1)).tolist(), strict=True))
    state.batch, state.outputs, state.loss = kept
    state.model.train(was_training)
    callbacks.run(Event.EVAL_END)
    return state.eval_metrics


def _wide(device: torch.device) -> torch.device:
    """Where 64-bit sums can be kept: MPS has none."""
    return torch.device("cpu") if device.type == "mps" else device
