"""What a fault run counts, and the one line that it prints.

Owns: the tally, and how long the long forms are. ``CRASH_SCALE=0.1`` in the environment makes them a tenth as long.
"""

from __future__ import annotations

import os
import threading
from collections import Counter

_SCALE = float(os.environ.get("CRASH_SCALE", "1"))


def scaled(count: int) -> int:
    """So many points of a long form as were asked for."""
    return max(1, round(count * _SCALE))


def stride() -> int:
    """Every so-manyth of the points that a long form enumerates; 1 unless it was asked for less."""
    return max(1, round(1 / _SCALE))


class Tally:
    """Counts from any thread; every problem has a kind, which is a figure, and a sentence, which says where."""

    def __init__(self, *kinds: str) -> None:
        self._lock = threading.Lock()
        self._kinds = kinds
        self._problems: list[tuple[str, str]] = []
        self.counts: Counter[str] = Counter()

    def count(self, what: str, number: int = 1) -> None:
        """Something was done."""
        with self._lock:
            self.counts[what] += number

    def problem(self, kind: str, where: str) -> None:
        """Something is wrong."""
        assert kind in self._kinds
        with self._lock:
            self._problems.append((kind, where))

    def line(self, title: str, *counted: str) -> str:
        """``title: 12 of this + 3 of that: 0 lost, 0 changed``."""
        done = " + ".join(f"{self.counts[what]:,} {what}" for what in counted)
        found = Counter(kind for kind, _ in self._problems)
        return f"{title}: {done}: " + ", ".join(f"{found[kind]} {kind}" for kind in self._kinds)

    def report(self, title: str, *counted: str) -> None:
        """Print the line, and fail if anything is wrong."""
        print("\n" + self.line(title, *counted), flush=True)
        assert not self._problems, "\n".join(f"{kind}: {where}" for kind, where in self._problems[:20])
