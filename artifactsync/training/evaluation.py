"""The model on data that it is not trained on.

Invariant: an evaluation changes nothing of training: not the mode of the model, not the random state.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from artifactsync.checkpoint.rng import preserved_rng
from artifactsync.training.batch import count_samples, to_device
from artifactsync.training.event import Event
from artifactsync.training.metrics import GatheringMetrics

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
    metrics: Mapping[str, Any],
    total: Callable[[torch.Tensor], torch.Tensor] = lambda sums: sums,
) -> dict[str, float]:
    """Run the model over a dataloader.

    Args:
        state: The state; ``eval_metrics`` is set.
        model: How outputs and losses are got.
        dataloader: The data.
        precision: What is computed in fewer bits.
        callbacks: Who is told.
        metrics: Functions of (outputs, batch) that give the mean of a number over a batch; torchmetrics' own; and the
            model's, if it has ``get_metrics``.
        total: Adds up what each of several ranks has summed.

    Returns:
        ``loss/eval/total`` and ``metrics/eval/<name>``, each the mean over all samples.
    """
    gathering = GatheringMetrics(metrics, state.model, state.device)
    metrics = gathering.functions
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
            gathering.update(state.outputs, state.batch)
            seen += samples
            callbacks.run(Event.EVAL_BATCH_END)
    *values, seen = total(torch.cat([sums, sums.new_tensor([seen])])).tolist()
    state.eval_metrics = {name: value / max(seen, 1) for name, value in zip(names, values, strict=True)}
    state.eval_metrics |= gathering.results()
    state.batch, state.outputs, state.loss = kept
    state.model.train(was_training)
    callbacks.run(Event.EVAL_END)
    return state.eval_metrics


def _wide(device: torch.device) -> torch.device:
    """Where 64-bit sums can be kept: MPS has none."""
    return torch.device("cpu") if device.type == "mps" else device
