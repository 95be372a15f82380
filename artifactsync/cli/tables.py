"""Tables: aligned plain text for a pipe, a rich table for a terminal.

Owns: alignment. Does not own: which columns a command shows. Cells are made printable here.

Invariant: no form ever cuts a cell; the plain one has no trailing blanks, and one row of it is one line.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING

from artifactsync.cli.terminal import display_width, printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType
    from rich.table import Table

_GAP = "  "
_BREAK = "\u00ad"  # a soft hyphen: where a heading may be broken if the terminal is narrow
_NO_BREAK = "\u00a0"  # no cell has one: printable() writes it as an escape
_NARROWEST = 20  # columns; a name that is broken into shorter pieces cannot be read


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of a table."""

    title: str
    """The heading, as in CONTRACT §5; it may be broken at blanks and soft hyphens."""
    is_number: bool = False
    """Aligned to the right."""
    style: str = ""
    """rich's style of the cells on a terminal."""
    folds: bool = False
    """May be broken over lines on a narrow terminal; the other columns keep their width."""

    @property
    def heading(self) -> str:
        """The heading in one line."""
        return self.title.replace(_BREAK, "")

    @property
    def broken_heading(self) -> str:
        """The heading in as many lines as it can have."""
        return self.title.replace(_BREAK, "-\n").replace(" ", "\n")


def plain_table(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> str:
    """The table as lines of text, heading first."""
    grid = [[column.heading.upper() for column in columns], *([printable(cell) for cell in row] for row in rows)]
    widths = [max(display_width(row[index]) for row in grid) for index in range(len(columns))]
    lines = [
        _GAP.join(_aligned(cell, width, column) for cell, width, column in zip(row, widths, columns, strict=True))
        for row in grid
    ]
    return "\n".join(line.rstrip() for line in lines)


def rich_table(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int) -> RenderableType:
    """The table for a terminal of ``width`` columns.

    What does not fit has its headings broken, then its foldable cells; where even that leaves nothing to read, each
    row becomes a paragraph.
    """
    cells = [[printable(cell) for cell in row] for row in rows]
    room = width - len(_GAP) * (len(columns) - 1)
    for headings in ([column.heading for column in columns], [column.broken_heading for column in columns]):
        widths = [
            max(map(display_width, (*heading.split("\n"), *(row[index] for row in cells))))
            for index, heading in enumerate(headings)
        ]
        if sum(widths) <= room:
            return _table(columns, headings, widths, cells)
    widths = _folded(columns, widths, room)
    return _table(columns, headings, widths, cells) if widths else _paragraphs(columns, cells, width)


def _folded(columns: Sequence[Column], widths: Sequence[int], room: int) -> list[int]:
    """The widths after the foldable columns have shared what the others leave; empty if that is too little."""
    folded = list(widths)
    narrow_first = sorted((index for index, column in enumerate(columns) if column.folds), key=widths.__getitem__)
    left = room - sum(width for width, column in zip(widths, columns, strict=True) if not column.folds)
    for done, index in enumerate(narrow_first):
        folded[index] = min(widths[index], left // (len(narrow_first) - done))
        left -= folded[index]
        if folded[index] < min(widths[index], _NARROWEST):
            return []
    return folded if narrow_first else []


def _table(columns: Sequence[Column], headings: Sequence[str], widths: Sequence[int], cells: list[list[str]]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    # The box's own divider is a blank: with one of padding, columns are as far apart as in the plain form.
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    height = max(heading.count("\n") for heading in headings)
    for column, heading, width in zip(columns, headings, widths, strict=True):
        table.add_column(
            "\n" * (height - heading.count("\n")) + heading,
            justify="right" if column.is_number else "left",
            style=column.style,
            overflow="fold",
            width=width,
        )
    for row in cells:
        table.add_row(*(Text(cell) for cell in row))
    return table


def _paragraphs(columns: Sequence[Column], cells: list[list[str]], width: int) -> RenderableType:
    """Each row as its first cell and, below it, what the others say."""
    from rich.console import Group
    from rich.text import Text

    lines: list[RenderableType] = []
    for first, *others in cells:
        lines.append(Text(first, style=columns[0].style, overflow="fold"))
        facts = ", ".join(
            f"{column.heading} {cell}".replace(" ", " " if column.folds else _NO_BREAK)
            for column, cell in zip(columns[1:], others, strict=True)
            if cell != "-"
        )
        wrapped = textwrap.wrap(facts, width, initial_indent=_GAP, subsequent_indent=_GAP, break_on_hyphens=False)
        lines += [Text(line.replace(_NO_BREAK, " "), overflow="fold") for line in wrapped]
    return Group(*lines)


def _aligned(cell: str, width: int, column: Column) -> str:
    blanks = " " * (width - display_width(cell))
    return blanks + cell if column.is_number else cell + blanks
