from __future__ import annotations

import contextlib
import signal
from typing import TYPE_CHECKING

import pytest

from artifactsync.run import Run
from tests.cli.conftest import TIMEOUT_S, Command, Remote, Terminal, make_run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def terminal(artifactsync: Command) -> Iterator[Terminal]:
    with contextlib.closing(Terminal(artifactsync, columns=100, lines=14)) as made:
        yield made


@pytest.mark.usefixtures("digits")
def test_new_runs_appear_until_ctrl_c(terminal: Terminal, local: Remote, tmp_path: Path) -> None:
    terminal.start("ls", "--watch", "--every", "0.5")
    lines = terminal.wait_for("digits")
    assert lines[0] == "1 run"
    assert lines[-1].endswith(" UTC, again every 0.5 s; Ctrl-C ends it")
    for number in range(8):
        make_run(local, f"sweep-{number}", local_root=tmp_path / "trainer2", steps=(1,))
    lines = terminal.wait_for("sweep-7  completed")
    assert lines[0] == "9 runs"
    assert len([line for line in lines if "completed" in line]) == 7, "as many as fit into 14 lines"
    assert lines[4].startswith("sweep-7"), "the newest"
    assert "again every" in lines[-1], "nothing scrolled"
    terminal.signal(signal.SIGINT)
    assert terminal.ended() == 130


def test_the_newest_checkpoint_is_on_top_and_a_failure_is_waited_out(
    terminal: Terminal, digits: Path, local: Remote, tmp_path: Path
) -> None:
    remote = tmp_path / "remote" / "digits"
    terminal.start("ls", "digits", "--watch", "--every", "0.5")
    lines = terminal.wait_for("ep3-ba30")
    assert lines[:2] == ["digits  completed, attempt 1", "3 checkpoints; 2 artifacts, 416 B"]
    assert [line.split()[0] for line in lines[5:8]] == ["ep3-ba30", "ep2-ba20", "ep1-ba10"]
    remote.rename(tmp_path / "away")
    lines = terminal.wait_for("error: ")
    assert lines[5].startswith("ep3-ba30"), "what was known last stays"
    (tmp_path / "away").rename(remote)
    with Run("digits", remote=local.url, local_root=tmp_path / "trainer") as run:
        run.save_files([digits / "logs-rank0.txt"], step=40, name="newest").result(TIMEOUT_S)
    lines = terminal.wait_for("newest")
    assert lines[5].startswith("newest")
    assert not any(line.startswith("error: ") for line in lines)
    terminal.signal(signal.SIGINT)
    assert terminal.ended() == 130


@pytest.mark.usefixtures("digits")
def test_what_is_refused(artifactsync: Command) -> None:
    assert "--json is one document" in artifactsync("ls", "--watch", "--json", code=2).json["error"]["message"]
    assert "there is no run" in artifactsync("ls", "digit", "--watch", code=3).err
    artifactsync("ls", "--watch", "--every", "0", code=2)


@pytest.mark.usefixtures("digits")
def test_in_a_pipe_there_are_no_escapes(artifactsync: Command) -> None:
    with artifactsync.start("ls", "--watch", "--every", "0.5") as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(8)]
        process.send_signal(signal.SIGINT)
        assert process.wait(TIMEOUT_S) == 130
    assert lines[0] == lines[7] == "1 run\n"
    assert "\x1b" not in "".join(lines)
