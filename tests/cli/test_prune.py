from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.cli.conftest import Remote, make_run, tree_of

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import Command


@pytest.mark.usefixtures("digits")
def test_what_is_removed_is_said_before_and_after(artifactsync: Command, tmp_path: Path) -> None:
    planned = artifactsync("prune", "digits", "--keep-last", "1", "--dry-run")
    assert planned.out == (
        "would be removed  ep1-ba10\n"
        "would be removed  ep2-ba20\n"
        "2 checkpoints would be removed, 1 kept; 2 files, 1.9 MiB would be freed\n"
    )
    assert len(artifactsync("ls", "digits", "--json").json["checkpoints"]) == 3
    done = artifactsync("prune", "digits", "--keep-last", "1")
    assert done.out == planned.out.replace("would be ", "")
    assert tree_of(tmp_path / "remote" / "digits") == {
        "checkpoints/ep3-ba30-rank0.pt",
        "checkpoints/latest-rank0.pt.symlink",
        "logs-rank0.txt",
        "plots/loss.png",
    }
    listed = artifactsync("ls", "digits", "--json").json
    assert [c["name"] for c in listed["checkpoints"]] == ["ep3-ba30"]
    assert listed["state"] == "completed"
    artifactsync("verify", "digits", "--deep")
    assert artifactsync("pull", "digits", "--json").json["checkpoint"] == "ep3-ba30"


def test_on_every_remote(artifactsync: Command, remote: Remote, tmp_path: Path) -> None:
    make_run(remote, "digits", local_root=tmp_path / "trainer")
    document = artifactsync(
        "prune", "digits", "--keep-best", "1", "--metric", "val_loss", "--mode", "max", "--json"
    ).json
    assert document == {
        "run_name": "digits",
        "kept": ["ep1-ba10", "ep3-ba30"],
        "retired": ["ep2-ba20"],
        "deleted_keys": 1,
        "freed_bytes": 1_000_020,
        "pinned_keys": 0,
        "orphans": [],
        "aborted_uploads": 0,
        "dry_run": False,
    }
    assert artifactsync("verify", "digits", "--deep", "--json").json["checked_files"] == 2
    assert artifactsync("prune", "digits", "--keep-every", "20", "--quiet").out == ""
    assert len(artifactsync("ls", "digits", "--json").json["checkpoints"]) == 2


@pytest.mark.usefixtures("digits")
def test_leftovers_of_a_crash(artifactsync: Command, tmp_path: Path) -> None:
    house = tmp_path / "remote" / "digits" / ".artifactsync" / "intents"
    house.mkdir(exist_ok=True)
    (house / "000001-000009.json").write_text('{"keys": ["checkpoints/half.pt"]}')
    half = tmp_path / "remote" / "digits" / "checkpoints" / "half.pt"
    half.write_bytes(b"half")
    assert "left by a crash" not in artifactsync("prune", "digits", "--keep-last", "9").out
    planned = artifactsync("prune", "digits", "--keep-last", "9", "--orphans-after", "0", "--dry-run").out
    assert "would be removed  digits/checkpoints/half.pt (left by a crash)\n" in planned
    assert half.exists()
    artifactsync("prune", "digits", "--keep-last", "9", "--orphans-after", "0")
    assert not half.exists()


@pytest.mark.usefixtures("digits")
@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["digits"], 2, "Say what to keep"),
        (["digits", "--dry-run"], 2, "Say what to keep"),
        (["digits", "--keep-last", "0"], 2, "--keep-last"),
        (["digits", "--keep-best", "1"], 2, "go together"),
        (["digits", "--keep-last", "1", "--metric", "x"], 2, "go together"),
        (["digits", "--keep-best", "1", "--metric", "val_los"], 2, "known metrics: accuracy, val_loss"),
        (["digit", "--keep-last", "1"], 3, "digits"),
        (["../digits", "--keep-last", "1"], 2, "run name"),
    ],
)
def test_mistakes(artifactsync: Command, arguments: list[str], code: int, words: str) -> None:
    done = artifactsync("prune", *arguments, code=code)
    assert words in done.err
    assert len(artifactsync("ls", "digits", "--json").json["checkpoints"]) == 3
