from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.cli.conftest import Command


@pytest.mark.usefixtures("digits")
def test_the_page_is_written_whole_and_again(artifactsync: Command) -> None:
    document = artifactsync("report", "digits", "--json").json
    page = artifactsync.cwd / "digits.html"
    assert document["run_name"] == "digits"
    assert document["path"] == "digits.html"
    assert document["bytes"] == page.stat().st_size > 3000
    assert document["checkpoints"] > 0
    said = artifactsync("report", "digits", "-o", "digits.html").out
    assert said.startswith("digits.html")
    assert [path.name for path in artifactsync.cwd.glob("*digits.html*")] == ["digits.html"]
    assert artifactsync("report", "digits", "-o", "-", env={"LC_ALL": "C"}).out.startswith("<!DOCTYPE html>")


@pytest.mark.usefixtures("digits")
def test_what_goes_wrong_is_told(artifactsync: Command) -> None:
    (artifactsync.cwd / "folder").mkdir()
    assert "is a folder" in artifactsync("report", "digits", "-o", "folder", code=2).err
    assert "cannot write" in artifactsync("report", "digits", "-o", "none/x.html", code=2).err
    assert "both want stdout" in artifactsync("report", "digits", "-o", "-", "--json", code=2).out
    assert artifactsync("report", "nobody", "--json", code=3).json["error"]["kind"] == "run-not-found"
    assert not (artifactsync.cwd / "nobody.html").exists()
