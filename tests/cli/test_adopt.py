"""``adopt``: a folder that another program filled becomes a run."""

from __future__ import annotations

import pytest


@pytest.fixture
def old(tmp_path):
    folder = tmp_path / "bucket" / "old" / "checkpoints"
    folder.mkdir(parents=True)
    for name in ("ep0-ba1-rank0.pt", "ep1-ba2-rank0.pt", "notes.txt"):
        (folder / name).write_text(name)
    return tmp_path / "bucket"


def test_adopt(artifactsync, old):
    remote = ("--remote", str(old))
    planned = artifactsync(*remote, "adopt", "old", "--dry-run").out
    assert planned.splitlines() == [
        "would adopt: 2 checkpoints, 2 files, 32 B, 1 other file beside them", "  ep0-ba1", "  ep1-ba2",
    ]  # fmt: skip
    assert artifactsync(*remote, "ls", "old", "--json").json["checkpoints"] == []
    done = artifactsync(*remote, "adopt", "old", "--json").json
    assert (done["adopted"], done["already"], done["other_files"]) == (["ep0-ba1", "ep1-ba2"], 0, 1)
    again = artifactsync(*remote, "adopt", "old").out
    assert again == "adopted: 0 checkpoints, 0 files, 0 B, 2 adopted before, 1 other file beside them\n"
    assert artifactsync(*remote, "verify", "old", "--deep", "--json").json["ok"]
    pulled = artifactsync(*remote, "pull", "old", "here", "--json").json
    assert (pulled["checkpoint"], pulled["verified"]) == ("ep1-ba2", True)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nobody"], 3, "there is nothing at"),
        (["old", "--pattern", "("], 2, "no regular expression"),
        (["../old"], 2, "run name"),
        (["old", "--pattern", "nothing-(?P<step>[0-9]+)"], 3, "says which step"),
    ],
)
def test_what_cannot_be_adopted(artifactsync, old, arguments, code, words):
    assert words in artifactsync("--remote", str(old), "adopt", *arguments, code=code).err
