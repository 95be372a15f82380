"""Several writers that want one run name in the same moment: threads of this process, or processes.

Owns: the contenders and what each says of its race. Does not own: the judgement (``test_races``).

Threads race for the journal alone, so that their claims are as close as they can be. Processes race with all of
``Run``: probe, heartbeat, uploads.
"""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from artifactsync import Run
from artifactsync.errors import RunFencedError, RunIsLiveError
from artifactsync.journal.attempt import claim
from artifactsync.journal.catalogue import CheckpointFile
from artifactsync.journal.log import JournalLog
from artifactsync.journal.writer import WriterIdentity
from artifactsync.stores.retry import RetryPolicy
from tests.crash.scenario import PATIENCE
from tests.crash.victim import context

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from pathlib import Path

    from typing_extensions import Self

    from tests.crash.scenario import Remote

_QUICK = RetryPolicy(max_attempts=200, deadline_s=60.0, base_delay_s=0.005, max_delay_s=0.1)
_COMMITS = 2
MAX_WRITERS = 8


@dataclass(frozen=True)
class Race:
    """One race."""

    remote: Remote
    name: str
    writers: int
    takeover: bool
    """Whether every writer takes the run from the one before, instead of respecting it."""


@dataclass(frozen=True)
class Outcome:
    """What one writer says of its race."""

    attempt: int
    """Its attempt; 0 if it was told that the run is live."""
    commits: tuple[tuple[int, int], ...]
    """Number of the record and step of each commit that it was told of."""
    is_owner: bool
    """Whether it could still commit after everybody else had stopped."""


class _JournalWriter:
    def __init__(self, race: Race, index: int, folder: Path) -> None:
        writer = replace(WriterIdentity.of_this_process(), token=str(index))
        log = JournalLog(race.remote.open(), race.name, policy=_QUICK)
        self._attempt = claim(log, writer=writer, takeover=race.takeover)
        self._name = race.name
        self.attempt = self._attempt.number

    def commit(self, step: int) -> int:
        file = CheckpointFile(path=f"c/{step}", key=f"{self._name}/c/{step}", size=1, sha256="0" * 64)
        return self._attempt.commit(name=f"s{step}", step=step, epoch=0, batch=step, metrics={}, files=[file]).seq

    def end(self) -> None:
        """Let go of the run without a word, as a process that dies."""


class _RunWriter:
    def __init__(self, race: Race, index: int, folder: Path) -> None:
        self._folder = folder / f"{race.name}-{index}"
        self._run = Run(
            race.name,
            remote=race.remote.open(),
            local_root=self._folder,
            takeover=race.takeover,
            patience=PATIENCE,
        )
        self.attempt = self._run.attempt

    def commit(self, step: int) -> int:
        file = self._folder / f"{step}.pt"
        file.write_bytes(b"%d" % step)
        return self._run.save_files({f"c/{step}.pt": file}, step=step).result(90).seq

    def end(self) -> None:
        with contextlib.suppress(RunFencedError):
            self._run.close(30)


class _Contender:
    """Races in two phases: all at once; and, when all have stopped, once more."""

    def __init__(self, index: int, folder: Path, kind: type[_JournalWriter | _RunWriter]) -> None:
        self._index, self._folder, self._kind = index, folder, kind

    def race(self, race: Race, start: Any) -> None:
        self._commits: list[tuple[int, int]] = []
        self._writer: _JournalWriter | _RunWriter | None = None
        start.wait(60)
        with contextlib.suppress(RunIsLiveError, RunFencedError):
            self._writer = self._kind(race, self._index, self._folder)
            for number in range(_COMMITS):
                self._commit(number)

    def _commit(self, number: int) -> None:
        assert self._writer
        step = self._writer.attempt * 100 + number
        self._commits.append((self._writer.commit(step), step))

    def outcome(self) -> Outcome:
        if self._writer is None:
            return Outcome(0, (), is_owner=False)
        try:
            self._commit(_COMMITS)
            is_owner = True
        except RunFencedError:
            is_owner = False
        self._writer.end()
        return Outcome(self._writer.attempt, tuple(self._commits), is_owner)


class Threads:
    """Contenders that are threads. Use it in a ``with``, as ``Processes``."""

    def __init__(self, folder: Path) -> None:
        self._contenders = [_Contender(index, folder, _JournalWriter) for index in range(MAX_WRITERS)]
        self._pool = ThreadPoolExecutor(MAX_WRITERS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def run(self, race: Race) -> list[Outcome]:
        start = threading.Barrier(race.writers)
        racing = self._contenders[: race.writers]
        list(self._pool.map(lambda contender: contender.race(race, start), racing))
        return list(self._pool.map(_Contender.outcome, racing))


class Processes:
    """Contenders that are processes."""

    def __init__(self, folder: Path) -> None:
        self._barriers = {size: context.Barrier(size) for size in range(2, MAX_WRITERS + 1)}
        self._lines: list[Connection] = []
        self._processes = []
        for index in range(MAX_WRITERS):
            ours, theirs = context.Pipe()
            process = context.Process(target=_contend, args=(index, folder, theirs, self._barriers), daemon=True)
            process.start()
            theirs.close()
            self._lines.append(ours)
            self._processes.append(process)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process, line in zip(self._processes, self._lines, strict=True):
            process.kill()
            process.join()
            line.close()

    def run(self, race: Race) -> list[Outcome]:
        lines = self._lines[: race.writers]
        for line in lines:
            line.send(race)
        for line in lines:
            line.recv()
        for line in lines:
            line.send("once more")
        return [line.recv() for line in lines]


def _contend(index: int, folder: Path, line: Connection, barriers: dict[int, Any]) -> None:
    contender = _Contender(index, folder, _RunWriter)
    while True:
        race = line.recv()
        contender.race(race, barriers[race.writers])
        line.send("done")
        line.recv()
        line.send(contender.outcome())
