"""Any number of points of a curve in a fixed amount of memory, with every peak kept.

Owns: ``Curve``. Does not own: where points come from (``metrics``), or how they are drawn (``charts``).

Invariant: the least and the greatest value of any stretch are among the points that are kept; a value that is no
finite number is counted and never drawn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

MAX_STRETCHES = 256
"""Stretches of steps that are told apart; each is drawn with two points at most."""


@dataclass
class _Stretch:
    low: tuple[int, float]
    high: tuple[int, float]

    def add(self, point: tuple[int, float]) -> None:
        if point[1] < self.low[1]:
            self.low = point
        if point[1] > self.high[1]:
            self.high = point

    def merge(self, other: _Stretch) -> None:
        self.add(other.low)
        self.add(other.high)


class Curve:
    """A metric over steps, added in any order.

    Args:
        name: What it is called. Hostile input.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.count = 0
        """Points added, drawn or not."""
        self.last: tuple[int, float] | None = None
        """The point added last, finite or not."""
        self.not_finite: list[int] = []
        """The first steps whose values were NaN or infinite."""
        self.not_finite_count = 0
        """How many there were."""
        self._width = 1
        self._stretches: dict[int, _Stretch] = {}

    def add(self, step: int, value: float) -> None:
        """Add a point."""
        self.count += 1
        self.last = (step, value)
        if not math.isfinite(value):
            self.not_finite_count += 1
            if len(self.not_finite) < MAX_STRETCHES:
                self.not_finite.append(step)
            return
        self._put(step // self._width, _Stretch((step, value), (step, value)))
        while len(self._stretches) > MAX_STRETCHES:
            self._coarsen()

    def points(self) -> list[tuple[int, float]]:
        """What to draw, by step: of each stretch its least and greatest point."""
        found = {point for stretch in self._stretches.values() for point in (stretch.low, stretch.high)}
        return sorted(found)

    def _put(self, place: int, stretch: _Stretch) -> None:
        there = self._stretches.get(place)
        if there is None:
            self._stretches[place] = stretch
        else:
            there.merge(stretch)

    def _coarsen(self) -> None:
        fine, self._stretches, self._width = self._stretches, {}, self._width * 2
        for place, stretch in fine.items():
            self._put(place // 2, stretch)
