"""Real processes that play a scenario and die, or are stopped, at a chosen point.

Owns: the processes, how a point is named, and what a victim leaves behind for its observer: its commits, and how it
ended. Does not own: what it plays (``scenario``).

The processes are forked from a server that has imported everything and used nothing (obstore does not survive a fork
after its first use): a point costs milliseconds instead of a second of imports.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import artifactsync
from artifactsync.errors import ArtifactSyncError
from artifactsync.testing import FaultyStore
from tests.crash.scenario import SCENARIOS, Remote, Stage
from tests.warm import warm_context

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

    from typing_extensions import Self

    from artifactsync.journal.catalogue import Checkpoint
    from artifactsync.stores.protocol import Store
    from artifactsync.testing import Call

_PACKAGE = str(Path(artifactsync.__file__).parent)
_END_S = 120.0

context = warm_context()

When = Literal["before", "after", "line", "never"]


@dataclass(frozen=True)
class Point:
    """Where a process meets its fate."""

    when: When = "never"
    """Before or after the store has applied call ``number``; or at the ``number``-th line of artifactsync's code that
    any of its threads runs."""
    number: int = 0
    fate: Literal["kill", "stop"] = "kill"
    """SIGKILL, or SIGSTOP until somebody sends SIGCONT."""

    def meet(self) -> None:
        if self.fate == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        else:
            # To this thread: a stop sent to the process may begin with another one, and this one goes on for the
            # moment that it takes to send a request.
            signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)


@dataclass(frozen=True)
class Part:
    """What a victim is told to play."""

    scenario: str
    remote: Remote
    folder: Path
    point: Point = Point()
    counts_lines: bool = False


@dataclass(frozen=True)
class Ending:
    """What a process that lived to the end said of it."""

    calls: int
    lines: int
    error: str
    """Class of the error that ended the scenario; empty if none did."""
    message: str
    appends_after_stop: int
    """Journal records that it tried to write after it was stopped and woken."""
    trace: str


class Victim:
    """A process that plays a part. Use it in a ``with``: it is dead at the end."""

    def __init__(self, part: Part) -> None:
        part.folder.mkdir(parents=True, exist_ok=True)
        self.part = part
        self._ready, theirs = context.Pipe(duplex=False)
        self.process = context.Process(target=_play, args=(part, theirs), daemon=True)
        self.process.start()
        theirs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.is_alive():
            self.process.kill()
        self.process.join()
        self._ready.close()

    def wait_until_it_plays(self) -> None:
        self._ready.recv()

    def end(self) -> bool:
        """Wait for its end; says whether SIGKILL was its end."""
        self.process.join(_END_S)
        assert self.process.exitcode is not None, f"{self.part} hangs"
        assert self.process.exitcode in {0, -signal.SIGKILL}, f"{self.part} ended with {self.process.exitcode}"
        return self.process.exitcode == -signal.SIGKILL

    def kill_after(self, seconds: float) -> None:
        """SIGKILL from outside, so long after it began to play."""
        self.wait_until_it_plays()
        self.process.join(seconds)
        self.process.kill()

    def wait_until_stopped(self) -> bool:
        """Wait until it stands still by SIGSTOP; False if it ended instead."""
        stat = Path(f"/proc/{self.process.pid}/stat")
        give_up_at = time.monotonic() + _END_S
        while self.process.is_alive():
            try:
                if stat.read_text().rpartition(")")[2].split()[0] == "T":
                    return True
            except OSError:
                break
            assert time.monotonic() < give_up_at, f"{self.part} neither stops nor ends"
            self.process.join(0.002)
        return False

    def wake(self) -> None:
        os.kill(self.process.pid or 0, signal.SIGCONT)

    def commits(self) -> list[int]:
        """Numbers of the commit records of which it had been told that they are there."""
        file = self.part.folder / "commits"
        return [int(line) for line in file.read_text().splitlines()] if file.exists() else []

    def ending(self) -> Ending:
        return Ending(**json.loads((self.part.folder / "ending.json").read_text()))


def _play(part: Part, ready: Connection) -> None:
    """The body of the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the observer
    os.dup2(os.open(part.folder / "stderr", os.O_WRONLY | os.O_CREAT), 2)  # the observer's terminal shows figures
    lines = _LineCounter(part.point)
    actor = _Actor(part.point)
    commits = os.open(part.folder / "commits", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def committed(checkpoint: Checkpoint) -> None:
        os.write(commits, b"%d\n" % checkpoint.seq)

    stage = Stage(
        store=actor.wrap(part.remote.open()),
        folder=part.folder,
        open=lambda: actor.wrap(part.remote.open()),
        open_target=lambda: actor.wrap(part.remote.target.open()),
        committed=committed,
    )
    error: BaseException | None = None
    trace = ""
    ready.send("plays")
    if part.counts_lines or part.point.when == "line":
        lines.start()
    try:
        SCENARIOS[part.scenario](stage)
    except ArtifactSyncError as caught:
        error, trace = caught, traceback.format_exc()
    sys.settrace(None)
    ending = {
        "calls": actor.calls,
        "lines": lines.count,
        "error": type(error).__name__ if error else "",
        "message": str(error) if error else "",
        "appends_after_stop": actor.appends_after_stop,
        "trace": trace,
    }
    (part.folder / "ending.json").write_text(json.dumps(ending))


class _Actor:
    """Counts the store calls of all stores together, and meets the point's fate."""

    def __init__(self, point: Point) -> None:
        self._point = point
        self._lock = threading.Lock()
        self._numbers: dict[int, Any] = {}
        self._was_stopped = False
        self.calls = 0
        self.appends_after_stop = 0

    def wrap(self, store: Store) -> FaultyStore:
        return FaultyStore(store, on_call=self._on_call, on_answer=self._on_answer)

    def _on_call(self, call: Call) -> None:
        with self._lock:
            self.calls += 1
            number = self.calls
            self._numbers[threading.get_ident()] = number
            if self._was_stopped and call.operation == "put_if_absent" and "/journal/" in call.key:
                self.appends_after_stop += 1
        if self._point.when == "before" and number == self._point.number:
            self._was_stopped = True
            self._point.meet()
            if call.operation == "put_if_absent" and "/journal/" in call.key:
                self.appends_after_stop += 1

    def _on_answer(self, call: Call) -> None:
        if self._point.when == "after" and self._numbers.get(threading.get_ident()) == self._point.number:
            self._was_stopped = True
            self._point.meet()


class _LineCounter:
    """Counts the lines of artifactsync's code that run, in all threads."""

    def __init__(self, point: Point) -> None:
        self._numbers = itertools.count(1)
        self._fatal = point.number if point.when == "line" else 0
        self._point = point
        self.count = 0

    def start(self) -> None:
        threading.settrace(self._enter)
        sys.settrace(self._enter)

    def _enter(self, frame: Any, event: str, argument: object) -> Callable[..., Any] | None:
        return self._step if frame.f_code.co_filename.startswith(_PACKAGE) else None

    def _step(self, frame: Any, event: str, argument: object) -> Callable[..., Any]:
        if event == "line":
            self.count = next(self._numbers)
            if self.count == self._fatal:
                self._point.meet()
        return self._step
