"""A set of keys that only grows, of which every earlier state can still be seen.

Invariant: ``added`` takes as long as what is added, however large the set is; a set that was made never changes.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet

_growing = threading.Lock()  # of all sets: two that grow from one must not both take its memory


class GrowingSet(AbstractSet[str]):
    """An immutable set; those made from one another by :meth:`added` share their memory.

    Args:
        items: What is in it.
    """

    __slots__ = ("_numbers", "_size")

    def __init__(self, items: Iterable[str] = ()) -> None:
        # Numbers are places: of those that share the dict, each has the items up to its size.
        self._numbers = {item: number for number, item in enumerate(dict.fromkeys(items))}
        self._size = len(self._numbers)

    def added(self, items: Iterable[str]) -> GrowingSet:
        """This set and ``items``."""
        grown = GrowingSet()
        with _growing:
            is_newest = len(self._numbers) == self._size  # else another was made from this: each goes its own way
            grown._numbers = self._numbers if is_newest else {item: number for number, item in enumerate(self)}
            for item in items:
                grown._numbers.setdefault(item, len(grown._numbers))
            grown._size = len(grown._numbers)
        return grown

    def __contains__(self, item: object) -> bool:
        return self._numbers.get(item, self._size) < self._size  # type: ignore[call-overload,no-any-return] # any object

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._numbers)[: self._size])  # copied at once: it may grow meanwhile

    def __len__(self) -> int:
        return self._size

    def __repr__(self) -> str:
        return f"GrowingSet({list(self)!r})"
