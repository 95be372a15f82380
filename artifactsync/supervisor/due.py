"""Which units are whole, and which of these are to be published now.

Owns: patience. A unit is left alone until it has been quiet for a while, unless it is known to be finished: its files
were closed, their formats say that they are whole, and it came by itself, or with the same others, before. Does not
own: what a unit is (``units``), or its publication (``checkpoints``).

Invariant: a unit of which a file is not whole is never due; nor is one, while its command lives, beside which its
partner is being written, for as long as ``_COMPANY_S``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from artifactsync.supervisor.units import newest_of_each_family, step_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from artifactsync.supervisor.tree import Seen, Tree
    from artifactsync.supervisor.units import Rules, Unit

_POINTER_S = 10.0  # how long it waits for the file that will name it: without, a restart takes the one before
_COMPANY_S = 60.0  # how long a whole unit waits for one beside it that is being written


@dataclass(frozen=True, kw_only=True)
class Moment:
    """What a look at the folder found out about its time."""

    now: float
    """Monotonic seconds."""
    changed_at: Mapping[str, float]
    """When each file was last found changed, on the same clock."""
    is_closed: Callable[[Seen], bool] = lambda _: False
    """Whether a file is known to have been closed as it looks."""
    is_dead: bool = False
    """The command has ended: nobody writes any more."""
    is_over: bool = False
    """And it has ended well."""

    def quiet_s(self, unit: Unit) -> float:
        """Seconds since anything of a unit changed."""
        return self.now - max(self.changed_at.get(path, 0.0) for path, _ in unit.files)


class Due:
    """Tells what is whole and due.

    Args:
        tree: Where the files are.
        rules: What a checkpoint is.
        settle_s: How long a file must have been left alone, where nothing else shows that it is finished.
    """

    def __init__(self, tree: Tree, rules: Rules, *, settle_s: float) -> None:
        self._tree, self._rules, self._settle_s = tree, rules, settle_s
        self._complete: dict[str, tuple[tuple[str, Seen], ...]] = {}
        self._steps: dict[str, int | None] = {}
        self._last_steps: dict[str, int] = {}
        self._companions: dict[str, frozenset[str]] = {}
        self._shapes: dict[str, frozenset[str]] = {}
        self._pointers: set[str] = set()  # families of what only says which of the others is the newest
        self._waiting_since: dict[str, float] = {}
        self.halves: set[str] = set()
        """Paths of whole units that are one of several that belong together, of which another is missing."""

    def adopt(self, units: Sequence[Unit]) -> None:
        """Take units for whole, and learn from them: they were restored."""
        for unit in units:
            self._complete[unit.path] = unit.files
        of_step: dict[int | None, list[Unit]] = {}
        for unit in units:
            of_step.setdefault(self.step_of(unit), []).append(unit)
        for step, together in of_step.items():
            if step is not None:
                self._learn(together)

    def sort(self, units: Sequence[Unit], moment: Moment) -> tuple[list[Unit], list[Unit]]:
        """Those that are whole, and those that are not, or not known to be."""
        whole, torn = [], []
        settle_s = 0.0 if moment.is_dead else self._settle_s
        for unit in units:
            if self._complete.get(unit.path) == unit.files or self._rules.is_complete(
                unit,
                self._tree,
                quiet_s=moment.quiet_s(unit),
                settle_s=settle_s,
                is_over=moment.is_over,
                is_closed=self._is_finished(unit, moment),
            ):
                self._complete[unit.path] = unit.files
                whole.append(unit)
            else:
                torn.append(unit)
        return whole, torn

    def fresh(self, unsent: Sequence[Unit], torn: Sequence[Unit], moment: Moment) -> list[Unit]:
        """Of the newest units that were not sent those that are to be sent now.

        Args:
            unsent: New and whole.
            torn: What is beside them and is not.
            moment: Of this look.
        """
        if not unsent or moment.is_over:
            return list(unsent)
        waits = {(_parent(unit.path), None if unit.is_folder else step_of(unit, self._tree)) for unit in torn}
        there = {unit.family for unit in unsent}
        kept = []
        self.halves = set()
        self._waiting_since = {family: self._waiting_since.get(family, moment.now) for family in there}
        for unit in unsent:
            step, folder = self.step_of(unit), _parent(unit.path)
            is_waiting = self._misses_partner(unit, there) or any(p == folder and s in {step, None} for p, s in waits)
            if is_waiting and (moment.is_dead or moment.quiet_s(unit) <= _COMPANY_S):
                self.halves.add(unit.path)
            elif not moment.is_dead and self._misses_pointer(unit, there, moment):
                continue
            elif moment.is_dead or self._has_waited(unit, moment) or self._is_company_here(unit, there):
                kept.append(unit)
        return kept

    def sent(self, units: Sequence[Unit], fresh: Sequence[Unit]) -> None:
        """Take note of a publication: its units, and those among them that are new."""
        for unit in units:
            if (known := self.step_of(unit)) is not None:
                self._last_steps[unit.family] = max(known, self._last_steps.get(unit.family, 0))
        self._learn(fresh)
        for unit in fresh:
            self._waiting_since.pop(unit.family, None)

    def step_of(self, unit: Unit) -> int | None:
        """As ``units.step_of``, looked up once for each version of a unit."""
        key = f"{unit.path}\n{unit.newest_ns}"
        if key not in self._steps:
            if len(self._steps) > 10_000:  # noqa: PLR2004 - a bound, of no meaning
                self._steps.clear()
            self._steps[key] = step_of(unit, self._tree)
        return self._steps[key]

    def _learn(self, together: Sequence[Unit]) -> None:
        families = frozenset(unit.family for unit in together)
        self._pointers.update(unit.family for unit in together if unit.is_pointer)
        for unit in together:
            self._companions[unit.family] = families
            self._shapes[unit.family] = _shape(unit)

    def _has_waited(self, unit: Unit, moment: Moment) -> bool:
        """Whether it, or versions of it before this one, have been whole for long enough for others to turn up."""
        waited_s = moment.now - self._waiting_since[unit.family]
        return max(waited_s, moment.quiet_s(unit)) >= self._settle_s

    def _is_company_here(self, unit: Unit, there: set[str]) -> bool:
        """Whether all that came with its forerunner is new too: then there is nobody else to wait for."""
        known = self._companions.get(unit.family)
        return known is not None and known <= there

    def _is_finished(self, unit: Unit, moment: Moment) -> bool:
        """Whether its writer has closed what it writes last, and all is there that was there the last time."""
        if not unit.is_folder:
            return all(moment.is_closed(seen) for _, seen in unit.files)
        sign = self._rules.sign_of(unit)
        if sign is None or not moment.is_closed(sign) or self._shapes.get(unit.family) != _shape(unit):
            return False
        # Files that were written before we listened to the new folder are not known to be closed.
        return all(seen.mtime_ns <= sign.mtime_ns for _, seen in unit.files)

    def _misses_partner(self, unit: Unit, there: set[str]) -> bool:
        """Whether files of one step (``model-500.pt``, ``optimizer-500.pt``) came together before, and not now."""
        last = self._last_steps.get(unit.family)
        return last is not None and any(
            step == last and other not in there and _is_numbered(other)
            for other, step in self._last_steps.items()
            if other != unit.family and _is_numbered(unit.family) and _parent(other) == _parent(unit.family)
        )

    def _misses_pointer(self, unit: Unit, there: set[str], moment: Moment) -> bool:
        """Whether a file that names the newest checkpoint came with its forerunner, and still names that one."""
        if unit.is_pointer or moment.now - self._waiting_since[unit.family] > _POINTER_S:
            return False
        return bool(self._companions.get(unit.family, frozenset()) & self._pointers - there)


def newest_unsent(whole: Sequence[Unit], sent: Mapping[str, tuple[tuple[str, Seen], ...]]) -> list[Unit]:
    """The newest of each family, less what was sent as it is."""
    return [unit for unit in newest_of_each_family(whole) if sent.get(unit.path) != unit.files]


def _shape(unit: Unit) -> frozenset[str]:
    """The names in a folder, whatever the step; of every rank its own."""
    return frozenset(path[len(unit.path) :] for path, _ in unit.files) if unit.is_folder else frozenset()


def _parent(path: str) -> str:
    return path.rpartition("/")[0]


def _is_numbered(family: str) -> bool:
    """Whether each step has a name of its own."""
    return "#" in family.rpartition("/")[2]
