"""A place for the bytes of one long answer, given by the thread that waits for it.

Owns: which place that is. Does not own: reading the answer (``http_answer``), or the places (``transfer.places``).

Who fetches a large file by ranges reuses a few places: to find and clear pages for a new one takes the kernel a tenth
of all the time that the range takes. A store need not know of it: one that makes its own bytes gives those.
"""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_here = threading.local()


@contextlib.contextmanager
def landing(place: memoryview) -> Iterator[None]:
    """Let long answers that this thread reads land in ``place`` if they fit: what a store returns may be a view of it.

    One at a time: each answer lands on the one before.
    """
    _here.place = place
    try:
        yield
    finally:
        del _here.place


def place_for(size_bytes: int) -> memoryview | None:
    """So much of this thread's place; None if it has none so large."""
    place: memoryview | None = getattr(_here, "place", None)
    return place[:size_bytes] if place is not None and size_bytes <= len(place) else None
