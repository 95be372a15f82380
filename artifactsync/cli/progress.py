"""A progress bar on stderr: bytes, rate, time left; nothing where stderr is no terminal.

Owns: the bar. Does not own: who reports progress (``transfer``).

Invariant: the bar is gone when its block ends; what remains on the screen is the command's own result.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from artifactsync.cli.terminal import is_rich

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.progress import Progress, TaskID

_REFRESH_PER_S = 5.0


class Bar:
    """Counts bytes; may be told of them from any thread. One without ``progress`` shows nothing."""

    def __init__(self, progress: Progress | None = None, task: TaskID | None = None) -> None:
        self._progress, self._task = progress, task

    @property
    def is_shown(self) -> bool:
        """Whether anybody sees it."""
        return self._progress is not None

    def restart(self, total_bytes: int) -> None:
        """Begin anew, with another total."""
        if self._progress is not None and self._task is not None:
            self._progress.reset(self._task, total=total_bytes)

    def advance(self, count_bytes: int) -> None:
        """So many more bytes have moved."""
        if self._progress is not None and self._task is not None:
            self._progress.advance(self._task, count_bytes)

    def set(self, done_bytes: int) -> None:
        """So many bytes have moved in all."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=done_bytes)


@contextmanager
def byte_bar(title: str, *, is_wanted: bool) -> Iterator[Bar]:
    """Show a bar on stderr while the block runs, if it ``is_wanted`` and stderr is a terminal."""
    if not (is_wanted and is_rich(sys.stderr)):
        yield Bar()
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(compact=True),
        console=Console(file=sys.stderr, markup=False, highlight=False, emoji=False),
        transient=True,
        expand=True,
        refresh_per_second=_REFRESH_PER_S,
    ) as progress:
        yield Bar(progress, progress.add_task(title, total=None))
