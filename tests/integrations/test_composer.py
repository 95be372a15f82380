"""Composer with its real package, in an environment of its own: it wants an older torch than the one tested here."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from artifactsync import Run
from artifactsync.errors import MissingPackageError

ROOT = Path(__file__).parents[2]


def test_without_composer_it_says_what_is_missing():
    with pytest.raises(MissingPackageError, match="needs Composer") as told:
        import artifactsync.integrations.composer  # noqa: F401, PLC0415
    assert "mosaicml" in told.value.hint


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """A Python with Composer, which takes about a minute, and 6 GB."""
    folder = tmp_path_factory.mktemp("composer") / "venv"
    subprocess.run([sys.executable, "-m", "uv", "venv", "-q", folder], check=True)
    made = folder / "bin" / "python"
    subprocess.run([sys.executable, "-m", "uv", "pip", "install", "-q", "--python", made, "mosaicml", ROOT], check=True)
    return made


@pytest.mark.crash
def test_killed_and_resumed_elsewhere_it_ends_with_the_same_bytes(python, tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}

    def train(remote, local, *more):
        (tmp_path / local).mkdir()
        command = [python, "-m", "tests.integrations.composer_program", tmp_path / remote, tmp_path / local, *more]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=tmp_path)

    began = time.monotonic()
    done = train("remote-of-straight", "straight")
    assert done.returncode == 0, done.stderr
    assert train("remote", "first", "11").returncode == -signal.SIGKILL
    run = Run("digits", remote=tmp_path / "remote", read_only=True)
    assert run.latest().step == 9
    shutil.rmtree(tmp_path / "first")  # another machine
    done = train("remote", "second")
    assert done.returncode == 0, done.stderr
    assert [c.step for c in run.checkpoints()] == [3, 6, 9, 12, 15, 16]
    assert run.status().state == "completed"
    assert run.verify(deep=True).ok
    for name in ("final.pt", "optimizer.pt"):
        assert (tmp_path / "second" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()
    assert (tmp_path / "second" / "back.pt").read_bytes() == (tmp_path / "second" / "final.pt").read_bytes()
    print(f"Composer: killed at batch 11 of 16, resumed at 9 elsewhere, same bytes; {time.monotonic() - began:.0f} s")
