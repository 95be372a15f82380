"""A folder tree in text, as ``tree`` draws it, with the size beside each file.

Owns: the drawing. Does not own: which files there are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from artifactsync.cli.terminal import columns, display_width, has_box_characters, is_rich, printable
from artifactsync.cli.units import human_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import TextIO

    from artifactsync.cli.screen import Screen

_Folder = dict[str, Any]  # a name's folder, or an int: the size of a file in bytes

_GAP = "  "
_SIZE_WIDTH = 10  # columns: `1023.9 KiB`
_TERMINAL_LINES = 40  # more would push the verdict's beginning out of sight; a pipe gets all


def show_tree(screen: Screen, title: str, sizes: Mapping[str, int], stream: TextIO) -> None:
    """Write the tree to the screen: whole into a pipe, its first lines on a terminal."""
    is_ascii = not has_box_characters(stream)
    if is_rich(stream):
        screen.text(draw_tree(title, sizes, max_lines=_TERMINAL_LINES, max_width=columns(), is_ascii=is_ascii))
    else:
        screen.text(draw_tree(title, sizes, is_ascii=is_ascii))


def draw_tree(
    title: str,
    sizes: Mapping[str, int],
    *,
    max_lines: int | None = None,
    max_width: int | None = None,
    is_ascii: bool = False,
) -> str:
    """The tree of ``sizes`` (path with ``/`` → bytes) below ``title``.

    Args:
        title: The first line.
        sizes: The files.
        max_lines: Longer trees end with how many files are not shown; None for no limit.
        max_width: Columns in which the sizes stand below each other. A longer name has its size behind it, so that it
            does not drive all others off a narrow terminal; None for no limit.
        is_ascii: Draw with ASCII alone.
    """
    lines: list[tuple[str, int | None]] = [(printable(title), None)]
    _walk(_nested(sizes), "", is_ascii, lines)
    shown = lines if max_lines is None or len(lines) <= max_lines else lines[: max_lines - 1]
    widths = [display_width(text) for text, _ in shown]
    room = max_width - _SIZE_WIDTH - len(_GAP) if max_width else max(widths)
    width = max((each for each in widths if each <= room), default=0)
    text = [
        name if size is None else f"{name}{' ' * (width - display_width(name))}{_GAP}{human_bytes(size):>{_SIZE_WIDTH}}"
        for name, size in shown
    ]
    if len(shown) < len(lines):
        hidden = sum(size is not None for _, size in lines[len(shown) :])
        text.append(f"{'...' if is_ascii else '…'} and {hidden:,} more files")
    return "\n".join(text)


def _nested(sizes: Mapping[str, int]) -> _Folder:
    root: _Folder = {}
    for path, size in sizes.items():
        *folders, name = path.split("/")
        folder = root
        for part in folders:
            folder = folder.setdefault(f"{part}/", {})
        folder[name] = size
    return root


def _walk(folder: _Folder, indent: str, is_ascii: bool, lines: list[tuple[str, int | None]]) -> None:
    branch, last_branch, bar = ("|-- ", "`-- ", "|   ") if is_ascii else ("├── ", "└── ", "│   ")
    names = sorted(folder)
    for name in names:
        is_last = name == names[-1]
        entry = folder[name]
        line = f"{indent}{last_branch if is_last else branch}{printable(name)}"
        lines.append((line, entry if isinstance(entry, int) else None))
        if not isinstance(entry, int):
            _walk(entry, indent + ("    " if is_last else bar), is_ascii, lines)
