"""What may reach a terminal: names from the remote made harmless, and whether colours and bars are wanted.

Owns: :func:`printable` and :func:`is_rich`. Does not own: layout (``tables``, ``tree``) or wording.

Invariant: every text that came from a remote, a file or an error goes through :func:`printable` on its way out.
"""

from __future__ import annotations

import os
import shutil
import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import TextIO

_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Unicode categories that move the cursor, turn the text around, or show nothing."""

_BLANK = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")
"""Letters and marks by category that every font shows as nothing."""

PIPE_WIDTH = 80
"""Columns assumed where there is no terminal to ask."""


def printable(text: str) -> str:
    r"""Return ``text`` with everything that a terminal would not show as itself written as ``\x1b``, ``\u202e`` ….

    Rich markup needs no escape: nothing of ours is ever printed as markup.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(char if _is_visible(char) else _escape(char) for char in text)


def _is_visible(char: str) -> bool:
    category = unicodedata.category(char)
    if category == "Zs":
        return char == " "
    return category not in _HIDDEN and char not in _BLANK


def _escape(char: str) -> str:
    code = ord(char)
    if code < 0x100:  # noqa: PLR2004 (the three forms of Python's own escapes)
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"  # noqa: PLR2004


def display_width(text: str) -> int:
    """Columns that ``text`` (already printable) takes on a terminal."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text
    )


def is_rich(stream: TextIO) -> bool:
    """Whether ``stream`` is a terminal whose user wants colours, tables and bars (see https://no-color.org)."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    try:
        return stream.isatty()
    except ValueError:  # closed
        return False


def columns() -> int:
    """The terminal's width."""
    return shutil.get_terminal_size((PIPE_WIDTH, 24)).columns


def has_box_characters(stream: TextIO) -> bool:
    """Whether ``stream`` can show the lines of a tree."""
    try:
        "├└│…".encode(stream.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
