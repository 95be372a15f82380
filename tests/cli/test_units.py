from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest

from artifactsync.cli.units import as_moment, human_age, human_bytes, human_duration, human_rate

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (1024**2 - 1, "1.0 MiB"),
        (1024**2, "1.0 MiB"),
        (5 * 1024**3, "5.0 GiB"),
        (2000 * 1024**5, "2000.0 PiB"),
    ],
)
def test_bytes(size_bytes: int, text: str) -> None:
    assert human_bytes(size_bytes) == text


def test_rate() -> None:
    assert human_rate(1.5 * 1024**2) == "1.5 MiB/s"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-0.1, "0.0 s"),
        (0.42, "0.4 s"),
        (9.94, "9.9 s"),
        (12, "12 s"),
        (59.7, "1 min"),
        (75, "1 min 15 s"),
        (7300, "2 h 1 min"),
        (90000, "1 d 1 h"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert human_duration(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "just now"),
        (0.5, "just now"),
        (59, "59 s ago"),
        (185, "3 min ago"),
        (7200, "2 h ago"),
        (3 * 86400 + 5, "3 d ago"),
        (730 * 86400, "2.0 y ago"),
    ],
)
def test_age(seconds: float, text: str) -> None:
    assert human_age(NOW - timedelta(seconds=seconds), NOW) == text


def test_an_unknown_age_is_a_dash() -> None:
    assert human_age(None, NOW) == "-"


@pytest.mark.parametrize(
    "value",
    [NOW, "2026-01-02T03:04:05Z", "2026-01-02T03:04:05+00:00", "2026-01-02T05:04:05+02:00", NOW.timestamp()],
)
def test_moments_come_in_several_forms(value: object) -> None:
    assert as_moment(value) == NOW


@pytest.mark.parametrize("value", [None, "", "yesterday", "9999-99-99", 1e99, float("nan"), [], {"a": 1}])
def test_what_is_no_moment_is_none(value: object) -> None:
    assert as_moment(value) is None
