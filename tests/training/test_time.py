from __future__ import annotations

from datetime import timedelta

import pytest

from artifactsync import Time, Timestamp
from artifactsync.errors import ConfigurationError
from artifactsync.training.time import TimeUnit


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        ("2ep", 2, "ep"),
        ("100ba", 100, "ba"),
        ("5_000sp", 5000, "sp"),
        ("1e6tok", 1_000_000, "tok"),
        ("0.5dur", 0.5, "dur"),
        ("30min", 1800, "sec"),
        ("2h", 7200, "sec"),
        ("10s", 10, "sec"),
        ("1h30min", 5400, "sec"),
        (" 3 ep ", 3, "ep"),
        (4, 4, "ep"),
        (timedelta(minutes=2), 120, "sec"),
    ],
)
def test_notation(text, value, unit):
    assert Time.of(text) == Time(value, TimeUnit(unit))


@pytest.mark.parametrize(
    "text", ["", "ep", "2", "2 epochs", "-1ep", "1.5ba", "nansp", "1ep2ba", "1e400ep", None, True, []]
)
def test_what_is_no_time(text):
    with pytest.raises(ConfigurationError) as caught:
        Time.of(text)
    assert "1e6tok" in caught.value.hint


def test_printed_as_written():
    assert [str(Time.of(text)) for text in ("2ep", "100ba", "0.5dur", "90s")] == ["2ep", "100ba", "0.5dur", "90sec"]


def test_timestamps_move_forward_and_survive():
    stamp = Timestamp().to_next_batch(samples=3, tokens=5, duration_s=2.0).to_next_batch(samples=1, duration_s=1.0)
    assert (stamp.batch, stamp.batch_in_epoch, stamp.sample, stamp.token, stamp.total_wct) == (2, 2, 4, 5, 3.0)
    after = stamp.to_next_epoch()
    assert (after.epoch, after.batch, after.batch_in_epoch, after.sample_in_epoch) == (1, 2, 0, 0)
    assert Timestamp.from_state_dict({**after.state_dict(), "from the future": 1}) == after
    assert after.get("ba") == Time(2, TimeUnit.BATCH)
