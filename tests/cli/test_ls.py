from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from artifactsync.cli.application import cli
from artifactsync.cli.session import Session
from artifactsync.cli.units import as_moment
from artifactsync.run import list_runs
from tests.cli.conftest import Command, Remote, make_run

if TYPE_CHECKING:
    from pathlib import Path


RUNS = """\
RUN     STATE      LAST STEP  CHECKPOINTS     SIZE        AGE
digits  completed         30            3  2.9 MiB  3 min ago
"""

RUN = """\
digits  completed, attempt 1

CHECKPOINT  STEP  ATTEMPT  FILES       SIZE        AGE  METRICS
ep1-ba10      10        1      1  976.6 KiB  3 min ago  accuracy=0.25 val_loss=0.1
ep2-ba20      20        1      1  976.6 KiB  3 min ago  accuracy=0.5 val_loss=0.05
ep3-ba30      30        1      1  976.6 KiB  3 min ago  accuracy=0.75 val_loss=0.03333

ARTIFACT         SIZE
logs-rank0.txt   16 B
plots/loss.png  400 B
"""


@pytest.mark.usefixtures("digits")
@pytest.mark.parametrize(("arguments", "golden"), [(["ls"], RUNS), (["ls", "digits"], RUN)])
def test_the_text_of_a_pipe(
    local: Remote, capsys: pytest.CaptureFixture[str], arguments: list[str], golden: str
) -> None:
    committed_at = as_moment(list_runs(local.url)[0].last_commit_at)
    assert committed_at is not None
    session = Session(remote_option=local.url, now=lambda: committed_at + timedelta(seconds=190))
    cli.main(arguments, obj=session, standalone_mode=False)
    assert capsys.readouterr() == (golden, "")


@pytest.mark.usefixtures("digits")
def test_the_json_of_all_runs(artifactsync: Command, local: Remote, tmp_path: Path) -> None:
    make_run(local, "other", local_root=tmp_path / "trainer2", steps=())
    document = artifactsync("ls", "--json").json
    assert document.keys() == {"runs"}
    first, second = document["runs"]
    assert as_moment(first.pop("last_commit_at")) is not None
    assert first.pop("bytes") == sum(c["bytes"] for c in artifactsync("ls", "digits", "--json").json["checkpoints"])
    assert first == {"run_name": "digits", "last_step": 30, "checkpoints": 3, "state": "completed"}
    assert second == {
        "run_name": "other",
        "last_step": None,
        "checkpoints": 0,
        "bytes": 416,
        "state": "completed",
        "last_commit_at": None,
    }


@pytest.mark.usefixtures("digits")
def test_the_json_of_one_run(artifactsync: Command) -> None:
    document = artifactsync("ls", "digits", "--json").json
    assert document.keys() == {"run_name", "attempt", "state", "checkpoints", "artifacts"}
    assert (document["run_name"], document["attempt"], document["state"]) == ("digits", 1, "completed")
    assert [checkpoint["name"] for checkpoint in document["checkpoints"]] == ["ep1-ba10", "ep2-ba20", "ep3-ba30"]
    checkpoint = document["checkpoints"][1]
    fields = {"name", "step", "epoch", "batch", "attempt", "bytes", "committed_at", "metrics", "files"}
    assert checkpoint.keys() >= fields
    assert checkpoint["metrics"] == {"val_loss": 0.05, "accuracy": 0.5}
    (file,) = checkpoint["files"]
    assert file.keys() == {"path", "key", "size", "sha256"}
    assert file["path"] == "checkpoints/ep2-ba20-rank0.pt"
    assert file["key"] == "digits/checkpoints/ep2-ba20-rank0.pt"
    assert document["artifacts"] == [
        {"path": "logs-rank0.txt", "key": "digits/logs-rank0.txt", "size": 16},
        {"path": "plots/loss.png", "key": "digits/plots/loss.png", "size": 400},
    ]


def test_an_empty_remote_is_no_error(artifactsync: Command, tmp_path: Path) -> None:
    done = artifactsync("ls", "--remote", str(tmp_path / "nothing"))
    assert done.out == ""
    assert done.err.startswith("no runs at ")
    assert artifactsync("ls", "--json", "--remote", str(tmp_path / "nothing")).json == {"runs": []}
    assert artifactsync("ls", "--quiet", "--remote", str(tmp_path / "nothing")).err == ""


@pytest.mark.usefixtures("digits")
def test_global_options_go_before_and_after_the_command(artifactsync: Command, local: Remote) -> None:
    artifactsync.environ["ARTIFACTSYNC_REMOTE"] = "/nowhere"
    before = artifactsync("--remote", local.url, "--json", "--quiet", "ls")
    after = artifactsync("ls", "--remote", local.url, "--json", "--quiet")
    assert before.json == after.json
    assert [run["run_name"] for run in before.json["runs"]] == ["digits"]
    assert artifactsync("--remote", "/nowhere", "ls", "--remote", local.url, "--json").json == before.json


@pytest.mark.usefixtures("digits")
def test_the_remote_of_a_project_is_found_from_its_folders(artifactsync: Command, local: Remote) -> None:
    del artifactsync.environ["ARTIFACTSYNC_REMOTE"]
    (artifactsync.cwd / "pyproject.toml").write_text('[tool.artifactsync]\nremote = "../remote"\n')
    inner = artifactsync.cwd / "src" / "deep"
    inner.mkdir(parents=True)
    assert local.url.endswith("/remote")
    assert Command(artifactsync.program, inner)("ls", "--json").json["runs"][0]["run_name"] == "digits"


def test_hostile_names_reach_no_terminal(artifactsync: Command, digits: Path, local: Remote, tmp_path: Path) -> None:
    folder = tmp_path / "remote" / "digits"
    hostile = ["\x1b]0;owned\x07.txt", "x\u202egnp.exe", "[bold red]b[", "two\nlines", "\x1b[2Jclear"]
    for name in hostile:
        (folder / name).write_bytes(b"1")
    for text in (artifactsync("ls", "digits").out, artifactsync.on_terminal("ls", "digits", env={"NO_COLOR": "1"})):
        assert "\x1b" not in text
        assert "\x07" not in text
        assert "\u202e" not in text
        assert "[bold red]b[" in text
        assert "two\\x0alines" in text
    on_terminal = artifactsync.on_terminal("ls", "digits")
    assert "\x1b]0" not in on_terminal
    assert "\x1b[2J" not in on_terminal
    assert "\u202e" not in on_terminal
    assert "[bold red]b[" in on_terminal
    found = {artifact["path"] for artifact in artifactsync("ls", "digits", "--json").json["artifacts"]}
    assert found >= set(hostile)


@pytest.mark.usefixtures("digits")
def test_a_reader_that_goes_away_is_no_error(artifactsync: Command) -> None:
    done = artifactsync.in_bash("artifactsync ls digits | head -1")
    assert done.out == "digits  completed, attempt 1\n"
    assert done.err == ""
