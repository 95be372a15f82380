"""Hugging Face ``Trainer``: each ``checkpoint-N`` folder committed as one checkpoint, and back by run name.

Owns: ``ArtifactSyncCallback``. Does not own: what is in the folders (transformers), how they are committed
(``folders``).

Invariant: a folder is published after the framework says that it is whole, on every rank.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from artifactsync.errors import MissingPackageError

try:
    from transformers import TrainerCallback
except ModuleNotFoundError as missing:
    raise MissingPackageError(
        "artifactsync.integrations.transformers needs transformers", hint="pip install 'artifactsync[transformers]'"
    ) from missing

from artifactsync.integrations.folders import FolderRun
from artifactsync.integrations.held_run import plain_metrics

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

_NAME = re.compile(r"checkpoint-\d+")


class ArtifactSyncCallback(FolderRun, TrainerCallback):
    """Puts every checkpoint of a Hugging Face ``Trainer`` into the run, behind the training loop.

    ``save_steps``, ``save_strategy`` and ``save_total_limit`` of the ``TrainingArguments`` go on deciding what is saved
    and what stays on this disk; ``retention`` decides what stays on the remote. The framework itself writes the folder
    while training stands still; this adds links to its files to that, and nothing else.

    See ``HeldRun`` for the arguments.
    """

    def resume_from_checkpoint(self) -> str | None:
        """The newest checkpoint's folder on this disk, verified, for ``Trainer.train``; None if the run has none yet.

        Raises:
            DamagedError: no checkpoint of the run is whole.
            RunIsLiveError: another process that is alive owns the run.
        """
        folder = self.fetch_folder(lambda name: _NAME.fullmatch(name) is not None)
        return None if folder is None else str(folder)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Claim the run, before any work is done in vain."""
        del args, control, kwargs
        if state.is_world_process_zero:
            self.run  # noqa: B018 - opens it

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Publish the folder that was just written.

        Raises:
            RunFencedError: a later attempt owns the run; training stops.
        """
        del control, kwargs
        _wait_for_every_rank()
        if not state.is_world_process_zero:
            return
        # What was evaluated last is what this checkpoint is.
        metrics: dict[str, float] = {}
        for row in state.log_history:
            metrics.update(plain_metrics({name: row[name] for name in row if name not in {"step", "epoch"}}))
        self.save_folder(
            Path(args.output_dir or ".") / f"checkpoint-{state.global_step}",
            step=state.global_step,
            epoch=int(state.epoch or 0),
            metrics=metrics,
        )

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Wait until everything is durable.

        Raises:
            NotDurableError: something is not.
        """
        del args, state, control, kwargs
        self.close()


def _wait_for_every_rank() -> None:
    """Each rank writes a file of its own into the folder; the framework does not wait for them."""
    from torch import distributed  # noqa: PLC0415 - transformers works without torch, too

    if distributed.is_available() and distributed.is_initialized():
        distributed.barrier()
