"""The look at the working folder, again and again, and what follows from it.

Owns: when to look, what changed since, and the way that the newest checkpoint is given when time is short. Does not
own: what is published (``checkpoints``), what is mirrored (``mirror``).

Invariant: looking costs at most a hundredth of one core, however many files there are; and every file is seen as it was
left once the command has ended.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

from artifactsync.errors import ArtifactSyncError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from artifactsync.run import Run
    from artifactsync.supervisor.checkpoints import Checkpoints
    from artifactsync.supervisor.mirror import Mirror
    from artifactsync.supervisor.tree import Seen, Tree
    from artifactsync.supervisor.units import Rules, Unit

_HURRIED_S = 0.2
_LOOK_SHARE = 100.0  # a look that took 10 ms of a core is followed by a second's pause
_MAX_PERIOD_S = 10.0

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
    ) -> None:
        self._run, self._tree, self._rules = run, tree, rules
        self._checkpoints, self._mirror, self._before, self._on_lost = checkpoints, mirror, before, on_lost
        self._is_owner, self._period_s = is_owner, period_s
        self._seen: dict[str, Seen] = {}
        self._changed_at: dict[str, float] = {}
        self._units: list[Unit] = []
        self._wake, self._stopped = threading.Event(), threading.Event()
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
        self._wake.set()

    def stop(self) -> None:
        """Look no more on the thread; ``look`` is the caller's from now on."""
        self._stopped.set()
        self._wake.set()
        self._thread.join()

    def look(self, *, is_dead: bool = False, is_over: bool = False) -> None:
        """Look once, and hand over what is due.

        Args:
            is_dead: The command has ended.
            is_over: And it has ended well.
        """
        began, cost_s = time.monotonic(), time.thread_time()
        seen = self._tree.look()
        changed = [path for path, found in seen.items() if self._seen.get(path) != found]
        gone = self._seen.keys() - seen.keys()
        for path in changed:
            self._changed_at[path] = began
        for path in gone:
            self._changed_at.pop(path, None)
        self._seen = seen
        if changed or gone:
            own = {path: found for path, found in seen.items() if self._before.get(path) != found}
            self._units = self._rules.units(own) if self._is_owner else []
            of_units = {path for unit in self._units for path, _ in unit.files}
            self._mirror.gone(gone)
            for path in changed:
                if path in own and path not in of_units:
                    self._mirror.changed(path, own[path])
        self._look_s = time.thread_time() - cost_s
        self._checkpoints.look(self._units, self._changed_at, began, is_dead=is_dead, is_over=is_over)
        if self._is_hurried:
            self._make_way()
        if not self._is_hurried or (is_dead and not self._checkpoints.flights()):
            self._mirror.look(self._changed_at, time.monotonic(), is_dead=is_dead)
        else:
            self._mirror.settle(time.monotonic())
        if self._is_owner:
            self.bytes_per_s = self._run.status().bytes_per_s or self.bytes_per_s
        if self._checkpoints.lost_run is not None:
            self._on_lost()

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
            self._wake.wait(min(_MAX_PERIOD_S, max(period_s, _LOOK_SHARE * self._look_s)))
            self._wake.clear()
            if self._stopped.is_set():
                return
            try:
                self.look()
            except ArtifactSyncError as error:
                _log.warning("%s", error)
            except Exception:  # noqa: BLE001 - a thread that dies would leave the run unwatched
                _log.exception("a look at the working folder failed; it is tried again")
