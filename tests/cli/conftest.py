"""The real command in a process of its own: in a pipe, and on a terminal."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Mapping

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
        done = subprocess.run(
            [self.program, *arguments],
            cwd=self.cwd,
            env={**self.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT_S,
            **more,
        )
        ended = Done(done.returncode, done.stdout, done.stderr)
        assert code is None or ended.code == code, ended
        assert "Traceback" not in ended.err, ended
        return ended

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
