"""How many small uploads at a time pay, from what each takes.

Owns: ``Pace``. Does not own: threads (``workers``).

A small upload takes 0.1 ms of a core with the interpreter lock held, and then waits for its answer. Workers that have
nothing to wait for only take that lock from each other, at every system call: eight of them sent 2,000 files to a
server on the same machine in twice the time that one took. 20 ms from the server eight are eight times as quick as one.

So: as many as the time of an upload is times that of its work. The shortest of a few recent ones counts: the others
waited for cores and for the lock, not for the network.
"""

from __future__ import annotations

SMALL_BYTES = 256 * 1024
"""Longer bodies are sent by several system calls, and hashed without the interpreter lock."""

_TO_SHRINK = 16  # uploads looked at before fewer run at a time
_TO_GROW = 4  # and before more do: too few cost more than too many


class Pace:
    """How many small uploads run at a time: as many as may, until they are seen to be quick. Its user holds a lock.

    Args:
        most: No more than so many.
    """

    def __init__(self, most: int) -> None:
        self.limit = most
        """So many at a time."""
        self._most = most
        self._shortest_s, self._cpu_s, self._count = float("inf"), 0.0, 0

    def note(self, wall_s: float, cpu_s: float) -> bool:
        """Take in what one upload took; says whether more may run now than before.

        Args:
            wall_s: Seconds from its beginning to its end.
            cpu_s: Seconds of a core that its thread had.
        """
        self._shortest_s = min(self._shortest_s, wall_s)
        self._cpu_s += cpu_s
        self._count += 1
        if self._count < _TO_GROW:
            return False
        wanted = max(1, min(self._most, round(self._shortest_s * self._count / max(self._cpu_s, 1e-9))))
        if self._count < _TO_SHRINK and wanted <= self.limit:
            return False
        before, self.limit = self.limit, wanted
        self._begin()
        return wanted > before

    def open_up(self) -> None:
        """Let as many run as may: those that do have come to a stop."""
        self.limit = self._most
        self._begin()

    def _begin(self) -> None:
        self._shortest_s, self._cpu_s, self._count = float("inf"), 0.0, 0
