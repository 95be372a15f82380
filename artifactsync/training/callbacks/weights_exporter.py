"""The model alone, as a file that anybody opens: for inference, for others, for the next stage.

Owns: when and where the file is written. Does not own: checkpoints to resume from (``CheckpointSaver``).

Invariant: a file appears when it is whole, and is mirrored then; it is an artifact, and never taken for a checkpoint.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from artifactsync.batch import placement
from artifactsync.checkpoint.image import FileImage
from artifactsync.checkpoint.safetensors_file import SafetensorsImage
from artifactsync.errors import ArtifactSyncError, DestinationError
from artifactsync.loggers.logger import check_path_template
from artifactsync.naming import render_path
from artifactsync.training.callback import Callback
from artifactsync.training.event import Event
from artifactsync.training.schedule import schedule_of

if TYPE_CHECKING:
    from pathlib import Path

    from artifactsync.loggers.logger import Logger
    from artifactsync.training.state import State


class WeightsExporter(Callback):
    """Writes ``model.state_dict()`` every so often, and mirrors it. ``torch.load(weights_only=True)`` opens it.

    A ``filename`` that ends in ``.safetensors`` gives a file of that format, whose tensors cannot share memory.

    ``Trainer(load_path=…, load_weights_only=True)`` takes it too. Rank 0 alone writes.

    Args:
        folder: Template of the folder below the local root; it begins with ``{run_name}/``.
        filename: Template of the file in it.
        interval: ``"1ep"``, ``"100ba"`` …, or ``function(state, event) -> bool``; the end of training is always due.

    Raises:
        ConfigurationError: the interval makes no sense, or a template cannot be filled.
    """

    def __init__(
        self, folder: str = "{run_name}/weights", filename: str = "ep{epoch}-ba{batch}.pt", *, interval: Any = "1dur"
    ) -> None:
        self.template = check_path_template(f"{folder.rstrip('/')}/{filename}")
        self._schedule = schedule_of(interval)

    def fit_start(self, state: State, logger: Logger) -> None:
        """Count the intervals from here."""
        self._schedule.start(state)

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        """Export if it is time."""
        if self._schedule.is_due(state, Event.BATCH_CHECKPOINT):
            self.export(state)

    def epoch_checkpoint(self, state: State, logger: Logger) -> None:
        """Export if it is time."""
        if self._schedule.is_due(state, Event.EPOCH_CHECKPOINT):
            self.export(state)

    def export(self, state: State) -> Path | None:
        """Write the weights now, and mirror them; None on ranks above 0.

        Raises:
            DestinationError: the file cannot be written.
            ConfigurationError: the format cannot hold the weights; says which.
        """
        place = placement()
        if state.run is None or place.rank:
            return None
        rendered = render_path(
            self.template,
            run_name=state.run_name,
            attempt=state.run.attempt,
            **place.__dict__,
            **state.timestamp.placeholders(),
        )
        path = state.run.local_dir.joinpath(*rendered.removeprefix(f"{state.run_name}/").split("/"))
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        weights = {name: value.detach().cpu() for name, value in state.model.state_dict().items()}
        image = SafetensorsImage(weights) if path.suffix == ".safetensors" else FileImage({"model": weights})
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                file.writelines(image.slices())
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except (OSError, RuntimeError) as error:
            temporary.unlink(missing_ok=True)
            raise DestinationError(
                f"cannot write the weights {path}: {error}", hint="free some space, or choose another local_root"
            ) from error
        try:
            state.run.push(path)
        except ArtifactSyncError as error:
            raise type(error)(f"the weights {path} are not mirrored: {error.message}", hint=error.hint) from error
        return path
