"""Words and numbers for a page: escaped, and short enough to read.

Invariant: whatever comes in, what goes out has no markup, no control and no direction-changing character, and cannot
leave an attribute in quotation marks.
"""

from __future__ import annotations

import html
import math
import unicodedata

_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_BLANK = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")  # letters and marks that fonts show as nothing
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def escaped(text: object, *, at_most: int = 120) -> str:
    """Text for between tags and within quoted attributes."""
    return html.escape(visible(text, at_most=at_most), quote=True)


def visible(text: object, *, at_most: int) -> str:
    """Text without anything that hides or turns it; not escaped yet."""
    shown = str(text)
    if len(shown) > at_most:
        shown = shown[: at_most - 1] + "…"
    if shown.isascii() and shown.isprintable():
        return shown
    return "".join(c if _is_visible(c) else f"\\u{ord(c):04x}" for c in shown)


def _is_visible(char: str) -> bool:
    category = unicodedata.category(char)
    return char == " " if category == "Zs" else category not in _INVISIBLE and char not in _BLANK


def number(value: float) -> str:
    """A number of a metric, in four digits."""
    return f"{value:.4g}" if math.isfinite(value) else str(value)


def seconds(value: float | None) -> str:
    """A duration."""
    if value is None:
        return "-"
    if value < 1:
        return f"{value * 1000:.3g} ms"
    if value < 120:  # noqa: PLR2004 (two minutes are still read best in seconds)
        return f"{value:.3g} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def size(size_bytes: float) -> str:
    """A number of bytes."""
    size_bytes = min(size_bytes, 1 << 90)  # a record may say more than a float holds
    for unit in _UNITS:
        if size_bytes < 1024 or unit == _UNITS[-1]:  # noqa: PLR2004 (KiB and so on)
            return f"{size_bytes:.0f} B" if unit == "B" else f"{size_bytes:.3g} {unit}"
        size_bytes /= 1024
    raise AssertionError
