"""All that a training run is at one moment.

Owns: ``State``: what callbacks see, and what a checkpoint of the trainer holds. Does not own: the loop (``trainer``).

Invariant: ``load_state_dict(state_dict())`` in a new process continues the run as if it had never stopped.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from artifactsync.checkpoint.load import restore
from artifactsync.checkpoint.rng import get_rng_state, set_rng_state
from artifactsync.errors import NewerFormatError
from artifactsync.loggers.logger import Logger, named
from artifactsync.training.time import Time, Timestamp, TimeUnit

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from artifactsync.checkpoint.local_run import LocalRun
    from artifactsync.run import Run
    from artifactsync.training.callback import Callback
    from artifactsync.training.dataloader import ResumableLoader
    from artifactsync.training.profiler import Profiler

FORMAT = 1
"""Version of what ``state_dict`` gives; a newer one is refused."""


@dataclass(kw_only=True)
class State:
    """The state of training. Callbacks may read everything, and change what they know how to change."""

    run_name: str
    """The run's name."""
    model: torch.nn.Module
    """The model, as the user gave it."""
    optimizers: list[torch.optim.Optimizer]
    """Its optimizers."""
    schedulers: list[Any]
    """Learning rate schedulers."""
    device: torch.device
    """Where the model is."""
    max_duration: Time | None = None
    """When training ends."""
    train_dataloader: ResumableLoader | None = None
    """The training data with its position."""
    run: Run | LocalRun | None = None
    """Where checkpoints and logs go; None where there is no remote."""
    seed: int | None = None
    """What the run was seeded with."""
    scaler: Any = None
    """Gradient scaler of ``amp_fp16``."""
    callbacks: Sequence[Callback] = ()
    """The callbacks, in the order in which they are called."""
    logger: Logger = field(default_factory=Logger)
    """Where metrics go."""
    profiler: Profiler | None = None
    """What traces batches; ``with state.profiler.marker("my part"):`` adds a span of your own."""
    timestamp: Timestamp = field(default_factory=Timestamp)
    """What is done."""
    batch: Any = None
    """The running batch, on the device."""
    outputs: Any = None
    """What the model made of the running microbatch."""
    loss: Any = None
    """Mean loss of the running batch, detached."""
    eval_metrics: dict[str, float] = field(default_factory=dict)
    """Results of the last evaluation."""

    @property
    def elapsed_duration(self) -> float | None:
        """The part of ``max_duration`` that is done, from 0 up; None without one."""
        if self.max_duration is None:
            return None
        if self.max_duration.value <= 0:
            return 1.0
        return self.timestamp.count(self.max_duration.unit) / self.max_duration.value

    @property
    def is_done(self) -> bool:
        """Whether ``max_duration`` is reached."""
        elapsed = self.elapsed_duration
        return elapsed is not None and elapsed >= 1.0

    @property
    def is_epoch_over(self) -> bool:
        """Whether the running epoch has no more batches, where the dataloader knows their number."""
        batches = None if self.train_dataloader is None else self.train_dataloader.batches
        return batches is not None and self.timestamp.batch_in_epoch >= batches

    @property
    def is_last_epoch_over(self) -> bool:
        """Whether training ends with the epoch whose last batch is done."""
        if not self.is_epoch_over or self.max_duration is None:
            return False
        epochs = self.max_duration.value if self.max_duration.unit is TimeUnit.EPOCH else None
        return self.is_done or (epochs is not None and self.timestamp.epoch + 1 >= epochs)

    @property
    def progress(self) -> float:
        """The part of ``max_duration`` that is done, with the part of a running epoch where its length is known."""
        elapsed = self.elapsed_duration or 0.0
        batches = None if self.train_dataloader is None else self.train_dataloader.batches
        if batches and self.max_duration is not None and self.max_duration.unit is TimeUnit.EPOCH and elapsed < 1.0:
            elapsed += self.timestamp.batch_in_epoch / batches / self.max_duration.value
        return elapsed

    @property
    def is_sharded(self) -> bool:
        """Whether the model is spread over ranks (FSDP2)."""
        return any(hasattr(parameter, "placements") for parameter in self.model.parameters())

    def extend(self, duration: Time) -> None:
        """Train for so much more time from here."""
        done = self.timestamp.get(duration.unit)
        self.max_duration = Time(done.value + duration.value, duration.unit)

    def state_dict(self) -> dict[str, Any]:
        """All that a checkpoint holds. Tensors are the live ones: the caller copies them."""
        return {
            "format": FORMAT,
            "run_name": self.run_name,
            "timestamp": self.timestamp.state_dict(),
            "seed": self.seed,
            # Sharded ones are asked by whoever saves: what their shards are is not for one rank to say.
            "model": self.model if self.is_sharded else self.model.state_dict(),
            "optimizers": list(self.optimizers)
            if self.is_sharded
            else [optimizer.state_dict() for optimizer in self.optimizers],
            "schedulers": [scheduler.state_dict() for scheduler in self.schedulers],
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "rng": get_rng_state(),
            "train_dataloader": None if self.train_dataloader is None else self.train_dataloader.state_dict(),
            "callbacks": {name: state for name, callback in named(self.callbacks) if (state := callback.state_dict())},
            "loggers": self.logger.state_dict(),
            "eval_metrics": dict(self.eval_metrics),
        }

    def load_state_dict(self, saved: dict[str, Any], *, strict: bool = True) -> None:
        """Continue from ``saved``: everything but the global random state, which ``restore_rng`` sets.

        Args:
            saved: What ``state_dict`` gave.
            strict: As for ``torch.nn.Module.load_state_dict``.

        Raises:
            NewerFormatError: a newer version wrote it.
            ConfigurationError: it does not fit the model, the optimizers or the schedulers.
        """
        if saved["format"] > FORMAT:
            raise NewerFormatError(
                f"the checkpoint has state format {saved['format']}, newer than {FORMAT}",
                hint="upgrade artifactsync",
            )
        if "model" in saved:  # else its shards are loaded already
            restore(self.model, saved["model"], strict=strict, path="model")
        if "optimizers" in saved:
            restore(self.optimizers, saved["optimizers"], strict=strict, path="optimizers")
        restore(self.schedulers, saved["schedulers"], strict=strict, path="schedulers")
        if self.scaler is not None and saved["scaler"] is not None:
            restore(self.scaler, saved["scaler"], path="scaler")
        self.timestamp = Timestamp.from_state_dict(saved["timestamp"])
        self.seed = saved["seed"]
        self.eval_metrics = dict(saved["eval_metrics"])
        if self.train_dataloader is not None and saved.get("train_dataloader") is not None:
            self.train_dataloader.load_state_dict(saved["train_dataloader"])
        for name, callback in named(self.callbacks):
            if name in saved["callbacks"]:
                callback.load_state_dict(saved["callbacks"][name])
        self.logger.load_state_dict(saved.get("loggers", {}))

    def load_model(self, saved: dict[str, Any], *, strict: bool = True) -> None:
        """Take the model alone from ``saved``.

        Raises:
            ConfigurationError: it does not fit.
        """
        restore(self.model, saved["model"], strict=strict, path="model")

    @staticmethod
    def restore_rng(saved: dict[str, Any]) -> None:
        """Set the global random state of a checkpoint, once everything that draws from it is in its place."""
        set_rng_state(saved["rng"])
