from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifactsync.report.charts import draw_curve
from artifactsync.report.curves import MAX_STRETCHES, Curve
from artifactsync.report.metrics import read_json_line, read_text_line


def test_a_peak_among_a_hundred_thousand_points_is_still_there():
    curve = Curve("loss")
    for step in range(100_000):
        curve.add(step, 50.0 if step == 77_777 else math.sin(step))
    points = curve.points()
    assert len(points) <= 2 * MAX_STRETCHES
    assert (77_777, 50.0) in points
    assert points == sorted(points)
    assert (curve.count, curve.last) == (100_000, (99_999, math.sin(99_999)))


@given(st.lists(st.tuples(st.integers(0, 2**53), st.floats(allow_nan=True)), max_size=600))
def test_any_points_are_kept_within_bounds_and_drawn(points):
    curve = Curve("any")
    for step, value in points:
        curve.add(step, value)
    finite = [(step, value) for step, value in points if math.isfinite(value)]
    kept = curve.points()
    assert len(kept) <= 2 * MAX_STRETCHES
    assert set(kept) <= set(finite)
    if finite:
        assert min(v for _, v in kept) == min(v for _, v in finite)
        assert max(v for _, v in kept) == max(v for _, v in finite)
    drawn = draw_curve(curve)
    assert len(drawn) < 60_000
    assert not any(f'"{word}' in drawn or f",{word}" in drawn for word in ("nan", "inf", "-inf"))


@pytest.mark.parametrize(
    "line",
    [b"", b"{", b"[]", b"null", b'{"step": -1, "metrics": {"a": 1}}', b'{"step": true, "metrics": {"a": 1}}',
     b'{"step": 1, "metrics": [1]}', b'{"step": 1, "metrics": {"a": "x", "b": null, "c": [1], "d": true}}',
     b'{"step": 1e999, "metrics": {}}', b"\xff\xfe", b"[" * 100_000],
)  # fmt: skip
def test_a_line_that_is_none_is_passed_over(line):
    assert read_json_line(line) == []
    assert read_text_line(line) == []


def test_lines_of_both_files_are_read():
    assert read_json_line(b'{"step": 3, "metrics": {"a": 0.5, "b": "nan"}}')[0] == ("a", 3, 0.5)
    assert math.isnan(read_json_line(b'{"step": 3, "metrics": {"b": "nan"}}')[0][2])
    assert read_text_line(b'[metric][batch=12]: {"loss": 0.25}') == [("loss", 12, 0.25)]
    assert math.isinf(read_text_line(b'[metric][batch=12]: {"loss": Infinity}')[0][2])


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ((1200.4, 1260.2), ["1200", "1230", "1260"]),
        ((1e-9, 1e-3), ["1.0e-9", "1.0e-6", "0.001"]),
        ((-3.2e-9, 5e-8), ["-3.2e-9", "2.3e-8", "5.0e-8"]),
        ((1000.1, 1000.2), ["1000.1", "1000.15", "1000.2"]),
    ],
)
def test_ticks_have_room_and_are_told_apart(values, ticks):
    curve = Curve("any")
    for step, value in enumerate(values):
        curve.add(step, value)
    assert re.findall(r'class="tick end" x="49"[^>]*>([^<]*)<', draw_curve(curve)) == ticks
