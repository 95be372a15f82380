"""Many small requests under way on one thread.

Owns: ``work_ahead``: the order in which requests are begun and their answers read. Does not own: the requests
(``stores.ahead``), what an answer means to whoever wanted it, nor threads.

Invariant: what was begun is ended, also when the caller's items break off.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, TypeVar

from artifactsync.stores.ahead import NotYetError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_Item = TypeVar("_Item")

MOST = 64
"""Most requests under way: as many connections as a store keeps."""

_LATE_S = 10.0  # how often late answers are looked for while others come: each look may take a second


def work_ahead(items: Iterable[_Item | None], begin: Callable[[_Item, bool], Callable[[], object] | None]) -> None:
    """Begin requests as long as there is something to begin, and read the answers in the order of the requests.

    One that is slow to come holds up the reading of those behind it for a second at most.

    Args:
        items: What to do; None where there is nothing just now, but may be once an answer was read.
        begin: Begins one item, and returns what ends it; None if it cannot just now. Told whether nothing else is
            under way that may end soon: then it returns what ends the item in any case. Neither raises, but for the
            ``NotYetError`` of the latter.
    """
    under_way, most, count = _UnderWay(), MOST, 0
    try:
        for item in items:
            if item is None:
                if not under_way:
                    return
                under_way.end_one()
                continue
            while under_way.timely >= most:
                if not under_way.end_one():  # a line on which so many are too many
                    most, count = max(1, most // 2), 0
            while (end := begin(item, not under_way.timely)) is None:
                most, count = under_way.timely, 0  # or each of the next ones would be tried in vain
                under_way.end_one()
            under_way.add(end)
            count += 1
            if count >= most:  # all that were under way when one could not be begun are through
                most, count = min(MOST, 2 * most), 0
    finally:
        while under_way:
            under_way.end_one()


class _UnderWay:
    """What ends requests, the oldest first; those whose answers are late, last."""

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], object]] = deque()
        self._late: deque[Callable[[], object]] = deque()
        self._looked_at_s = 0.0

    def __len__(self) -> int:
        return len(self._waiting) + len(self._late)

    @property
    def timely(self) -> int:
        """How many are not late."""
        return len(self._waiting)

    def add(self, end: Callable[[], object]) -> None:
        """Take one that was begun."""
        self._waiting.append(end)

    def end_one(self) -> bool:
        """End one; False if it is late."""
        is_time = bool(self._late) and time.monotonic() - self._looked_at_s > _LATE_S
        line = self._late if is_time or not self._waiting else self._waiting
        end = line.popleft()
        try:
            end()
        except NotYetError:
            self._late.append(end)
            self._looked_at_s = time.monotonic()
            return False
        return True
