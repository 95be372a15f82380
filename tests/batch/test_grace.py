from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifactsync.batch import grace_s, parse_grace_s
from artifactsync.batch.grace import MAX_GRACE_S
from artifactsync.errors import ConfigurationError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("120", 120.0), ("7.5", 7.5), ("0", 0.0), (".5", 0.5), ("5.", 5.0), (" 30 ", 30.0), ("604800", MAX_GRACE_S)],
)
def test_seconds(text, seconds):
    assert parse_grace_s(text, source="--grace") == seconds
    assert grace_s({"ARTIFACTSYNC_GRACE_S": text}) == seconds


@pytest.mark.parametrize("environ", [{}, {"ARTIFACTSYNC_GRACE_S": ""}, {"ARTIFACTSYNC_GRACE_S": " "}])
def test_where_nobody_says_there_is_no_bound(environ):
    assert grace_s(environ) is None


def test_the_environment_of_the_process_is_the_default_one(monkeypatch):
    monkeypatch.setenv("ARTIFACTSYNC_GRACE_S", "12")
    assert grace_s() == 12.0


@pytest.mark.parametrize(
    "text", ["-1", "+1", "1e3", "nan", "inf", "two", "2min", "30s", "1_000", "٣", "0x10", "1,5", "."]
)
def test_what_is_no_number_of_seconds(text):
    with pytest.raises(ConfigurationError) as caught:
        grace_s({"ARTIFACTSYNC_GRACE_S": text})
    assert caught.value.message == f"ARTIFACTSYNC_GRACE_S is {text!r}, which is no number of seconds"
    assert caught.value.hint == "for example ARTIFACTSYNC_GRACE_S=120"


@pytest.mark.parametrize("text", ["604801", "120000000", "9" * 400])
def test_milliseconds_are_a_slip(text):
    with pytest.raises(ConfigurationError, match="more than a week"):
        parse_grace_s(text, source="--grace")


def test_an_empty_option_is_an_error_where_an_empty_variable_is_none():
    with pytest.raises(ConfigurationError, match="--grace is ''"):
        parse_grace_s("", source="--grace")


@given(st.text(max_size=10))
def test_any_text_gives_a_sane_number_or_one_clear_error(text):
    try:
        seconds = parse_grace_s(text, source="--grace")
    except ConfigurationError as error:
        complaint = error
    else:
        assert math.isfinite(seconds)
        assert 0 <= seconds <= MAX_GRACE_S
        return
    assert complaint.message.isprintable()
