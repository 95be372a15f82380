"""The documentation as a site: built with warnings as errors, complete, and asking no other host for anything."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from urllib.parse import unquote, urldefrag

import pytest

from tests.docs.blocks import ROOT, pages


class _Page(HTMLParser):
    """What a page loads, where it leads, and its paragraphs' text outside of code."""

    def __init__(self, path):
        super().__init__()
        self.loaded, self.links, self.anchors, self.text = [], [], set(), ""
        self._code = self._paragraph = 0
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self._code += tag in {"code", "pre", "script", "style"}
        self._paragraph += tag == "p"
        self.anchors |= {values[name] for name in ("id", "name") if values.get(name)}
        if tag == "a":
            self.links += [values["href"]] if values.get("href") else []
        else:
            self.loaded += [values[name] for name in ("src", "href") if values.get(name)]

    def handle_endtag(self, tag):
        self._code -= tag in {"code", "pre", "script", "style"}

        self._paragraph -= tag == "p"

    def handle_data(self, data):
        self.text += data if self._paragraph and not self._code else ""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder],  # with --quiet nothing is an error
        cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def read(site):
    return {path: _Page(path) for path in sorted(site.rglob("*.html"))}


def test_every_page_is_there(site):
    for page in pages():
        name = page.removeprefix("docs/") if page.startswith("docs/") else page.lower()
        name = {"readme.md": "index.md", "localstack/readme.md": "localstack.md"}.get(name, name).removesuffix(".md")
        assert (site / f"{name}.html").is_file(), page


def test_nothing_is_loaded_from_elsewhere(site, read):
    for path, page in read.items():
        assert not [url for url in page.loaded if re.match(r"(https?:)?//", url)], path
    for path in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//|@import", path.read_text(encoding="utf-8")), path


def test_every_link_leads_to_a_page_and_a_place_on_it(read):
    for path, page in read.items():
        if path.name == "404.html":  # its links begin at a server's root
            continue
        for link in page.links:
            target, anchor = urldefrag(unquote(link))
            if re.match(r"[a-z]+:", target):
                continue
            there = (path.parent / target).resolve() if target else path
            assert there.is_file(), f"{path}: {link}"
            assert not anchor or there.suffix != ".html" or anchor in read[there].anchors | {"__top"}, f"{path}: {link}"


def test_markdown_was_understood(read):
    """GitHub takes lists, tables and fences where this Markdown wants an empty line before them."""
    for path, page in read.items():
        if path.parent.name != "reference":
            assert not re.search(r"\n(- |\d+\. |\|[ -])|```|\]\(", page.text), path


def test_the_reference_is_made_from_docstrings(site):
    text = (site / "reference" / "run.html").read_text(encoding="utf-8")
    assert "until everything is durable" in text
    for name in ("wait", "close", "save", "resume", "pull"):
        assert f'id="artifactsync.run.Run.{name}"' in text
    commands = (site / "reference" / "commands.html").read_text(encoding="utf-8")
    assert "artifactsync pull [OPTIONS] RUN" in commands


def test_pictures_follow_the_switch_for_light_and_dark(site):
    text = (site / "concepts.html").read_text(encoding="utf-8")
    assert text.count('class="as-picture"') == len(list((ROOT / "docs" / "pictures").glob("*.svg"))) == 4
    for variable in re.findall(r"var\((--\w+)\)", text):
        for style in (text, (site / "style" / "site.css").read_text(encoding="utf-8")):
            assert len(re.findall(rf"{variable}: ", style)) >= 2, variable
