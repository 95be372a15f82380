from __future__ import annotations

import os
import pty
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from artifactsync.run import Run
from tests.cli.conftest import make_run

if TYPE_CHECKING:
    from tests.cli.conftest import Command, Remote


def objects(local: Remote) -> list[Path]:
    return sorted(path for path in Path(local.url).rglob("*") if path.is_file())


@pytest.mark.usefixtures("digits")
def test_without_yes_it_shows_what_would_go_and_does_nothing(artifactsync: Command, local: Remote) -> None:
    before = objects(local)
    done = artifactsync("rm", "digits", code=2)
    assert done.out.startswith(f"would remove digits at {Path(local.url).as_uri()}: 3 checkpoints, ")
    assert "--yes is missing" in done.err
    document = artifactsync("rm", "digits", "--json", code=2).json
    assert (document["removed"], document["checkpoints"], document["error"]["kind"]) == (False, 3, "usage")
    assert document["deleted_keys"] == len(before)
    assert objects(local) == before


@pytest.mark.usefixtures("digits")
def test_a_dry_run_is_no_failure_and_stronger_than_yes(artifactsync: Command, local: Remote) -> None:
    before = objects(local)
    done = artifactsync("rm", "digits", "--dry-run", "--yes")
    assert done.out.startswith(f"would remove digits at {Path(local.url).as_uri()}: 3 checkpoints, ")
    assert done.out.endswith("; nothing was removed\n")
    document = artifactsync("rm", "digits", "--dry-run", "--json").json
    assert (document["removed"], document["deleted_keys"]) == (False, len(before))
    assert "error" not in document
    assert objects(local) == before
    artifactsync("rm", "digit", "--dry-run", code=3)


@pytest.mark.usefixtures("digits")
def test_with_yes_everything_of_it_goes(artifactsync: Command, local: Remote, tmp_path: Path) -> None:
    make_run(local, "other", local_root=tmp_path / "trainer", steps=(1,))
    document = artifactsync("rm", "digits", "--yes", "--json").json
    assert (document["removed"], document["run_name"], document["checkpoints"]) == (True, "digits", 3)
    assert [run["run_name"] for run in artifactsync("ls", "--json").json["runs"]] == ["other"]
    assert artifactsync("rm", "other", "--yes").out.startswith("removed: 1 checkpoint, ")
    assert objects(local) == []
    assert "there is no run" in artifactsync("rm", "digits", "--yes", code=3).err


def test_on_each_kind_of_remote(artifactsync: Command, remote: Remote, tmp_path: Path) -> None:
    make_run(remote, "digits", local_root=tmp_path / "trainer", steps=(10,))
    assert artifactsync("rm", "digits", "--yes", "--json").json["removed"]
    assert artifactsync("ls", "--json").json["runs"] == []


def test_a_live_run_stays(artifactsync: Command, local: Remote, tmp_path: Path) -> None:
    artifactsync.environ.update(local.environ)
    with Run("live", remote=local.url, local_root=tmp_path / "trainer"):
        done = artifactsync("rm", "live", "--yes", code=5)
    assert "is in use by attempt 1 (host " in done.err
    assert f"process {os.getpid()}, since " in done.err
    assert "hint: stop that process first; nothing was removed" in done.err


@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("n", 2)])
@pytest.mark.usefixtures("digits")
def test_on_a_terminal_it_asks(artifactsync: Command, local: Remote, answer: str, code: int) -> None:
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [artifactsync.program, "rm", "digits"],
        cwd=artifactsync.cwd,
        env=artifactsync.environ,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    ) as process:
        os.close(theirs)
        written = b""
        while b"Remove it for good?" not in written:
            written += os.read(ours, 4096)
        os.write(ours, f"{answer}\n".encode())
        try:
            while part := os.read(ours, 4096):
                written += part
        except OSError:  # the other side is closed
            pass
        assert process.wait(60) == code, written
    os.close(ours)
    assert (objects(local) == []) == (answer == "y")
    assert b"Traceback" not in written
