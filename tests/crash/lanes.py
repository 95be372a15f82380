"""A few points of a fault run at a time: most of each is waiting for servers and disks."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_Item = TypeVar("_Item")

_LANES = 3


def in_lanes(call: Callable[[_Item], object], items: Iterable[_Item]) -> None:
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

    with ThreadPoolExecutor(_LANES) as pool:
        for future in [pool.submit(lane) for _ in range(_LANES)]:
            future.result()
