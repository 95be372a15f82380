"""Real commands under the real supervisor, each in a working folder of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from artifactsync.run import Run

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

TIMEOUT_S = 300  # the long forms print for a minute; a hang in the short ones is pytest-timeout's to find

# Writes what torch.save writes, as far as the supervisor looks at it, without the seconds that importing torch takes.
PRELUDE = """
import glob, os, pathlib, pickle, signal, sys, time, zipfile

def save(path, step, size=1000):
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"global_step": step}))
        archive.writestr("archive/data/0", os.urandom(size))

def load(path):
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        return pickle.loads(archive.read("archive/data.pkl"))["global_step"]
"""


class Machine:
    """A working folder, and commands that are supervised in it."""

    def __init__(
        self, folder: Path, remote: str, environ: Mapping[str, str] | None, options: Mapping[str, str]
    ) -> None:
        self.storage_options = dict(options)
        """For looking, from this process."""
        self.folder = folder
        self.remote = remote
        self.environ = {**os.environ, **(environ or {})}
        folder.mkdir(parents=True, exist_ok=True)
        self._processes: list[subprocess.Popen[str]] = []

    def start(self, script: str, *options: str, name: str = "r", settle: str = "0.1", **more) -> subprocess.Popen[str]:
        """Start a Python script under the supervisor."""
        (self.folder / "train.py").write_text(PRELUDE + textwrap.dedent(script))
        return self.start_command([sys.executable, "train.py"], *options, name=name, settle=settle, **more)

    def start_command(
        self,
        command: list[str],
        *options: str,
        name: str = "r",
        settle: str = "0.1",
        stdout_to: int = subprocess.PIPE,
        **more,
    ) -> subprocess.Popen[str]:
        """Start any command under the supervisor."""
        program = Path(sys.executable).parent / "artifactsync"
        head = [str(program), "--remote", self.remote, "run", "--name", name, "--settle", settle, *options, "--"]
        process = subprocess.Popen(
            [*head, *command],
            cwd=self.folder,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            stdout=stdout_to,
            stderr=subprocess.PIPE,
            text=True,
            **more,
        )
        self._processes.append(process)
        return process

    def run(self, script: str, *options: str, code: int = 0, **more) -> tuple[str, str]:
        """Run a script to its end; returns what was written to stdout and stderr."""
        return ended(self.start(script, *options, **more), code)

    def wait_for(self, what: Callable[[], object], *, timeout_s: float = TIMEOUT_S) -> None:
        """Wait until something is so, outside of the processes under test."""
        give_up_at = time.monotonic() + timeout_s
        while not what():
            assert time.monotonic() < give_up_at, "it never came"
            time.sleep(0.02)

    def view(self, name: str = "r") -> Run:
        """The run, for looking."""
        return Run(name, remote=self.remote, read_only=True, storage_options=self.storage_options)

    def close(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.kill()
                process.communicate()


def ended(process: subprocess.Popen[str], code: int | None = 0) -> tuple[str, str]:
    """Wait for its end; its exit code must be ``code``."""
    try:
        out, err = process.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        out, err = process.communicate()
        raise AssertionError(f"it does not end\n{out[-2000:]}\n{err[-2000:]}") from None
    assert code is None or process.returncode == code, (process.returncode, out[-2000:], err[-2000:])
    assert "Traceback" not in err or "train.py" in err, err
    return out, err


@pytest.fixture
def machines(tmp_path):
    """A factory: each call is a fresh folder, all with one remote."""
    made: list[Machine] = []

    def make(
        remote: str | None = None, environ: Mapping[str, str] | None = None, options: Mapping[str, str] | None = None
    ) -> Machine:
        folder = tmp_path / f"machine{len(made)}"
        made.append(Machine(folder, remote or str(tmp_path / "bucket"), environ, options or {}))
        return made[-1]

    yield make
    for machine in made:
        machine.close()


@pytest.fixture
def machine(machines):
    return machines()
