"""One process for all frameworks: see ``warm``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Done:
    """A program that has ended."""

    code: int
    output: str


class Warm:
    """Runs programs in children of a process that has imported the frameworks."""

    def __init__(self, process):
        self._process = process

    def __call__(self, program, *arguments, cwd, code=0, env=None):
        job = {"program": program, "arguments": [a if isinstance(a, (int, type(None))) else str(a) for a in arguments]}
        done = self._ask({**job, "cwd": str(cwd), "env": env or {}})
        assert done.code == code, done.output
        return done

    def _ask(self, job):
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the process that runs the programs has died"
        return Done(**json.loads(line))


@pytest.fixture(scope="session")
def warm():
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "DO_NOT_TRACK": "1",
        "PYTHONPATH": str(ROOT),
    }
    with subprocess.Popen(
        [sys.executable, "-m", "tests.integrations.warm"],
        cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert json.loads(process.stdout.readline())["ready"]
        yield Warm(process)
        process.stdin.close()
