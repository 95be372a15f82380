from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from artifactsync.run import Run
from tests.cli.conftest import Remote, make_run

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import Command


@pytest.mark.usefixtures("digits")
def test_a_run_is_copied_and_copied_again(artifactsync: Command, tmp_path: Path) -> None:
    there = str(tmp_path / "archive")
    document = artifactsync("cp", "digits", there, "--json").json
    assert {name: document[name] for name in ("run_name", "checkpoints", "verified", "skipped_files")} == {
        "run_name": "digits",
        "checkpoints": 3,
        "verified": True,
        "skipped_files": 0,
    }
    assert document["target"].endswith("/archive")
    original, copy = (artifactsync("ls", "digits", "--json", *more).json for more in ((), ("--remote", there)))
    assert copy == original
    assert artifactsync("--remote", there, "verify", "digits", "--deep", "--json").json["ok"]
    again = artifactsync("cp", "digits", there)
    assert again.out.startswith("verified: 3 checkpoints, ")
    assert "there already" in again.out
    assert artifactsync("--quiet", "cp", "digits", there).out == ""


@pytest.mark.usefixtures("digits")
def test_a_dry_run_writes_nothing_and_refuses_what_a_copy_would(
    artifactsync: Command, local: Remote, tmp_path: Path
) -> None:
    there = tmp_path / "archive"
    done = artifactsync("cp", "digits", str(there), "--dry-run")
    assert done.out.startswith("would copy: 3 checkpoints, 6 files, 2.9 MiB to file://")
    assert done.out.endswith("/archive/digits; nothing was written\n")
    assert not list(there.rglob("*"))
    assert not artifactsync("cp", "digits", str(there), "--dry-run", "--json").json["verified"]
    artifactsync("cp", "digits", str(there))
    before = {path: path.stat().st_mtime_ns for path in there.rglob("*")}
    document = artifactsync("cp", "digits", str(there), "--dry-run", "--json").json
    assert (document["files"], document["skipped_files"], document["dry_run"]) == (6, 6, True)
    assert {path: path.stat().st_mtime_ns for path in there.rglob("*")} == before
    make_run(Remote(str(tmp_path / "other"), {}, {}), "digits", local_root=tmp_path / "elsewhere", steps=(1,))
    artifactsync("cp", "digits", str(tmp_path / "other"), "--dry-run", code=2)
    artifactsync("cp", "digits", local.url, "--dry-run", code=2)


@pytest.mark.usefixtures("digits")
def test_what_is_refused(artifactsync: Command, local: Remote, tmp_path: Path) -> None:
    assert artifactsync("cp", "digits", local.url, code=2).err.startswith("error: both remotes are the same")
    assert "there is no run" in artifactsync("cp", "digit", str(tmp_path / "x"), code=3).err
    other = Remote(str(tmp_path / "other"), {}, {})
    make_run(other, "digits", local_root=tmp_path / "elsewhere", steps=(1,))
    refused = artifactsync("cp", "digits", other.url, "--json", code=2).json["error"]
    assert refused["kind"] == "destination"
    assert "another run of that name" in refused["message"]
    assert artifactsync("cp", "digits", code=2).err.startswith("error: Missing argument 'REMOTE2'")


def test_from_and_to_each_kind_of_remote(artifactsync: Command, remote: Remote, tmp_path: Path) -> None:
    make_run(remote, "digits", local_root=tmp_path / "trainer")
    there = str(tmp_path / "archive")
    artifactsync("cp", "digits", there)
    artifactsync("--remote", there, "cp", "digits", f"{remote.url}/copies")
    with Run(
        "digits", remote=f"{remote.url}/copies", storage_options=dict(remote.storage_options), read_only=True
    ) as run:
        assert run.verify(deep=True).ok
        assert [checkpoint.step for checkpoint in run.checkpoints()] == [10, 20, 30]
        assert sorted(artifact.path for artifact in run.artifacts()) == ["logs-rank0.txt", "plots/loss.png"]
