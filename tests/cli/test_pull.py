from __future__ import annotations

import resource
from typing import TYPE_CHECKING

import pytest

from tests.cli.conftest import Command, Remote, make_run, tree_of

if TYPE_CHECKING:
    from pathlib import Path

FIELDS = {
    "run_name",
    "checkpoint",
    "destination",
    "files",
    "bytes",
    "seconds",
    "verified",
    "skipped_files",
    "fallback_from",
}
NEWEST = "checkpoints/ep3-ba30-rank0.pt"
ARTIFACTS = {"logs-rank0.txt", "plots/loss.png"}


def test_a_run_comes_back_and_the_tree_says_so(artifactsync: Command, digits: Path) -> None:
    done = artifactsync("pull", "digits")
    *tree, verdict = done.out.splitlines()
    assert "\n".join(tree) == (
        "digits/\n"
        "├── checkpoints/\n"
        "│   └── ep3-ba30-rank0.pt   976.6 KiB\n"
        "├── logs-rank0.txt               16 B\n"
        "└── plots/\n"
        "    └── loss.png                400 B"
    )
    assert verdict.startswith("verified: checkpoint ep3-ba30, 3 files, 977.0 KiB in ")
    assert done.err == ""
    assert tree_of(artifactsync.cwd / "digits") == {NEWEST, *ARTIFACTS}
    for path in (NEWEST, *ARTIFACTS):
        assert (artifactsync.cwd / "digits" / path).read_bytes() == (digits / path).read_bytes()


@pytest.mark.usefixtures("digits")
def test_the_json(artifactsync: Command) -> None:
    document = artifactsync("pull", "digits", "there", "--json").json
    assert document.keys() >= FIELDS
    assert document["seconds"] >= 0
    assert {name: document[name] for name in FIELDS - {"seconds"}} == {
        "run_name": "digits",
        "checkpoint": "ep3-ba30",
        "destination": "there",
        "files": 3,
        "bytes": 1_000_446,
        "verified": True,
        "skipped_files": 0,
        "fallback_from": None,
    }
    assert artifactsync("pull", "digits", "there", "--json").json["skipped_files"] >= 1


@pytest.mark.usefixtures("digits")
@pytest.mark.parametrize(
    ("options", "came"),
    [
        (["--only", "checkpoints"], {NEWEST}),
        (["--only", "logs"], ARTIFACTS),
        (["--checkpoint", "none"], ARTIFACTS),
        (["--checkpoint", "latest", "--only", "checkpoints"], {NEWEST}),
        (["--checkpoint", "ep1-ba10", "--only", "checkpoints"], {"checkpoints/ep1-ba10-rank0.pt"}),
        (["--checkpoint", "best", "--metric", "val_loss", "--only", "checkpoints"], {NEWEST}),
        (["--metric", "val_loss", "--mode", "max", "--only", "checkpoints"], {"checkpoints/ep1-ba10-rank0.pt"}),
        (["--metric", "accuracy", "--only", "checkpoints"], {"checkpoints/ep1-ba10-rank0.pt"}),
        (["--include", "*.txt", "--include", "plots/*"], ARTIFACTS),
        (["--exclude", "*.pt"], ARTIFACTS),
        (["--include", "plots/*", "--exclude", "*.png"], set()),
    ],
)
def test_what_is_chosen_comes(artifactsync: Command, options: list[str], came: set[str]) -> None:
    planned = artifactsync("pull", "digits", *options, "--dry-run", "--json").json
    assert (set(planned["paths"]), planned["files"], planned["verified"]) == (came, len(came), False)
    assert not (artifactsync.cwd / "digits").exists()
    artifactsync("pull", "digits", *options)
    assert tree_of(artifactsync.cwd / "digits") == came


@pytest.mark.usefixtures("digits")
def test_a_dry_run_shows_the_tree(artifactsync: Command) -> None:
    done = artifactsync("pull", "digits", "--dry-run")
    assert "ep3-ba30-rank0.pt" in done.out
    assert done.out.endswith("would bring checkpoint ep3-ba30, 3 files, 977.0 KiB; nothing was written\n")


def test_a_run_without_checkpoints_brings_its_artifacts(artifactsync: Command, local: Remote, tmp_path: Path) -> None:
    artifactsync.environ.update(local.environ)
    make_run(local, "logs-only", local_root=tmp_path / "trainer", steps=())
    assert artifactsync("pull", "logs-only", "--json").json["checkpoint"] is None
    assert tree_of(artifactsync.cwd / "logs-only") == ARTIFACTS


@pytest.mark.usefixtures("digits")
def test_best_needs_no_metric_where_there_is_one(artifactsync: Command, local: Remote, tmp_path: Path) -> None:
    done = artifactsync("pull", "digits", "--checkpoint", "best", code=2)
    assert done.err.startswith("error: --checkpoint best needs --metric, one of: accuracy, val_loss.")
    make_run(local, "one", local_root=tmp_path / "trainer2", metrics=("val_loss",))
    assert artifactsync("pull", "one", "--checkpoint", "best", "--json").json["checkpoint"] == "ep3-ba30"


