"""A progress bar for one download.

Owns: how it looks. On anything but a terminal nothing is drawn.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextlib.contextmanager
def progress_bar(name: str, total_bytes: int) -> Iterator[Callable[[int], None]]:
    """Show a bar on stderr while inside.

    Args:
        name: What is being downloaded; shown as it is.
        total_bytes: Its length.

    Yields:
        What to call with the number of bytes that arrived.
    """
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(escape(shown), total=total_bytes)
        yield lambda count_bytes: progress.advance(task, count_bytes)
