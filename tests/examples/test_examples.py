"""The examples as a newcomer runs them: as programs, twice, the second time on another machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from artifactsync import Run

_EXAMPLES = Path(__file__).parents[2] / "examples"


def _run(name, *arguments, environment=None):
    return subprocess.run(
        [sys.executable, "-W", "error", str(_EXAMPLES / name), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
        env={**os.environ, **(environment or {})},
    )


def test_mnist_trains_and_goes_on_elsewhere(tmp_path, s3):
    arguments = ["--run-name", "digits", "--remote", s3.fresh_url(), "--save-interval", "10ba"]
    first = _run(
        "mnist.py", *arguments, "--local-root", tmp_path / "a", "--max-duration", "1ep", environment=s3.environment
    )
    assert first.returncode == 0, first.stderr
    assert "run digits: accuracy 0." in first.stdout
    second = _run(
        "mnist.py", *arguments, "--local-root", tmp_path / "b", "--max-duration", "2ep", environment=s3.environment
    )
    assert second.returncode == 0, second.stderr
    assert "continuing after batch 24" in second.stderr
    accuracy = float(second.stdout.split("accuracy ")[1])
    assert accuracy > 0.8
    run = Run("digits", remote=arguments[3], read_only=True, storage_options=s3.storage_options)
    assert [c.name for c in run.checkpoints()] == [
        "ep0-ba10",
        "ep0-ba20",
        "ep1-ba24",
        "ep1-ba30",
        "ep1-ba40",
        "ep2-ba48",
    ]
    assert run.status().state == "completed"


def test_plain_loop_goes_on_with_the_same_numbers(tmp_path):
    first = _run("plain_loop.py", "--run-name", "p", "--remote", tmp_path / "r", "--local-root", tmp_path / "a")
    assert first.returncode == 0, first.stderr
    for steps, host in ((110, "b"), (300, "c")):
        again = _run(
            *["plain_loop.py", "--run-name", "q", "--remote", tmp_path / "r"],
            *["--local-root", tmp_path / host, "--steps", steps],
        )
        assert again.returncode == 0, again.stderr
    assert "attempt 2: starting at step 110" in again.stdout
    assert again.stdout.splitlines()[-2] == first.stdout.splitlines()[-2]  # the last loss
    assert again.stdout.split("accuracy")[1] == first.stdout.split("accuracy")[1]
    assert "durable up to step 300" in again.stdout
