"""A progress bar on stderr: files, bytes, rate, time left; nothing where stderr is no terminal.

Owns: the bar. Does not own: who reports progress (``transfer``).

Invariant: the bar shows itself only when a command takes long enough to wonder, and is gone when its block ends: what
remains on the screen is the command's own result.
"""

from __future__ import annotations

import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from artifactsync.cli.terminal import columns, is_rich
from artifactsync.cli.units import counted, human_bytes, human_duration, human_rate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.progress import Progress, Task, TaskID

SHOW_AFTER_S = 0.4
"""Seconds of silence before the bar appears."""

_REFRESH_PER_S = 5.0
_BAR_AND_GAPS = 3  # columns; on a narrow terminal the figures are worth more than the bar


class Bar:
    """Counts bytes; may be told of them from any thread. One without ``progress`` shows nothing."""

    def __init__(self, verb: str, progress: Progress | None = None, task: TaskID | None = None) -> None:
        self._verb, self._progress, self._task = verb, progress, task

    @property
    def is_shown(self) -> bool:
        """Whether anybody may see it."""
        return self._progress is not None

    def restart(self, files: int, total_bytes: int) -> None:
        """Begin anew, with other totals."""
        if self._progress is not None and self._task is not None:
            self._progress.reset(self._task, total=total_bytes, description=f"{self._verb} {counted(files, 'file')}")

    def advance(self, count_bytes: int) -> None:
        """So many more bytes have moved."""
        if self._progress is not None and self._task is not None:
            self._progress.advance(self._task, count_bytes)

    def set(self, done_bytes: int) -> None:
        """So many bytes have moved in all."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=done_bytes)


@contextmanager
def byte_bar(verb: str, *, is_wanted: bool) -> Iterator[Bar]:
    """Show a bar on stderr while the block runs, if it ``is_wanted`` and stderr is a terminal.

    Args:
        verb: What is going on: ``pulling``.
        is_wanted: False shows nothing.
    """
    if not (is_wanted and is_rich(sys.stderr)):
        yield Bar(verb)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    progress = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[figures]}", markup=False),
        console=Console(file=sys.stderr, markup=False, highlight=False, emoji=False),
        transient=True,
        expand=True,
        refresh_per_second=_REFRESH_PER_S,
    )
    task = progress.add_task(verb, total=None, figures="")
    is_over = threading.Event()

    def show() -> None:
        """Wait, then bring the figures up to date until the block ends."""
        if is_over.wait(SHOW_AFTER_S):
            return
        with progress:
            while not is_over.wait(1 / _REFRESH_PER_S):
                now = progress.tasks[0]
                progress.update(task, figures=_figures(now, columns() - len(now.description) - _BAR_AND_GAPS))

    shower = threading.Thread(target=show, name="artifactsync-bar", daemon=True)
    shower.start()
    try:
        yield Bar(verb, progress, task)
    finally:
        is_over.set()
        shower.join()


def _figures(task: Task, room: int) -> str:
    """``1.2 GiB of 3.4 GiB, 56.0 MiB/s, 32 s left``, or as much of it as ``room`` columns can have."""
    if task.total is None:
        return ""
    done = f"{human_bytes(task.completed)} of {human_bytes(task.total)}"
    percent = f"{int(task.percentage)} %"
    rate = [human_rate(task.speed)] if task.speed else []
    left = [f"{human_duration(task.time_remaining)} left"] if task.time_remaining else []
    forms = [[done, *rate, *left], [percent, *rate, *left], [percent, *left], [percent]]
    return next((text for text in map(", ".join, forms) if len(text) <= room), "")
