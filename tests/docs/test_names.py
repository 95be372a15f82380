"""What pages name is there: commands with their options, extras."""

from __future__ import annotations

import re
import shlex
import sys

import pytest

from artifactsync.cli.application import cli
from tests.docs.blocks import ROOT, pages, text_of

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_TYPED = re.compile(r"(?:`|^\$ |&& )artifactsync (?P<words>[a-z-][^`\n]*)", re.MULTILINE)


def _options(command):
    return {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}


def _words(page):
    """What is typed behind `artifactsync`, up to a command of the user's own."""
    for match in _TYPED.finditer(text_of(page)):
        typed = re.split(r" -- | && |, ", match["words"], maxsplit=1)[0].replace("…", "")
        yield shlex.split(typed, comments=True)


@pytest.mark.parametrize("page", [page for page in pages() if any(_words(page))])
def test_every_command_that_is_named_is_there_with_its_options(page):
    for words in _words(page):
        named = [word for word in words if word in cli.commands]
        assert named or words[0].startswith("-"), words
        known = _options(cli).union(*(_options(cli.commands[name]) for name in named))
        assert {word.partition("=")[0] for word in words if word.startswith("-")} <= known | {"--help"}, words


def test_every_extra_that_is_named_is_there():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    groups = {group for page in pages() for group in re.findall(r"artifactsync\[([\w,-]+)\]", text_of(page))}
    named = {extra for group in groups for extra in group.split(",")}
    assert len(named) > 8
    assert named <= extras.keys()
