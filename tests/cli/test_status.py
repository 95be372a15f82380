from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from artifactsync.cli.status import status_text
from artifactsync.run import Run, RunStatus

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import Command, Remote


@pytest.mark.usefixtures("digits")
def test_the_json_of_a_finished_run(artifactsync: Command) -> None:
    document = artifactsync("status", "digits", "--json").json
    expected = {
        "run_name": "digits",
        "attempt": 1,
        "state": "completed",
        "alive": False,
        "durable_step": 30,
        "pending_files": 0,
        "pending_bytes": 0,
        "bytes_per_s": 0.0,
        "eta_s": None,
    }
    assert {name: document[name] for name in expected} == expected
    assert "local_step" in document


def test_a_live_run_is_alive(artifactsync: Command, local: Remote, tmp_path: Path) -> None:
    artifactsync.environ.update(local.environ)
    with Run("live", remote=local.url, local_root=tmp_path / "trainer"):
        document = artifactsync("status", "live", "--json").json
        assert (document["state"], document["alive"], document["durable_step"]) == ("running", True, None)
        assert artifactsync("status", "live").out.splitlines()[:3] == [
            "run           live",
            "state         running, alive",
            "attempt       1",
        ]


def test_a_run_without_an_end_says_that_it_can_go_on(artifactsync: Command, local: Remote, tmp_path: Path) -> None:
    program = (
        "import os, signal, sys; from artifactsync import Run\n"
        f"run = Run('lost', remote={local.url!r}, local_root={str(tmp_path)!r})\n"
        "(run.local_dir / 'f').write_text('1')\n"
        "run.save_files({'f': run.local_dir / 'f'}, step=1200).result()\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", program], check=False, env={**os.environ, **local.environ})
    assert killed.returncode == -signal.SIGKILL
    artifactsync.environ.update(local.environ)
    done = artifactsync("status", "lost")
    assert done.out.splitlines()[1] == "state         unknown, not alive"
    assert done.err == (
        "nobody wrote down how it ended, as after kill -9; opened by its name it goes on after step 1,200\n"
    )


def test_the_text_of_a_run_that_lags() -> None:
    status = RunStatus(
        run_name="digits",
        attempt=2,
        state="running",
        alive=True,
        durable_step=1200,
        local_step=1300,
        pending_files=3,
        pending_bytes=5 * 1024**2,
        bytes_per_s=1024.0**2,
        eta_s=5.0,
        last_error="503 from\x1b[2J the store",
    )
    assert status_text(status) == (
        "run           digits\n"
        "state         running, alive\n"
        "attempt       2\n"
        "durable step  1,200\n"
        "local step    1,300\n"
        "backlog       3 files, 5.0 MiB\n"
        "rate          1.0 MiB/s\n"
        "eta           5.0 s\n"
        "last error    503 from\\x1b[2J the store"
    )
