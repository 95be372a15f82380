"""A progress bar on the terminal.

Invariant: it is drawn on a terminal only, and asks nothing of the device.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from artifactsync.training.callback import Callback

if TYPE_CHECKING:
    from artifactsync.loggers.logger import Logger
    from artifactsync.training.state import State


class ProgressBar(Callback):
    """Shows how much of ``max_duration`` is done, the epoch, the batch, and the time left."""

    def __init__(self) -> None:
        self._progress: Any = None
        self._task: Any = None

    def fit_start(self, state: State, logger: Logger) -> None:
        """Draw it, if stderr is a terminal."""
        if not sys.stderr.isatty():
            return
        from rich.console import Console  # noqa: PLC0415  (only on a terminal)
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn  # noqa: PLC0415

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._progress.add_task(state.run_name, total=1.0, completed=state.elapsed_duration or 0.0)
        self._progress.start()

    def batch_end(self, state: State, logger: Logger) -> None:
        """Move it; rich draws it ten times a second at most."""
        if self._progress is None:
            return
        done = state.timestamp
        within = 0.0
        batches = state.train_dataloader.batches if state.train_dataloader is not None else None
        if batches and state.max_duration is not None and state.max_duration.unit.value == "ep":
            within = done.batch_in_epoch / batches / state.max_duration.value
        self._progress.update(
            self._task,
            completed=(state.elapsed_duration or 0.0) + within,
            description=f"{state.run_name}  ep {done.epoch} ba {done.batch}",
        )

    def fit_end(self, state: State, logger: Logger) -> None:
        """Take it away."""
        self.close(state, logger)

    def close(self, state: State, logger: Logger) -> None:
        """Take it away, also after an error."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
