from __future__ import annotations

import io
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifactsync.cli.terminal import display_width, is_rich, printable


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("plain-name_1.pt", "plain-name_1.pt"),
        ("modèle-東京.pt", "modèle-東京.pt"),
        ("a\x1b[2Jb", "a\\x1b[2Jb"),
        ("a\x1b]8;;http://evil\x07b", "a\\x1b]8;;http://evil\\x07b"),
        ("a\x9b31mb", "a\\x9b31mb"),
        ("line\nbreak\ttab\r", "line\\x0abreak\\x09tab\\x0d"),
        ("cod\u202etxt.exe", "cod\\u202etxt.exe"),
        ("\u2066iso\u2069", "\\u2066iso\\u2069"),
        ("zero\u200bwidth\ufeff", "zero\\u200bwidth\\ufeff"),
        ("no\u00a0break", "no\\xa0break"),
        ("\u3164hangul filler", "\\u3164hangul filler"),
        ("\udc9b surrogate", "\\udc9b surrogate"),
        ("\U000e0041 tag", "\\U000e0041 tag"),
        ("[red]markup[/red]", "[red]markup[/red]"),
    ],
)
def test_printable(name: str, shown: str) -> None:
    assert printable(name) == shown


@given(st.text(st.characters()))
def test_nothing_printable_moves_the_cursor_or_hides(text: str) -> None:
    shown = printable(text)
    for char in shown:
        assert unicodedata.category(char)[0] != "C"
        assert unicodedata.category(char) not in {"Zl", "Zp"}
    assert printable(shown) == shown


def test_width_counts_columns() -> None:
    assert display_width("abc") == 3
    assert display_width("東京") == 4
    assert display_width("e\u0301") == 1


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_colours_only_on_a_terminal_that_wants_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert is_rich(_Terminal())
    assert not is_rich(io.StringIO())
    closed = io.StringIO()
    closed.close()
    assert not is_rich(closed)
    monkeypatch.setenv("TERM", "dumb")
    assert not is_rich(_Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert not is_rich(_Terminal())
