"""Code of the user's that runs at the moments of training.

Owns: ``Callback`` and the table of who wants which event. Does not own: the events (``event``), or what is logged
(``artifactsync.loggers``).

Invariant: a method that a callback does not override costs nothing in the training loop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from artifactsync.training.event import Event

if TYPE_CHECKING:
    from collections.abc import Sequence

    from artifactsync.loggers.logger import Logger
    from artifactsync.training.state import State


class Callback:
    """Override the methods for the moments you want; each is called with the state and the logger.

    ``state_dict`` and ``load_state_dict`` make what the callback knows survive a resume.
    """

    def run_event(self, event: Event, state: State, logger: Logger) -> None:
        """Call the method for ``event``. Override it to see every event in one place."""
        getattr(self, event.value)(state, logger)

    def init(self, state: State, logger: Logger) -> None:
        """The trainer was made; nothing is loaded yet."""

    def after_load(self, state: State, logger: Logger) -> None:
        """A checkpoint was loaded, or there was none to load."""

    def fit_start(self, state: State, logger: Logger) -> None:
        """``fit`` begins."""

    def epoch_start(self, state: State, logger: Logger) -> None:
        """An epoch begins; not called when a resume continues one."""

    def before_dataloader(self, state: State, logger: Logger) -> None:
        """A batch is about to be taken from the dataloader."""

    def after_dataloader(self, state: State, logger: Logger) -> None:
        """``state.batch`` was taken from the dataloader."""

    def batch_start(self, state: State, logger: Logger) -> None:
        """The batch is on the device."""

    def before_forward(self, state: State, logger: Logger) -> None:
        """Before the model is called."""

    def after_forward(self, state: State, logger: Logger) -> None:
        """``state.outputs`` is there."""

    def before_loss(self, state: State, logger: Logger) -> None:
        """Before the loss is computed."""

    def after_loss(self, state: State, logger: Logger) -> None:
        """``state.loss`` is there."""

    def before_backward(self, state: State, logger: Logger) -> None:
        """Before the backward pass."""

    def after_backward(self, state: State, logger: Logger) -> None:
        """The gradients of this microbatch are there."""

    def batch_end(self, state: State, logger: Logger) -> None:
        """The optimizer has stepped, and the timestamp has moved."""

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        """After the batch, with its logs and evaluation done."""

    def epoch_end(self, state: State, logger: Logger) -> None:
        """The epoch is done, and the timestamp has moved."""

    def epoch_checkpoint(self, state: State, logger: Logger) -> None:
        """After the epoch, with its logs and evaluation done."""

    def eval_start(self, state: State, logger: Logger) -> None:
        """An evaluation begins."""

    def eval_batch_end(self, state: State, logger: Logger) -> None:
        """A batch of an evaluation is done."""

    def eval_end(self, state: State, logger: Logger) -> None:
        """An evaluation is done; ``state.eval_metrics`` is there."""

    def fit_end(self, state: State, logger: Logger) -> None:
        """``fit`` is done; what was saved may still be on its way."""

    def close(self, state: State, logger: Logger) -> None:
        """The trainer is done with this callback, also after an error: release what you hold."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to know; numbers, strings and tensors."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what ``state_dict`` gave."""


class CallbackTable:
    """Who is called when, worked out once.

    Args:
        callbacks: In the order in which they are called.
        state: Given to each.
        logger: Given to each.
    """

    def __init__(self, callbacks: Sequence[Callback], state: State, logger: Logger) -> None:
        self.callbacks = list(callbacks)
        self._state, self._logger = state, logger
        self._wanted = {event: [c for c in self.callbacks if _wants(c, event)] for event in Event}

    def run(self, event: Event) -> None:
        """Call everyone who wants ``event``."""
        for callback in self._wanted[event]:
            callback.run_event(event, self._state, self._logger)

    def close(self) -> None:
        """Close every callback, the last one first; raise the first error after all were closed."""
        first: Exception | None = None
        for callback in reversed(self.callbacks):
            try:
                callback.close(self._state, self._logger)
            except Exception as error:  # noqa: BLE001, PERF203  (raised below)
                first = first or error
        if first is not None:
            raise first


def _wants(callback: Callback, event: Event) -> bool:
    kind = type(callback)
    return kind.run_event is not Callback.run_event or getattr(kind, event.value) is not getattr(Callback, event.value)
