from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.cli.conftest import Command, Remote, make_run, tree_of

if TYPE_CHECKING:
    from pathlib import Path


def test_there_and_back_by_name(artifactsync: Command, remote: Remote, tmp_path: Path) -> None:
    trainer = make_run(remote, "cloudy", local_root=tmp_path / "trainer", steps=(10, 20))
    payload = os.urandom(3_000_000)
    (artifactsync.cwd / "blob.bin").write_bytes(payload)

    assert artifactsync("push", "cloudy", "blob.bin", "--as", "extra/blob.bin", "--json").json["files"] == 1
    (run,) = artifactsync("ls", "--json").json["runs"]
    assert (run["run_name"], run["last_step"], run["checkpoints"]) == ("cloudy", 20, 2)
    listed = artifactsync("ls", "cloudy", "--json").json
    assert [checkpoint["name"] for checkpoint in listed["checkpoints"]] == ["ep1-ba10", "ep2-ba20"]
    artifacts = {"extra/blob.bin", "logs-rank0.txt", "plots/loss.png"}
    assert {artifact["path"] for artifact in listed["artifacts"]} == artifacts
    assert artifactsync("status", "cloudy", "--json").json["durable_step"] == 20
    assert artifactsync("verify", "cloudy", "--deep", "--json").json["ok"] is True

    error = artifactsync("pull", "clouds", "--json", code=3).json["error"]
    assert (error["kind"], error["hint"]) == ("run-not-found", "did you mean cloudy?")

    assert "verified: checkpoint ep2-ba20, 4 files" in artifactsync("pull", "cloudy").out
    here = artifactsync.cwd / "cloudy"
    newest = "checkpoints/ep2-ba20-rank0.pt"
    assert tree_of(here) == {newest, *artifacts}
    assert (here / "extra" / "blob.bin").read_bytes() == payload
    assert (here / newest).read_bytes() == (trainer / newest).read_bytes()


@pytest.mark.usefixtures("digits")
def test_an_unknown_run_is_not_found(artifactsync: Command) -> None:
    for command in (["ls", "digist"], ["pull", "digist"], ["status", "digist"], ["verify", "digist"]):
        error = artifactsync(*command, "--json", code=3).json["error"]
        assert error["kind"] == "run-not-found"
        assert "digits" in error["hint"]
    assert not (artifactsync.cwd / "digist").exists()
