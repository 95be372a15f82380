"""How long the stations of a checkpoint's way took: what its commit record says of them, for people.

Owns: ``SaveTiming``, the clock that a checkpoint carries, and the reading of what one left in a record. Does not own:
the stations themselves (``publication``, ``checkpoint``).

Invariant: timings inform, and decide nothing: a record without them, or with nonsense in them, is as good as any.
"""

from __future__ import annotations

import math
import time
from datetime import datetime, timezone
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

NOTHING: Mapping[str, float] = MappingProxyType({})
"""The timing of a checkpoint of which none is known."""

_FIELDS = ("stall_s", "written_s", "durable_s")


class SaveTiming:
    """A clock that starts when a checkpoint is asked for. Each mark is in seconds since then; the first one counts.

    Marks may come from any thread; one that comes after the commit is lost.
    """

    def __init__(self) -> None:
        self.saved_at = datetime.now(timezone.utc)
        """When it was asked for, by the writer's wall clock."""
        self._began = time.monotonic()
        self._marks: dict[str, float] = {}

    def stalled(self, seconds: float) -> None:
        """Training stood still for so long."""
        self._marks.setdefault("stall_s", seconds)

    def written(self) -> None:
        """Its files are whole on this disk, as far as the publication knows."""
        self._mark("written_s")

    def durable(self) -> None:
        """The store has confirmed every file: the commit comes next."""
        self._mark("durable_s")

    def to_json(self) -> dict[str, Any]:
        """The ``timing`` of a commit record: ``saved_at``, and what was marked."""
        marks = {name: round(value, 6) for name, value in sorted(self._marks.items())}
        return {"saved_at": self.saved_at.isoformat(timespec="milliseconds"), **marks}

    def _mark(self, name: str) -> None:
        self._marks.setdefault(name, time.monotonic() - self._began)


def read_timing(value: Any) -> Mapping[str, float]:
    """The marks of a record, which may be hostile: numbers alone, none negative; anything else is left out."""
    if not isinstance(value, dict):
        return NOTHING
    found = {name: value[name] for name in _FIELDS if isinstance(value.get(name), (int, float))}
    return MappingProxyType({n: float(v) for n, v in found.items() if _is_sensible(v)}) if found else NOTHING


def _is_sensible(seconds: float) -> bool:
    return not isinstance(seconds, bool) and math.isfinite(seconds) and 0 <= seconds < 1e9  # noqa: PLR2004 (30 years)
