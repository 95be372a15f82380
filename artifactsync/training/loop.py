"""The loop: epochs, batches, and who is told of them.

Owns: the order of things within and between epochs, and what is carried from one to the next. Does not own: what a step
does (``step``), where data comes from (``dataloader``), or what is before the first epoch and after the last
(``trainer``).

Invariant: what a run does next depends on its state alone, so a resumed one goes on in the middle of an epoch as if it
had never left.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from artifactsync.errors import ConfigurationError
from artifactsync.training.batch import count_samples, count_tokens, to_device
from artifactsync.training.event import Event
from artifactsync.training.time import TimeUnit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from artifactsync.batch import StopSignal
    from artifactsync.training.callback import CallbackTable
    from artifactsync.training.dataloader import ResumableLoader
    from artifactsync.training.ending import Ending
    from artifactsync.training.ranks import Ranks
    from artifactsync.training.state import State
    from artifactsync.training.step import TrainStep

_NO_BATCH = object()


class Loop:
    """Trains for one epoch after the other, or for what is left of one.

    Args:
        state: The state; its timestamp moves.
        step: What is done with a batch.
        callbacks: Who is told.
        ranks: Who trains together.
        ending: How to end when told to stop.
        stop: Whether this process is told to; None never asks.
        evaluate_if_due: Called with the events after which an evaluation may be due.
        steps_schedulers_every_batch: Step the schedulers after each batch instead of each epoch.
    """

    def __init__(
        self,
        state: State,
        step: TrainStep,
        callbacks: CallbackTable,
        ranks: Ranks,
        ending: Ending,
        *,
        stop: StopSignal | None,
        evaluate_if_due: Callable[[Event], None],
        steps_schedulers_every_batch: bool,
    ) -> None:
        self._state, self._step, self._callbacks = state, step, callbacks
        self._ranks, self._ending, self._stop = ranks, ending, stop
        self._evaluate_if_due = evaluate_if_due
        self._steps_schedulers_every_batch = steps_schedulers_every_batch
        self._batches: Iterator[Any] | None = None  # of the running epoch
        self._loaded: dict[str, Any] | None = None

    def go_on_from(self, loaded: dict[str, Any] | None) -> None:
        """Note the saved state whose random numbers are to be set when the next epoch begins."""
        self._loaded = loaded

    def run_epoch(self, loader: ResumableLoader) -> None:
        """Train until the running epoch is over, or ``max_duration`` is reached.

        Raises:
            ConfigurationError: the data cannot be trained on.
        """
        state, run_event = self._state, self._callbacks.run
        if self._batches is None:
            self._batches = self._start_epoch(loader)
        state.model.train()
        if state.timestamp.batch_in_epoch == 0:
            run_event(Event.EPOCH_START)
        before = time.perf_counter()
        while True:
            run_event(Event.BEFORE_DATALOADER)
            state.batch = next(self._batches, _NO_BATCH)
            if state.batch is _NO_BATCH:
                break
            run_event(Event.AFTER_DATALOADER)
            samples, tokens = count_samples(state.batch), count_tokens(state.batch)
            if not tokens and state.max_duration and state.max_duration.unit is TimeUnit.TOKEN:
                raise ConfigurationError(
                    "max_duration counts tokens, but a batch has none: it would never end",
                    hint="give batches with input_ids, or a max_duration in batches, samples or epochs",
                )
            state.batch = to_device(state.batch, state.device)
            run_event(Event.BATCH_START)
            count = self._ranks.counting(samples, tokens, self._stop)
            self._step.run(samples)
            now = time.perf_counter()
            samples, tokens, duration_s = count(now - before)
            state.timestamp = state.timestamp.to_next_batch(samples=samples, tokens=tokens, duration_s=duration_s)
            before = now
            self._end_batch()
            if self._stop is not None and self._ranks.must_stop(self._stop) and not state.is_done:
                self._ending.stop(self._stop, state)
            if state.is_done and not state.is_epoch_over:
                return  # the next fit goes on in the middle of this epoch
        self._batches = state.batch = None
        if state.timestamp.batch_in_epoch == 0:
            raise ConfigurationError("the train_dataloader gave no batches", hint="check its dataset and drop_last")
        self._end_epoch(loader)

    def close(self) -> None:
        """End the workers of the running epoch."""
        self._batches = None

    def _start_epoch(self, loader: ResumableLoader) -> Iterator[Any]:
        """Begin the next epoch, or go on in the one that was resumed."""
        loaded, self._loaded = self._loaded, None
        if loaded is not None:
            self._state.restore_rng(loaded)
        batches = loader.start_epoch(self._state.timestamp.epoch)
        if loaded is not None and self._state.timestamp.batch_in_epoch:
            self._state.restore_rng(loaded)
        return batches

    def _end_batch(self) -> None:
        state, run_event = self._state, self._callbacks.run
        if self._steps_schedulers_every_batch:
            for scheduler in state.schedulers:
                scheduler.step()
        state.logger.step = state.timestamp.batch
        state.logger.log_metrics({"loss/train/total": state.loss})
        run_event(Event.BATCH_END)
        self._evaluate_if_due(Event.BATCH_END)
        run_event(Event.BATCH_CHECKPOINT)

    def _end_epoch(self, loader: ResumableLoader) -> None:
        state, run_event = self._state, self._callbacks.run
        loader.end_epoch()
        if not self._steps_schedulers_every_batch:
            for scheduler in state.schedulers:
                scheduler.step()
        state.timestamp = state.timestamp.to_next_epoch()
        run_event(Event.EPOCH_END)
        self._evaluate_if_due(Event.EPOCH_END)
        run_event(Event.EPOCH_CHECKPOINT)