@pytest.mark.usefixtures("digits")
def test_an_unknown_checkpoint_names_those_there_are(artifactsync: Command) -> None:
    done = artifactsync("pull", "digits", "--checkpoint", "ep9", code=3)
    assert done.err == (
        "error: run 'digits' has no checkpoint 'ep9'\nhint: the newest ones are: ep3-ba30, ep2-ba20, ep1-ba10\n"
    )
    assert not (artifactsync.cwd / "digits").exists()
    assert artifactsync("pull", "digits", "--checkpoint", "x", "--json", code=3).json["error"]["kind"] == (
        "checkpoint-not-found"
    )
    assert "known metrics: accuracy, val_loss" in artifactsync("pull", "digits", "--metric", "loss", code=3).err


@pytest.mark.parametrize(
    "options",
    [
        ["--metric", "x", "--checkpoint", "latest"],
        ["--only", "logs", "--checkpoint", "ep1"],
        ["--only", "logs", "--metric", "x"],
        ["--only", "checkpoints", "--checkpoint", "none"],
    ],
)
def test_contradictions_are_usage_errors(artifactsync: Command, options: list[str]) -> None:
    assert artifactsync("pull", "digits", *options, "--json", code=2).json["error"]["kind"] == "usage"


@pytest.mark.usefixtures("digits")
def test_a_damaged_newest_checkpoint_falls_back_loudly(artifactsync: Command, tmp_path: Path) -> None:
    newest = tmp_path / "remote" / "digits" / NEWEST
    newest.write_bytes(newest.read_bytes()[:-1] + b"x")
    done = artifactsync("pull", "digits", "--json", "--quiet")
    assert done.err.startswith("warning: checkpoint ep3-ba30 is damaged")
    assert (done.json["checkpoint"], done.json["fallback_from"]) == ("ep2-ba20", "ep3-ba30")
    assert tree_of(artifactsync.cwd / "digits") == {"checkpoints/ep2-ba20-rank0.pt", *ARTIFACTS}
    damaged = artifactsync("pull", "digits", "other", "--checkpoint", "ep3-ba30", "--json", code=4)
    assert damaged.json["error"]["kind"] == "damaged"
    assert NEWEST not in tree_of(artifactsync.cwd / "other")


@pytest.mark.usefixtures("digits")
def test_quiet_says_nothing_when_all_is_well(artifactsync: Command) -> None:
    done = artifactsync("pull", "digits", "--quiet")
    assert (done.out, done.err) == ("", "")


@pytest.mark.usefixtures("digits")
def test_a_destination_that_is_a_file_is_refused(artifactsync: Command) -> None:
    (artifactsync.cwd / "digits").write_text("mine")
    done = artifactsync("pull", "digits", code=2)
    error, hint = done.err.splitlines()
    assert error.startswith("error: digits cannot be a folder")
    assert hint.startswith("hint: choose another destination")
    assert (artifactsync.cwd / "digits").read_text() == "mine"
    below = artifactsync("pull", "digits", "digits/below", "--json", code=2).json["error"]
    assert below["kind"] == "destination"


@pytest.mark.usefixtures("digits")
def test_a_file_in_the_way_of_a_folder_is_refused(artifactsync: Command) -> None:
    (artifactsync.cwd / "digits").mkdir()
    (artifactsync.cwd / "digits" / "checkpoints").write_text("mine")
    assert artifactsync("pull", "digits", "--json", code=2).json["error"]["kind"] == "destination"
    assert (artifactsync.cwd / "digits" / "checkpoints").read_text() == "mine"


@pytest.mark.usefixtures("digits")
def test_a_full_disk_leaves_nothing_visible(artifactsync: Command) -> None:
    # A file size limit gives EFBIG where a full disk gives ENOSPC; a mount of its own needs root.
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

    done = artifactsync("pull", "digits", code=1, preexec_fn=limit)
    error, hint = done.err.splitlines()
    assert error.startswith("error: no space left for ")
    assert hint.startswith("hint: free some space")
    assert NEWEST not in tree_of(artifactsync.cwd / "digits")
    as_json = artifactsync("pull", "digits", "--json", code=1, preexec_fn=limit).json
    assert as_json["error"]["kind"] == "disk-full"
    assert artifactsync("pull", "digits", "--json").json["verified"] is True


@pytest.mark.usefixtures("digits")
def test_a_link_in_the_destination_is_not_followed(artifactsync: Command, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (artifactsync.cwd / "digits").mkdir()
    (artifactsync.cwd / "digits" / "plots").symlink_to(outside)
    artifactsync("pull", "digits", code=2)
    assert list(outside.iterdir()) == []


@pytest.mark.usefixtures("digits")
def test_a_hostile_key_is_left_where_it_is_and_said(artifactsync: Command, tmp_path: Path) -> None:
    (tmp_path / "remote" / "digits" / "bad\x1b[2Jname").write_bytes(b"x")
    done = artifactsync("pull", "digits")
    assert "\x1b" not in done.err
    assert done.err.startswith("warning: 1 artifact(s) have keys that cannot be files here")
    assert artifactsync("pull", "digits", "--json").json["refused"] == ["digits/bad\x1b[2Jname"]
    assert artifactsync("pull", "digits", "--exclude", "bad*", "--json").json["refused"] == []
