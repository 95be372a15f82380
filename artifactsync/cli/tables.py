"""Tables: aligned plain text for a pipe, a rich table for a terminal.

Owns: alignment. Does not own: which columns a command shows. Cells are made printable here.

Invariant: the plain form never cuts a cell, has no trailing blanks, and one row is one line.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from artifactsync.cli.terminal import display_width, printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

_GAP = "  "


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of a table."""

    title: str
    """The heading, as in CONTRACT §5."""
    is_number: bool = False
    """Aligned to the right."""
    style: str = ""
    """rich's style of the cells on a terminal."""
    folds: bool = False
    """May be broken over lines on a narrow terminal; the other columns keep their width."""


def plain_table(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> str:
    """The table as lines of text, heading first."""
    grid = [[column.title.upper() for column in columns], *([printable(cell) for cell in row] for row in rows)]
    widths = [max(display_width(row[index]) for row in grid) for index in range(len(columns))]
    lines = [
        _GAP.join(_aligned(cell, width, column) for cell, width, column in zip(row, widths, columns, strict=True))
        for row in grid
    ]
    return "\n".join(line.rstrip() for line in lines)


def rich_table(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> Table:
    """The table for a terminal."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, padding=(0, 1), show_edge=False)
    for column in columns:
        table.add_column(
            column.title,
            justify="right" if column.is_number else "left",
            style=column.style,
            overflow="fold",
            no_wrap=not column.folds,
        )
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    return table


def _aligned(cell: str, width: int, column: Column) -> str:
    blanks = " " * (width - display_width(cell))
    return blanks + cell if column.is_number else cell + blanks
