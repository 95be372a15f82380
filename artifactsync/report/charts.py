"""Drawings: a metric over steps, and the life of a run over time, as SVG in the text of the page.

Owns: coordinates. Does not own: colours (the page's style sheet), or which curves there are (``metrics``).

Invariant: a drawing has a bounded number of characters, whatever it shows.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from artifactsync.report.text import escaped, number, seconds

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from artifactsync.report.curves import Curve

WIDTH, HEIGHT = 360, 150
_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 10, 10, 18
_FEW_POINTS = 40
_LOG_FROM_RATIO = 1000.0
_MAX_MARKS = 400


class _Axis:
    """Values to coordinates; by decades where they spread over more than three of them."""

    def __init__(self, low: float, high: float, start: float, end: float, *, may_be_log: bool = False) -> None:
        self.is_log = may_be_log and low > 0 and high / low > _LOG_FROM_RATIO
        self.low, self.high = low, high
        self._start, self._end = start, end

    def __call__(self, value: float) -> float:
        low, high, at = (math.log(v) if self.is_log else v for v in (self.low, self.high, value))
        middle = 0.5
        # Halved before they are subtracted: the greatest floats would overflow.
        part = (at / 2 - low / 2) / (high / 2 - low / 2) if high / 2 - low / 2 > 0 else middle
        return round(self._start + (self._end - self._start) * part, 1)

    def middle(self) -> float:
        """The value half way."""
        return math.sqrt(self.low) * math.sqrt(self.high) if self.is_log else self.low / 2 + self.high / 2


def draw_curve(curve: Curve, *, resumed_at: Sequence[int] = ()) -> str:
    """A metric over steps; dashed lines where a later attempt went on, ticks at the foot for what is no number."""
    points = curve.points()
    every_step = [step for step, _ in points] + curve.not_finite
    if not every_step:
        return ""
    x = _Axis(min(every_step), max(every_step), _LEFT, WIDTH - _RIGHT)
    values = [value for _, value in points] or [0.0]
    y = _Axis(min(values), max(values), HEIGHT - _BOTTOM, _TOP, may_be_log=True)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escaped(curve.name)} over steps">',
        *_grid(y, bool(points)),
        *(
            f'<line class="resume" x1="{x(step)}" y1="{_TOP}" x2="{x(step)}" y2="{HEIGHT - _BOTTOM}">'
            f"<title>a later attempt went on after step {step:,}</title></line>"
            for step in list(resumed_at)[:_MAX_MARKS]
            if x.low <= step <= x.high
        ),
    ]
    if len(points) > 1:
        line = " ".join(f"{x(step)},{y(value)}" for step, value in points)
        parts.append(f'<polyline class="curve" points="{line}"/>')
    if len(points) <= _FEW_POINTS:
        parts.extend(
            f'<circle class="point" cx="{x(step)}" cy="{y(value)}" r="2.5">'
            f"<title>step {step:,}: {number(value)}</title></circle>"
            for step, value in points
        )
    foot = HEIGHT - _BOTTOM
    parts.extend(
        f'<line class="broken" x1="{at}" y1="{foot - 6}" x2="{at}" y2="{foot}"/>'
        for at in sorted({x(step) for step in curve.not_finite})
    )
    parts.append(f'<text class="tick" x="{_LEFT}" y="{HEIGHT - 4}">{x.low:,.0f}</text>')
    if x.high > x.low:
        parts.append(f'<text class="tick end" x="{WIDTH - _RIGHT}" y="{HEIGHT - 4}">step {x.high:,.0f}</text>')
    return "".join([*parts, "</svg>"])


def _grid(y: _Axis, has_values: bool) -> list[str]:
    if not has_values:
        return []
    ticks = sorted({y.low, y.middle(), y.high})
    lines = [f'<line class="grid" x1="{_LEFT}" y1="{y(v)}" x2="{WIDTH - _RIGHT}" y2="{y(v)}"/>' for v in ticks]
    digits = next((n for n in (3, 4, 5) if len({_tick(v, n) for v in ticks}) == len(ticks)), 6)
    texts = [f'<text class="tick end" x="{_LEFT - 5}" y="{y(v) + 3.5:.1f}">{_tick(v, digits)}</text>' for v in ticks]
    return lines + texts


def _tick(value: float, digits: int) -> str:
    """A value at the axis, where eight characters have room."""
    if 10**digits <= abs(value) < 10**6:
        return f"{value:.0f}"  # as short as 1.26e+03, and read at once
    text = f"{value:.{digits}g}"
    return f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e+") if "e" in text else text


class Lane:
    """One attempt in the timeline.

    Args:
        title: What it is called.
        began: When.
        ended: When, as far as is known.
        state: Its class in the style sheet: ``completed``, ``preempted``, ``failed``, ``running`` or ``unknown``.
        marks: Moments of its commits: when, whether the checkpoint is still there, and what to say of it.
    """

    def __init__(
        self, title: str, began: datetime, ended: datetime, state: str, marks: Sequence[tuple[datetime, bool, str]]
    ) -> None:
        self.title, self.began, self.ended, self.state, self.marks = title, began, ended, state, marks


def draw_timeline(lanes: Sequence[Lane]) -> str:
    """Attempts as bars over time, with a mark for each commit."""
    if not lanes:
        return ""
    height = 26 * len(lanes) + 22
    moments = [m for lane in lanes for m in (lane.began, lane.ended, *(mark[0] for mark in lane.marks))]
    start, end = min(moments), max(moments)
    span_s = (end - start).total_seconds()
    x = _Axis(0.0, max(span_s, 1e-3), 4, WIDTH - 6)
    parts = [f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="attempts and their checkpoints over time">']
    for row, lane in enumerate(lanes):
        top = 26 * row
        left, right = (x((moment - start).total_seconds()) for moment in (lane.began, lane.ended))
        parts.append(f'<text class="tick" x="4" y="{top + 9}">{escaped(lane.title)}</text>')
        parts.append(
            f'<rect class="bar {lane.state}" x="{left}" y="{top + 12}" width="{max(right - left, 2):.1f}" height="9" '
            'rx="2"/>'
        )
        shown: dict[tuple[float, bool], str] = {}
        for moment, is_there, words in lane.marks:
            shown[(x((moment - start).total_seconds()), is_there)] = words
        step = max(1, len(shown) // _MAX_MARKS + 1)
        parts.extend(
            f'<line class="{"saved" if is_there else "gone"}" x1="{at}" y1="{top + 11}" x2="{at}" y2="{top + 22}">'
            f"<title>{escaped(words)}</title></line>"
            for (at, is_there), words in list(shown.items())[::step]
        )
    parts.append(f'<text class="tick" x="4" y="{height - 5}">{start:%Y-%m-%d %H:%M} UTC</text>')
    parts.append(f'<text class="tick end" x="{WIDTH - 6}" y="{height - 5}">+ {seconds(span_s)}</text>')
    return "".join([*parts, "</svg>"])
