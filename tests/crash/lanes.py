"""A few points of a fault run at a time: most of each is waiting for servers and disks."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_Item = TypeVar("_Item")

LANES = 3


def in_lanes(call: Callable[[_Item], object], items: Iterable[_Item], *, lanes: int = LANES) -> None:
    """Call for each item, a few at a time; items are drawn as they are needed."""
    iterator = iter(items)
    lock = threading.Lock()
    failed = threading.Event()

    def lane() -> None:
        while not failed.is_set():
            with lock:
                item = next(iterator, iterator)
            if item is iterator:
                return
            try:
                call(item)
            except BaseException:
                failed.set()
                raise

    with ThreadPoolExecutor(lanes) as pool:
        for future in [pool.submit(lane) for _ in range(lanes)]:
            future.result()
