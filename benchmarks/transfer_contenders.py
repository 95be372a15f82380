"""The contenders of ``transfers`` as whoever measures sees them: a process that is there already, or a program.

Owns: starting them, asking one to move files once, and what that took. Does not own: how each does it
(``transfer_peers``).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import transfer_peers

if TYPE_CHECKING:
    from typing_extensions import Self

    from benchmarks.native_sink import Sink

_GIVE_UP_S = 300.0  # of one transfer


class MissingError(Exception):
    """This contender cannot run here, and why."""


def contender(name: str, sink: Sink, folder: Path) -> Contender:
    """Who moves files between ``sink`` and below ``folder``; a context manager that may raise ``MissingError``."""
    return (_Program if name in transfer_peers.PROGRAMS else _Library)(name, sink, folder)


class Contender:
    def __init__(self, name: str, sink: Sink, folder: Path) -> None:
        self.name, self.sink, self.folder = name, sink, folder

    def move(self, direction: str, source: Path, where: str) -> dict[str, float]:
        """Move the files once; returns seconds and bytes."""
        if direction == "up":
            return self._move(direction, source, where)
        destination = self.folder / "down"
        shutil.rmtree(destination, ignore_errors=True)
        destination.mkdir()
        try:
            taken = self._move(direction, source, str(destination))
            here = {path.name: path.stat().st_size for path in destination.iterdir()}
            if here != {path.name: path.stat().st_size for path in source.iterdir()}:
                raise MissingError(f"it brought {len(here)} files, {sum(here.values())} bytes: not what is there")
            return taken
        finally:
            shutil.rmtree(destination)

    def _move(self, direction: str, source: Path, where: str) -> dict[str, float]:
        """Move them; what it took."""
        raise MissingError(f"{self.name} cannot move {source} {direction} to {where}")


class _Library(Contender):
    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "benchmarks.transfer_peers", self.name, self.sink.endpoint_url]
        self._errors = tempfile.TemporaryFile("w+")
        self._child = subprocess.Popen(
            [*command, self.sink.ca_file or ""],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**os.environ, **transfer_peers.KEYS},
            cwd=Path(__file__).parents[1],
        )
        self._answer()
        return self

    def __exit__(self, *_: object) -> None:
        self._child.kill()
        self._child.communicate()
        self._errors.close()

    def _move(self, direction: str, source: Path, where: str) -> dict[str, float]:
        assert self._child.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._child.stdin.write(json.dumps([direction, str(source), where]) + "\n")
            self._child.stdin.flush()
        taken: dict[str, float] = json.loads(self._answer())
        return taken

    def _answer(self) -> str:
        assert self._child.stdout is not None
        limit = threading.Timer(_GIVE_UP_S, self._child.kill)
        limit.start()
        line = self._child.stdout.readline()
        limit.cancel()
        if not line:
            self._errors.seek(0)
            words = self._errors.read().strip().splitlines() or ["it ended without a word"]
            raise MissingError(words[-1][:200])
        return line


class _Program(Contender):
    def __enter__(self) -> Self:
        beside = Path(sys.executable).with_name(self.name)
        found = str(beside) if beside.exists() else shutil.which(self.name)
        if found is None:
            raise MissingError("the program is not installed")
        self._found = found
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def _move(self, direction: str, source: Path, where: str) -> dict[str, float]:
        remote = f"s3://{transfer_peers.BUCKET}"
        places = (
            [f"{source}/", f"{remote}/{where}/"] if direction == "up" else [f"{remote}/{source.name}/*", f"{where}/"]
        )
        words, more = transfer_peers.PROGRAMS[self.name](self.sink.endpoint_url, self.sink.ca_file, *places)
        began = time.perf_counter()
        process = subprocess.Popen(
            [self._found, *words[1:]],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **transfer_peers.KEYS, **more},
        )
        assert process.stderr is not None
        errors = process.stderr.read()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        process.stderr.close()
        if status:
            raise MissingError((errors.strip().splitlines() or [f"exit {status}"])[-1][:200])
        return {
            "wall_s": time.perf_counter() - began,
            "cpu_s": used.ru_utime + used.ru_stime,
            "peak_bytes": used.ru_maxrss * 1024.0,
        }
