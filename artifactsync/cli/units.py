"""Numbers as people read them: bytes, rates, durations, ages, points in time.

Owns: their text forms, each at most nine columns wide where it can be. Does not own: JSON, which has plain numbers
and ISO 8601 times.
"""

from __future__ import annotations

from datetime import datetime, timezone

_KIBI = 1024
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_PERIODS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))  # seconds, short name
_YEAR_S = 365 * 86400


def human_bytes(size_bytes: float) -> str:
    """``1536`` → ``1.5 KiB``."""
    value = float(size_bytes)
    for unit in _UNITS:
        if value < _KIBI or unit == _UNITS[-1]:
            break
        value /= _KIBI
    if unit == "B":
        return f"{int(value)} B"
    text = f"{value:.1f}"
    return f"1.0 {_UNITS[_UNITS.index(unit) + 1]}" if text == "1024.0" and unit != _UNITS[-1] else f"{text} {unit}"


def human_rate(bytes_per_s: float) -> str:
    """``1536`` → ``1.5 KiB/s``."""
    return f"{human_bytes(bytes_per_s)}/s"


def human_duration(seconds: float) -> str:
    """``0.42`` → ``0.4 s``, ``75`` → ``1 min 15 s``, ``7300`` → ``2 h 1 min``."""
    if seconds < 10:  # noqa: PLR2004 (below ten seconds the tenths are of interest)
        return f"{max(seconds, 0.0):.1f} s"
    left = round(seconds)
    for index, (period_s, name) in enumerate(_PERIODS):
        if left >= period_s:
            count, rest = divmod(left, period_s)
            minor = ""
            if index + 1 < len(_PERIODS):
                minor_s, minor_name = _PERIODS[index + 1]
                minor = f" {rest // minor_s} {minor_name}" if rest >= minor_s else ""
            return f"{count} {name}{minor}"
    return f"{left} s"


def human_age(moment: datetime | None, now: datetime) -> str:
    """How long ago ``moment`` was: ``3 min ago``; a dash if it is not known."""
    if moment is None:
        return "-"
    seconds = (now - moment).total_seconds()
    if seconds < 1:
        return "just now"
    if seconds >= _YEAR_S:
        return f"{seconds / _YEAR_S:.1f} y ago"
    period_s, name = next(period for period in _PERIODS if seconds >= period[0])
    return f"{int(seconds // period_s)} {name} ago"


def as_moment(value: object) -> datetime | None:
    """A point in time from what a record has: a datetime, ISO 8601 text, or seconds since 1970."""
    try:
        if isinstance(value, datetime):
            return value if value.tzinfo else value.replace(tzinfo=timezone.utc)
        if isinstance(value, str):
            return as_moment(datetime.fromisoformat(value.replace("Z", "+00:00")))
        if isinstance(value, int | float):
            return datetime.fromtimestamp(value, tz=timezone.utc)
    except (ValueError, OverflowError, OSError):  # a record's own words: anything may stand there
        return None
    return None


def counted(number: int, noun: str) -> str:
    """``1 file``, ``1,234 files``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
