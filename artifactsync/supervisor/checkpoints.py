"""Checkpoints that a command writes, published as they become whole.

Owns: what a unit is published with, under which step, and what became of it. Does not own: what a unit is (``units``),
when it is due (``due``), how its bytes are held (``stash``), or the commit (``run``).

A commit is what a restart needs: of every family of units the newest whole one. What was committed before is
referenced, and not sent again. Its step is that of its newest unit, and never less than that of the commit before it:
the newest in time is what a restart shall find. Older units that were passed over are committed by themselves, under
their own step, when there is nothing else to do.

Invariant: a commit is written only if every file of it was found whole, and is unchanged since.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from artifactsync.errors import ArtifactSyncError, FileChangedError, NotDurableError, RunOwnedError
from artifactsync.run import LocalFile
from artifactsync.supervisor.due import Due, newest_unsent
from artifactsync.supervisor.links import LINK_SUFFIX
from artifactsync.supervisor.stash import check_unchanged
from artifactsync.supervisor.units import newest_of_each_family, pointed_at

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from artifactsync.run import Checkpoint, PendingCheckpoint, Run
    from artifactsync.supervisor.due import Moment
    from artifactsync.supervisor.stash import Stash
    from artifactsync.supervisor.tree import Seen, Tree
    from artifactsync.supervisor.units import Rules, Unit

_MAX_WAITING = 3  # checkpoints that hold disk space while an older one is sent; beyond, the oldest gives way
# After failures that the queue itself has given up on, or of files that change.
_RETRY_S, _MAX_FAILURES = 5.0, 5

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class Flight:
    """A checkpoint on its way."""

    name: str
    step: int
    units: Sequence[Unit]
    fresh: Sequence[Unit]
    """Those of its units that no flight before it had."""
    held: Sequence[tuple[Path, Seen]]
    pending: PendingCheckpoint

    @property
    def size_bytes(self) -> int:
        """Length of what is new in it."""
        return sum(unit.size_bytes for unit in self.fresh)


class Checkpoints:
    """Publishes what a command writes.

    Args:
        run: Open for writing.
        tree: Where the files are.
        rules: What a checkpoint is.
        stash: Where files on their way are held.
        settle_s: How long a file must have been left alone.
        restored: The checkpoint that was restored.
    """

    def __init__(
        self, run: Run, tree: Tree, rules: Rules, stash: Stash, *, settle_s: float, restored: Checkpoint | None
    ) -> None:
        self._run, self._tree, self._rules, self._stash, self._settle_s = run, tree, rules, stash, settle_s
        self._due = Due(tree, rules, settle_s=settle_s)
        self._step, self._has_steps = restored.step if restored else 0, False
        self._sent: dict[str, tuple[tuple[str, Seen], ...]] = {}
        self._digests: dict[str, tuple[Seen, str]] = {}
        self._in_place: set[str] = set()
        self._inodes: dict[str, Seen] = {}
        self._names: Counter[str] = Counter()
        self._retry_at: dict[str, float] = {}
        self._flights: list[Flight] = []
        self._whole: list[Unit] = []
        self._all: list[Unit] = []
        self._durable: dict[str, tuple[tuple[str, Seen], ...]] = {}
        self._failures: Counter[tuple[str, int]] = Counter()
        self._given_up: set[tuple[str, int]] = set()
        self.last: Flight | None = None
        """The newest that was handed over."""
        self.newest = restored
        """The newest that is durable: the restored one, until another is committed."""
        self.lost_run: RunOwnedError | None = None
        """Set once another process has taken the run over."""

    def adopt(self, files: Mapping[str, str], seen: Mapping[str, Seen]) -> None:
        """Take files for what is on the remote already: path → sha256, as they were restored."""
        self._digests.update({path: (seen[path], sha256) for path, sha256 in files.items() if path in seen})
        units = self._rules.units({path: seen[path] for path in files if path in seen})
        self._due.adopt(units)
        for unit in units:
            self._sent[unit.path] = self._durable[unit.path] = unit.files

    def missing(self) -> list[Unit]:
        """Whole units that are there and are not durable, the newest last."""
        self._settle()
        # What was cut off before its partners were written is half a checkpoint, and no loss.
        whole = (unit for unit in self._whole if unit.path not in self._due.halves)
        absent = [unit for unit in whole if self._durable.get(unit.path) != unit.files]
        given_up = {path for path, _ in self._given_up} - {unit.path for unit in absent}
        lost = [unit for unit in self._all if unit.path in given_up and self._durable.get(unit.path) != unit.files]
        return sorted([*absent, *lost], key=lambda unit: unit.newest_ns)

    def flights(self) -> list[Flight]:
        """What is on its way."""
        return [flight for flight in self._flights if not flight.pending.done()]

    def check_owned(self) -> None:
        """See whether another process is known to have taken the run over."""
        try:
            self._run.check_owned()
        except RunOwnedError as error:
            self.lost_run = error

    def look(self, units: Sequence[Unit], moment: Moment) -> None:
        """Publish what has become whole.

        Args:
            units: All that are there.
            moment: Of this look.
        """
        self._settle()
        whole, torn = self._due.sort(units, moment)
        self._all = whole
        self._whole = [unit for unit in whole if (unit.path, unit.newest_ns) not in self._given_up]
        unsent = [unit for unit in newest_unsent(self._whole, self._sent) if self._may_be_tried(unit, moment)]
        fresh = self._due.fresh(unsent, torn, moment)
        if fresh:
            left_out = {unit.path for unit in whole if self._sent.get(unit.path) != unit.files}
            left_out -= {unit.path for unit in fresh}
            newest = newest_of_each_family(unit for unit in whole if unit.path not in left_out)
            older = [unit for unit in whole if unit.path not in left_out and unit not in newest]
            units = [*pointed_at((unit for unit in newest if unit.is_pointer), older, self._tree), *newest]
            steps = [step for unit in fresh if (step := self._due.step_of(unit)) is not None]
            self._has_steps = self._has_steps or bool(steps)
            self._step = max(self._step, *steps) if steps else self._step + (not self._has_steps)
            self.last = self._publish(units, fresh, self._step, moment) or self.last
        elif not self.flights():
            self._publish_older(self._whole, moment)

    def _may_be_tried(self, unit: Unit, moment: Moment) -> bool:
        return moment.is_dead or self._retry_at.get(unit.path, moment.now) <= moment.now

    def _publish_older(self, whole: Sequence[Unit], moment: Moment) -> None:
        """One unit that a newer one of its family overtook before it could be sent, under its own step."""
        newest = {unit.path for unit in newest_of_each_family(whole)}
        for unit in sorted(whole, key=lambda unit: unit.newest_ns, reverse=True):
            is_older = unit.path not in newest and self._sent.get(unit.path) != unit.files
            if is_older and self._step > 0 and self._may_be_tried(unit, moment):
                step = self._due.step_of(unit)
                below = self._step - 1 if step is None else min(step, self._step - 1)
                self._publish([unit], [unit], below, moment)
                return

    def _publish(self, units: Sequence[Unit], fresh: Sequence[Unit], step: int, moment: Moment) -> Flight | None:
        """Hold the files fast and hand them over; None if they have changed meanwhile, or the run is lost."""
        held = self._hold(units, fresh, moment)
        if held is None:
            return None
        files = [(path, seen) for unit in units for path, seen in unit.files]
        described = [
            LocalFile(path=path, local=at, size_bytes=as_held.size, sha256=self._known_digest(path, seen))
            for (path, seen), (at, as_held) in zip(files, held, strict=True)
        ]

        def confirm() -> None:
            for at, seen in held:
                check_unchanged(at, seen)

        stem = next(unit.name for unit in (*reversed(fresh), *reversed(units)) if not unit.is_pointer)
        self._names[stem] += 1
        name = stem if self._names[stem] == 1 else f"{stem}@{self._names[stem]}"
        try:
            pending = self._run.save_prepared(lambda: described, step=step, name=name, confirm=confirm)
        except RunOwnedError as error:
            self.lost_run = error
            self._stash.release(path for path, _ in held)
            return None
        for unit in units:
            self._sent[unit.path] = unit.files
        self._due.sent(units, fresh)
        flight = Flight(name, step, units, fresh, held, pending)
        self._flights.append(flight)
        waiting = self.flights()[1:-1]
        while len(waiting) > _MAX_WAITING:
            waiting.pop(0).pending.cancel()
        return flight

    def _hold(self, units: Sequence[Unit], fresh: Sequence[Unit], moment: Moment) -> list[tuple[Path, Seen]] | None:
        for unit in units:
            for path, seen in unit.files:
                known = self._inodes.get(path)
                if known is not None and known.inode == seen.inode and known != seen:
                    self._in_place.add(path)
                self._inodes[path] = seen
        held: list[tuple[Path, Seen]] = []
        try:
            for unit in units:
                copy = not moment.is_dead and unit in fresh and any(path in self._in_place for path, _ in unit.files)
                for path, seen in unit.files:
                    held += self._hold_one(path, seen, copy=copy)
        except (FileChangedError, OSError) as error:
            self._stash.release(path for path, _ in held)
            if not isinstance(error, FileChangedError):
                _log.warning("a checkpoint cannot be held fast for its upload: %s", error)
            for unit in fresh:
                self._retry_at[unit.path] = moment.now + self._settle_s
                self._in_place.update(path for path, _ in unit.files)
            return None
        return held

    def _hold_one(self, path: str, seen: Seen, *, copy: bool) -> list[tuple[Path, Seen]]:
        link = self._tree.link(path) if path.endswith(LINK_SUFFIX) else None
        if link is None:
            return self._stash.take([(self._tree.local(path), seen)], copy=copy)
        if link[1] != seen:
            raise FileChangedError(f"{path} points somewhere else now")
        return [self._stash.write(link[0])]

    def _settle(self) -> None:
        """Take note of what became durable, and of what did not."""
        for flight in list(self._flights):
            if not flight.pending.done():
                continue
            self._flights.remove(flight)
            self._stash.release(path for path, _ in flight.held)
            error = flight.pending.exception(0)
            if error is None:
                self._note_durable(flight)
                continue
            if isinstance(error, RunOwnedError):
                self.lost_run = error
            elif not isinstance(error, NotDurableError):
                _log.debug("checkpoint %s: %s", flight.name, error)
            for unit in flight.fresh:
                if self._sent.get(unit.path) == unit.files:  # no newer version was handed over: again
                    del self._sent[unit.path]
                    self._retry_at[unit.path] = time.monotonic() + _RETRY_S
                    version = unit.path, unit.newest_ns
                    self._failures[version] += 1
                    if self._failures[version] >= _MAX_FAILURES:
                        self._given_up.add(version)
                if isinstance(error, ArtifactSyncError) and not isinstance(error, NotDurableError):
                    self._in_place.update(path for path, _ in unit.files)

    def _note_durable(self, flight: Flight) -> None:
        committed = flight.pending.result(0)
        if self.newest is None or (self.newest.attempt, self.newest.step) <= (committed.attempt, committed.step):
            self.newest = committed
        by_path = {file.path: file.sha256 for file in committed.files}
        for unit in flight.units:
            self._durable[unit.path] = unit.files
            self._digests.update({path: (seen, by_path[path]) for path, seen in unit.files if path in by_path})

    def _known_digest(self, path: str, seen: Seen) -> str | None:
        known = self._digests.get(path)
        return known[1] if known is not None and known[0] == seen else None
