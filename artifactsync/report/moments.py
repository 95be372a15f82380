"""Points in time from records, which may say anything, as people read them."""

from __future__ import annotations

from datetime import datetime, timezone

_PERIODS = ((365 * 86400, "y"), (86400, "d"), (3600, "h"), (60, "min"), (1, "s"))  # seconds, short name


def moment_of(text: object) -> datetime | None:
    """A time as a record has it, in UTC; None if it is none."""
    if not isinstance(text, str):
        return None
    try:
        moment = datetime.fromisoformat(text.replace("Z", "+00:00"))  # Python 3.10 knows no Z
        return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).astimezone(timezone.utc)
    except (ValueError, OverflowError):
        return None


def age(moment: datetime | None, now: datetime) -> str:
    """How long ago it was: ``3 min ago``; a dash if it is not known."""
    if moment is None:
        return "-"
    passed_s = (now - moment).total_seconds()
    for period_s, name in _PERIODS:
        if passed_s >= period_s:
            return f"{int(passed_s // period_s)} {name} ago"
    return "just now"
