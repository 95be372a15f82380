"""Saves the trainer's state every so often.

Owns: when, under which name, and how many local files are kept. Does not own: copying, writing, committing
(``checkpoint``, ``run``), or what is kept on the remote.

Invariant: a local file is removed only when its checkpoint is committed and newer ones are too.
"""

from __future__ import annotations

import fnmatch
import re
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from artifactsync.batch import placement
from artifactsync.checkpoint.state_io import save_state
from artifactsync.errors import ArtifactSyncError, ConfigurationError
from artifactsync.journal.pending import SupersededError
from artifactsync.loggers.logger import check_path_template
from artifactsync.naming import render_path
from artifactsync.training.callback import Callback
from artifactsync.training.event import Event
from artifactsync.training.ranks import PER_RANK
from artifactsync.training.schedule import schedule_of
from artifactsync.transfer.removal import remove_file

if TYPE_CHECKING:
    from pathlib import Path

    from artifactsync.loggers.logger import Logger
    from artifactsync.run import PendingCheckpoint
    from artifactsync.training.state import State


class CheckpointSaver(Callback):
    """Saves a checkpoint at every interval and at the end of training.

    Args:
        folder: Template of the folder below the local root; it begins with ``{run_name}/``.
        filename: Template of the file in it.
        save_interval: ``"1ep"``, ``"100ba"``, ``"10min"`` …, or ``function(state, event) -> bool``.
        num_checkpoints_to_keep: Local files kept of those that are committed; -1 keeps all. The newest file is never
            removed by it while the run goes on. What the remote keeps is ``retention`` of ``Run``, and
            ``artifactsync prune``.
        overlap: Copy parameters and optimizer states during the next forward and backward, and let the optimizers wait
            for what is left. For models and callbacks that change parameters in an optimizer's step alone: otherwise
            the checkpoint fails and says so, and later ones are copied at once.

    Raises:
        ConfigurationError: the interval or the number makes no sense.
    """

    def __init__(
        self,
        folder: str = "{run_name}/checkpoints",
        filename: str = "ep{epoch}-ba{batch}-rank{rank}.pt",
        *,
        save_interval: Any = "1ep",
        num_checkpoints_to_keep: int = -1,
        overlap: bool = False,
    ) -> None:
        if num_checkpoints_to_keep < -1:
            raise ConfigurationError(
                f"num_checkpoints_to_keep is {num_checkpoints_to_keep}", hint="-1 keeps all, 3 keeps the newest three"
            )
        self.template = check_path_template(f"{folder.rstrip('/')}/{filename}")
        self.saved: list[PendingCheckpoint] = []
        """Checkpoints of this attempt whose local files are kept, oldest first."""
        self._schedule = schedule_of(save_interval)
        self._keep = num_checkpoints_to_keep
        self._overlap = overlap
        self._files: dict[int, Path] = {}
        self._last: tuple[int, int] | None = None
        self._earlier: list[Path] = []  # local files of committed checkpoints of earlier attempts, oldest first

    def after_load(self, state: State, logger: Logger) -> None:
        """Count the local files that earlier attempts left among those that are kept."""
        if self._keep < 0 or state.run is None:
            return
        pattern = re.sub(r"\{[^}]*\}", "*", self.template.removeprefix("{run_name}/"))
        paths = [file.path for checkpoint in state.run.checkpoints() for file in checkpoint.files]
        found = [state.run.local_dir.joinpath(*p.split("/")) for p in paths if fnmatch.fnmatchcase(p, pattern)]
        self._earlier = [path for path in dict.fromkeys(found) if path.is_file()]

    def fit_start(self, state: State, logger: Logger) -> None:
        """Count the intervals from here."""
        self._schedule.start(state)

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        """Save if it is time."""
        if self._schedule.is_due(state, Event.BATCH_CHECKPOINT):
            self.save(state, logger)

    def epoch_checkpoint(self, state: State, logger: Logger) -> None:
        """Save if it is time."""
        if self._schedule.is_due(state, Event.EPOCH_CHECKPOINT):
            self.save(state, logger)

    def save(self, state: State, logger: Logger) -> PendingCheckpoint | None:
        """Save now, unless this very state was saved before; returns when the state is copied."""
        if state.run is None or self._last == (state.timestamp.epoch, state.timestamp.batch):
            return None
        if state.profiler is None:
            return self._save(state, logger)
        with state.profiler.marker("checkpoint"):
            return self._save(state, logger)

    def _save(self, state: State, logger: Logger) -> PendingCheckpoint:
        assert state.run is not None, "asked in save()"
        timestamp, began = state.timestamp, time.monotonic()
        pushed = logger.flush()
        path = self._path(state)
        metrics = dict(state.eval_metrics)
        if state.loss is not None:
            metrics["loss/train/total"] = float(state.loss)

        def logs_are_durable() -> None:
            # So that no step is missing from the log of whoever resumes here. A log that fails must not keep the
            # checkpoint from its commit: it is told by wait() and close().
            for files in pushed:
                with suppress(ArtifactSyncError):
                    files.result()

        self._last = (timestamp.epoch, timestamp.batch)
        pending = save_state(
            state.run,
            state.state_dict(),
            step=timestamp.batch,
            epoch=timestamp.epoch,
            batch=timestamp.batch,
            metrics=metrics,
            path=path,
            barrier=logs_are_durable,
            per_rank=PER_RANK,
            overlap=state.optimizers if self._overlap else (),
        )
        pending.timing.stalled(time.monotonic() - began)
        if pending.done() and isinstance(pending.exception(), SupersededError):  # skipped: the next one is due as ever
            return pending
        self.saved.append(pending)
        self._files[id(pending)] = state.run.local_dir.joinpath(*path.split("/"))
        self._forget_old()
        return pending

    def close(self, state: State, logger: Logger) -> None:
        """Remove the last local files that are not to be kept."""
        self._forget_old()

    def state_dict(self) -> dict[str, Any]:
        """What was saved last: the state that is being saved."""
        return {"last": self._last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Do not save the very state again that was resumed."""
        self._last = tuple(state["last"]) if state["last"] else None

    def _path(self, state: State) -> str:
        """The file's path below the run's folder."""
        place = placement()
        rendered = render_path(
            self.template,
            run_name=state.run_name,
            attempt=1 if state.run is None else state.run.attempt,
            **place.__dict__,
            **state.timestamp.placeholders(),
        )
        return rendered.removeprefix(f"{state.run_name}/")

    def _forget_old(self) -> None:
        if self._keep < 0:
            return
        kept = max(self._keep, 1)
        for pending in [p for p in self.saved if p.done() and isinstance(p.exception(), SupersededError)]:
            self.saved.remove(pending)  # a newer one is durable
            file = self._files.pop(id(pending))
            if file not in self._files.values():
                remove_file(file)
        committed = [p for p in self.saved if p.done() and p.exception() is None]
        live = {self._files[id(p)] for p in self.saved if p not in committed or p in committed[-kept:]}
        surplus = max(0, len(self._earlier) - max(0, kept - len(committed)))
        for file in self._earlier[:surplus]:
            if file not in live:
                remove_file(file)
        del self._earlier[:surplus]
        for pending in committed[:-kept]:
            self.saved.remove(pending)
            file = self._files.pop(id(pending))
            if file not in live:
                remove_file(file)
