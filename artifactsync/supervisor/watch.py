"""The look at the working folder, again and again, and what follows from it.

Owns: when to look, what changed since, and the way that the newest checkpoint is given when time is short. Does not
own: what is published (``checkpoints``), what is mirrored (``mirror``).

The kernel tells which files were closed, and these alone are looked at then; a look at all follows now and again, as
there are disks of which it does not tell, and logs that stay open.

Invariant: looking costs at most a hundredth of one core, however many files there are; and every file is seen as it was
left once the command has ended.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

from artifactsync.errors import ArtifactSyncError
from artifactsync.supervisor.closings import Closings
from artifactsync.supervisor.due import Moment
from artifactsync.supervisor.links import LINK_SUFFIX

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from artifactsync.run import Run
    from artifactsync.supervisor.checkpoints import Checkpoints
    from artifactsync.supervisor.mirror import Mirror
    from artifactsync.supervisor.tree import Seen, Tree
    from artifactsync.supervisor.units import Rules, Unit

_HURRIED_S = 0.2
_LOOK_SHARE = 100.0  # a look that took 10 ms of a core is followed by a second's pause
_MAX_PERIOD_S = 10.0
_GLANCE_SHARE = 50.0  # the same after a glance at what was closed: a checkpoint is worth more
_MAX_PAUSE_S = 1.0

_log = logging.getLogger(__name__)


class Watch:
    """Looks on a thread of its own until stopped, then on the caller's.

    Args:
        run: The run.
        tree: What to look at.
        rules: What a checkpoint is.
        checkpoints: Publishes.
        mirror: Mirrors the rest.
        is_owner: Whether this process commits; else what would be checkpoints are files as any other.
        before: Files that were there before the command, and are none of its own.
        period_s: Seconds between two looks.
        on_lost: Called once when another process has taken the run over.
        use_kernel: Whether to ask the kernel for notices; else folders are looked at, and nothing more.
    """

    def __init__(
        self,
        run: Run,
        tree: Tree,
        rules: Rules,
        checkpoints: Checkpoints,
        mirror: Mirror,
        *,
        is_owner: bool,
        before: Mapping[str, Seen],
        period_s: float,
        on_lost: Callable[[], None],
        use_kernel: bool = True,
    ) -> None:
        self._run, self._tree, self._rules = run, tree, rules
        self._checkpoints, self._mirror, self._before, self._on_lost = checkpoints, mirror, before, on_lost
        self._is_owner, self._period_s = is_owner, period_s
        self._seen: dict[str, Seen] = {}
        self._changed_at: dict[str, float] = {}
        self._units: list[Unit] = []
        self._closings, self._stopped = Closings(use_kernel=use_kernel), threading.Event()
        self._looked_at = 0.0
        self._is_hurried = False
        self._has_made_way_for: object = None
        self._look_s = 0.0
        self.bytes_per_s = 0.0
        """The rate of uploads when there last were any."""
        self._thread = threading.Thread(target=self._work, name="artifactsync-watch", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def hurry(self) -> None:
        """There is not much time: from now on the newest checkpoint goes before all else."""
        self._is_hurried = True
        self._closings.wake()

    def stop(self) -> None:
        """Look no more on the thread; ``look`` is the caller's from now on."""
        self._stopped.set()
        self._closings.wake()
        self._thread.join()
        self._closings.hear()  # what was closed up to the end

    def look(self, *, is_dead: bool = False, is_over: bool = False) -> None:
        """Look once, and hand over what is due.

        Args:
            is_dead: The command has ended.
            is_over: And it has ended well.
        """
        began, cost_s = time.monotonic(), time.thread_time()
        self._closings.hear()
        seen = self._tree.look(self._closings.listen)
        self._closings.forget_others(seen.values())
        self._take_in(seen, [path for path, found in seen.items() if self._seen.get(path) != found], began)
        self._look_s, self._looked_at = time.thread_time() - cost_s, began
        self._hand_over(
            Moment(
                now=began,
                changed_at=self._changed_at,
                is_closed=self._closings.is_closed,
                is_dead=is_dead,
                is_over=is_over,
            )
        )

    def glance(self) -> None:
        """Look at nothing but what the kernel tells of, and hand over what is due."""
        began, heard = time.monotonic(), self._closings.hear()
        if heard.is_all:
            self.look()
            return
        found: dict[str, Seen] = {}
        for folder, prefix in heard.folders:
            found.update(self._tree.look_into(folder, prefix, self._closings.listen))
        for path in heard.files:
            if (seen := self._tree.look_at(path)) is not None:
                found[path] = seen
        changed = [path for path, seen in found.items() if self._seen.get(path) != seen]
        if changed:
            self._take_in({**self._seen, **found}, changed, began)
        if changed or heard.files:
            self._hand_over(Moment(now=began, changed_at=self._changed_at, is_closed=self._closings.is_closed))

    def _take_in(self, seen: dict[str, Seen], changed: Sequence[str], now: float) -> None:
        gone = self._seen.keys() - seen.keys()
        for path in changed:
            self._changed_at[path] = now
        for path in gone:
            self._changed_at.pop(path, None)
        self._seen = seen
        if changed or gone:
            own = {path: found for path, found in seen.items() if self._before.get(path) != found}
            self._units = self._rules.units(own) if self._is_owner else []
            of_units = {path for unit in self._units for path, _ in unit.files}
            self._mirror.gone(gone)
            for path in changed:
                if path in own and path not in of_units and not (path.endswith(LINK_SUFFIX) and self._tree.link(path)):
                    self._mirror.changed(path, own[path])

    def _hand_over(self, moment: Moment) -> None:
        self._checkpoints.look(self._units, moment)
        if self._is_hurried:
            self._make_way()
        if not self._is_hurried or (moment.is_dead and not self._checkpoints.flights()):
            self._mirror.look(self._changed_at, time.monotonic(), is_dead=moment.is_dead)
        else:
            self._mirror.settle(time.monotonic())
        if self._is_owner:
            self._checkpoints.check_owned()
            self.bytes_per_s = self._run.status().bytes_per_s or self.bytes_per_s
        if self._checkpoints.lost_run is not None:
            self._on_lost()

    def close(self) -> None:
        """Let go of the kernel's notices, after the last look. Idempotent."""
        self._closings.close()

    @property
    def is_idle(self) -> bool:
        """Whether everything that was seen is durable, or failed for good."""
        return not self._checkpoints.flights() and self._mirror.is_idle

    def _make_way(self) -> None:
        newest = self._checkpoints.last
        if newest is None or newest.pending.done() or newest is self._has_made_way_for:
            return
        self._has_made_way_for = newest
        self._run.make_way()
        self._mirror.give_up()

    def _work(self) -> None:
        while not self._stopped.is_set():
            period_s = min(_HURRIED_S, self._period_s) if self._is_hurried else self._period_s
            due_at = self._looked_at + min(_MAX_PERIOD_S, max(period_s, _LOOK_SHARE * self._look_s))
            is_told = self._closings.wait(max(0.0, due_at - time.monotonic()))
            if self._stopped.is_set():
                return
            cost_s = time.thread_time()
            try:
                if is_told and time.monotonic() < due_at:
                    self.glance()
                else:
                    self.look()
            except Exception as error:  # noqa: BLE001 - a thread that dies would leave the run unwatched
                if isinstance(error, ArtifactSyncError):
                    _log.warning("%s", error)
                else:
                    _log.exception("a look at the working folder failed; it is tried again")
                self._stopped.wait(period_s)
            if is_told:  # notices gather meanwhile: thousands of small files are taken in together
                longest_s = _HURRIED_S if self._is_hurried else _MAX_PAUSE_S
                self._stopped.wait(min(longest_s, _GLANCE_SHARE * (time.thread_time() - cost_s)))
