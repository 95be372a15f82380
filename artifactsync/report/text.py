"""Words and numbers for a page: escaped, and short enough to read.

Invariant: whatever comes in, what goes out has no markup, no control and no direction-changing character, and cannot
leave an attribute in quotation marks.
"""

from __future__ import annotations

import html
import math
import unicodedata

_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def escaped(text: object, *, at_most: int = 120) -> str:
    """Text for between tags and within quoted attributes."""
    shown = str(text)
    if len(shown) > at_most:
        shown = shown[: at_most - 1] + "…"
    visible = "".join(c if unicodedata.category(c) not in _INVISIBLE else f"\\u{ord(c):04x}" for c in shown)
    return html.escape(visible, quote=True)


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
    for unit in _UNITS:
        if size_bytes < 1024 or unit == _UNITS[-1]:  # noqa: PLR2004 (KiB and so on)
            return f"{size_bytes:.0f} B" if unit == "B" else f"{size_bytes:.3g} {unit}"
        size_bytes /= 1024
    raise AssertionError
