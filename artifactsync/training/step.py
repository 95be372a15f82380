"""One optimizer step: microbatches, losses, gradients.

Owns: what happens between a batch and the optimizers. Does not own: where batches come from, or when training ends
(``trainer``).

Invariant: nothing here waits for the device: losses stay tensors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from artifactsync.training.batch import split
from artifactsync.training.event import Event

if TYPE_CHECKING:
    from artifactsync.training.callback import CallbackTable
    from artifactsync.training.model import TrainableModel
    from artifactsync.training.precision import Precision
    from artifactsync.training.ranks import Ranks
    from artifactsync.training.state import State


class TrainStep:
    """Trains on one batch after the other.

    Args:
        state: The state; its ``outputs`` and ``loss`` are set.
        model: How outputs and losses are got.
        precision: What is computed in fewer bits.
        callbacks: Who is told.
        microbatch_size: Samples that go through the model at a time; gradients are accumulated. None is all at once.
        clip_norm: Largest norm of all gradients together; None clips nothing.
        ranks: Who shares the gradients.
    """

    def __init__(
        self,
        state: State,
        model: TrainableModel,
        precision: Precision,
        callbacks: CallbackTable,
        *,
        microbatch_size: int | None,
        clip_norm: float | None,
        ranks: Ranks,
    ) -> None:
        self._ranks = ranks
        self._state, self._model, self._precision, self._callbacks = state, model, precision, callbacks
        self._microbatch_size, self._clip_norm = microbatch_size, clip_norm

    def run(self, samples: int) -> None:
        """Train on ``state.batch``, which has so many samples."""
        state, scaler = self._state, self._precision.scaler
        for optimizer in state.optimizers:
            optimizer.zero_grad(set_to_none=True)
        whole, total = state.batch, None
        parts = split(whole, samples, self._microbatch_size)
        for number, (part, part_samples) in enumerate(parts, start=1):
            state.batch = part
            with self._ranks.without_sync(is_last=number == len(parts)):
                loss = self._backward(part_samples / samples)
            total = loss if total is None else total + loss
        state.batch, state.loss = whole, total
        if self._ranks.are_many and total is not None:
            state.loss = self._ranks.mean(total)
        if self._clip_norm is not None:
            for optimizer in state.optimizers if scaler is not None else ():
                scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(state.model.parameters(), self._clip_norm)
        if scaler is None:
            for optimizer in state.optimizers:
                optimizer.step()
            return
        for optimizer in state.optimizers:
            scaler.step(optimizer)
        scaler.update()

    def _backward(self, weight: float) -> torch.Tensor:
        """Add the gradients of ``state.batch``, which is that part of the whole; returns its part of the loss."""
        state, run = self._state, self._callbacks.run
        with self._precision.context():
            run(Event.BEFORE_FORWARD)
            state.outputs = self._model.forward(state.batch)
            run(Event.AFTER_FORWARD)
            run(Event.BEFORE_LOSS)
            loss = self._model.loss(state.outputs, state.batch)
            if weight != 1.0:
                loss = loss * weight
            state.loss = loss.detach()
            run(Event.AFTER_LOSS)
        run(Event.BEFORE_BACKWARD)
        (loss if self._precision.scaler is None else self._precision.scaler.scale(loss)).backward()
        run(Event.AFTER_BACKWARD)
        return state.loss  # type: ignore[no-any-return]  # set a few lines above
