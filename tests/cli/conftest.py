"""The real command in a process of its own: in a pipe, and on a terminal."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyte
import pytest

from artifactsync.run import Run

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

TIMEOUT_S = 60


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON document on stdout."""
        return json.loads(self.out)


class Command:
    """``artifactsync`` as a user has it on PATH, in an empty folder of its own."""

    def __init__(self, program: Path, cwd: Path) -> None:
        self.program = program
        self.cwd = cwd
        self.environ: dict[str, str] = {**os.environ, "HOME": str(cwd), "TERM": "xterm-256color", "LANG": "C.UTF-8"}
        self.environ.pop("NO_COLOR", None)

    def __call__(
        self, *arguments: str, code: int | None = 0, env: Mapping[str, str] | None = None, **more: Any
    ) -> Done:
        """Run it in a pipe; its exit code must be ``code`` (None: any)."""
        done = self.run([str(self.program), *arguments], env=env, **more)
        assert code is None or done.code == code, done
        assert "Traceback" not in done.err, done
        return done

    def run(self, command: Sequence[str], *, env: Mapping[str, str] | None = None, **more: Any) -> Done:
        """Run any program beside it."""
        done = subprocess.run(
            command,
            cwd=self.cwd,
            env={**self.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT_S,
            **more,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def in_bash(self, script: str) -> Done:
        """Run a bash script that finds the command on PATH."""
        path = f"{self.program.parent}:{self.environ['PATH']}"
        return self.run(["bash", "--norc", "-c", script], env={"PATH": path})

    def start(self, *arguments: str, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        """Start it and do not wait; the caller does."""
        return subprocess.Popen(
            [self.program, *arguments],
            cwd=self.cwd,
            env={**self.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def on_terminal(
        self, *arguments: str, columns: int = 80, code: int | None = 0, env: Mapping[str, str] | None = None
    ) -> str:
        """Run it on a terminal; return everything that was written there, with its escapes."""
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        with subprocess.Popen(
            [self.program, *arguments],
            cwd=self.cwd,
            env={**self.environ, **(env or {})},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        ) as process:
            os.close(theirs)
            written = bytearray()
            while True:
                try:
                    part = os.read(ours, 65536)
                except OSError:  # EIO: the other side is closed
                    break
                if not part:
                    break
                written += part
            ended = process.wait(TIMEOUT_S)
        os.close(ours)
        text = written.decode().replace("\r\n", "\n")
        assert code is None or ended == code, text
        assert "Traceback" not in text, text
        return text


def without_escapes(text: str) -> str:
    """What is left to read of terminal output."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


class Terminal:
    """A terminal in which one command runs, as somebody sees it at each moment."""

    def __init__(self, command: Command, *, columns: int, lines: int) -> None:
        self._command = command
        self._screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self._screen)
        self._ours, self._theirs = pty.openpty()
        fcntl.ioctl(self._theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.process: subprocess.Popen[bytes]

    def close(self) -> None:
        """End the command and the terminal."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(TIMEOUT_S)
        os.close(self._ours)
        os.close(self._theirs)

    def start(self, *arguments: str) -> None:
        """Start ``artifactsync`` there."""
        self.process = subprocess.Popen(
            [self._command.program, *arguments],
            cwd=self._command.cwd,
            env=self._command.environ,
            stdin=self._theirs,
            stdout=self._theirs,
            stderr=self._theirs,
            start_new_session=True,
        )

    def wait_for(self, text: str) -> list[str]:
        """Read until a whole frame with ``text`` is on the screen; return its lines."""
        give_up_at, written = time.monotonic() + TIMEOUT_S, b""
        while True:
            lines = [line.rstrip() for line in self._screen.display]
            if written.endswith(b"\x1b[J") and text in "\n".join(lines):
                return lines[: max(index for index, line in enumerate(lines) if line) + 1]
            ready, _, _ = select.select([self._ours], [], [], max(0.0, give_up_at - time.monotonic()))
            assert ready, lines
            written = os.read(self._ours, 65536)
            self._stream.feed(written)

    def signal(self, number: int) -> None:
        """Send a signal to the command."""
        self.process.send_signal(number)

    def ended(self) -> int:
        """Wait for its end; return the exit code."""
        return self.process.wait(TIMEOUT_S)


def shown(text: str, columns: int) -> list[str]:
    """The lines that somebody sees of terminal output, without blanks at their ends and empty ones at the end."""
    screen = pyte.HistoryScreen(columns, 50, history=10_000, ratio=0.5)
    pyte.Stream(screen).feed(text.replace("\n", "\r\n"))
    above = ["".join(line[index].data for index in range(columns)) for line in screen.history.top]
    lines = [line.rstrip() for line in [*above, *screen.display]]
    while lines and not lines[-1]:
        lines.pop()
    return lines


@pytest.fixture(scope="session")
def program() -> Path:
    path = Path(sys.executable).parent / "artifactsync"
    assert path.exists()
    return path


@pytest.fixture
def artifactsync(program: Path, tmp_path: Path) -> Command:
    folder = tmp_path / "here"
    folder.mkdir()
    return Command(program, folder)


@dataclass(frozen=True)
class Remote:
    """A remote as the tests and the command reach it."""

    url: str
    storage_options: Mapping[str, str]
    environ: Mapping[str, str]


def tree_of(folder: Path) -> set[str]:
    """The visible files below a folder: all but those whose name begins with a dot."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if not path.is_dir())
    return {path.as_posix() for path in found if not any(part.startswith(".") for part in path.parts)}


def make_run(
    remote: Remote,
    name: str,
    *,
    local_root: Path,
    steps: Sequence[int] = (10, 20, 30),
    metrics: Sequence[str] = ("val_loss", "accuracy"),
) -> Path:
    """A finished run with a checkpoint for each step, a log and a picture; returns its local folder."""
    with Run(name, remote=remote.url, storage_options=dict(remote.storage_options), local_root=local_root) as run:
        for step in steps:
            file = run.local_dir / "checkpoints" / f"ep{step // 10}-ba{step}-rank0.pt"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(bytes([step % 256]) * (1_000_000 + step))
            values = {"val_loss": 1 / step, "accuracy": step / 40}
            chosen = {metric: values[metric] for metric in metrics}
            run.save_files([file], step=step, epoch=step // 10, metrics=chosen).result(TIMEOUT_S)
        (run.local_dir / "logs-rank0.txt").write_text("epoch 1\nepoch 2\n")
        run.push(run.local_dir / "logs-rank0.txt")
        (run.local_dir / "plots").mkdir()
        (run.local_dir / "plots" / "loss.png").write_bytes(b"\x89PNG" * 100)
        run.push(run.local_dir / "plots")
        run.wait(TIMEOUT_S)
        return run.local_dir


@pytest.fixture
def local(tmp_path: Path) -> Remote:
    return Remote(str(tmp_path / "remote"), {}, {"ARTIFACTSYNC_REMOTE": str(tmp_path / "remote")})


@pytest.fixture
def digits(local: Remote, tmp_path: Path, artifactsync: Command) -> Path:
    """The run ``digits`` on the local remote, which the command finds in its environment."""
    artifactsync.environ.update(local.environ)
    return make_run(local, "digits", local_root=tmp_path / "trainer")


@pytest.fixture(params=["local", "s3", "gcs"])
def remote(request: pytest.FixtureRequest, tmp_path: Path, artifactsync: Command) -> Remote:
    """Each kind of remote in turn; the command finds it in its environment."""
    if request.param == "local":
        found = Remote(f"file://{tmp_path}/remote", {}, {})
    else:
        cloud = request.getfixturevalue(request.param)
        found = Remote(cloud.fresh_url(), cloud.storage_options, cloud.environment)
    artifactsync.environ.update({**found.environ, "ARTIFACTSYNC_REMOTE": found.url})
    return found
