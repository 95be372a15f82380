"""Requests that are begun before the answers to others were read.

Owns: the two words ``begin_get`` and ``begin_put``, and that a store need not know them. Does not own: how many are
under way (``transfer.ahead``), patience: whoever waits for an answer and gets an error asks again in the usual way.

A thread that waits for each answer does nothing meanwhile, and many threads take the interpreter lock from each other
at every system call: 2,000 objects of 8 KiB came in 0.74 s by eight threads and in 0.42 s by one, from a server on the
same machine; from one that is 20 ms away it is the waiting that counts (docs/benchmarks.md).

Invariants: an object is asked for, or sent, once, or not at all (None). No request waits for a connection to be made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from artifactsync.stores.protocol import ObjectInfo, Store

AHEAD_BYTES = 64 * 1024
"""Longest object that is worth it: it goes to the kernel in one call, which does not wait for the line."""


class NotYetError(Exception):
    """An answer has not begun to come for a while. Whoever wants it reads others first, and comes back."""


def can_begin(store: Store) -> bool:
    """Whether a store knows these words at all."""
    return bool(getattr(store, "can_begin", False))


def begin_get(store: Store, key: str, *, start: int, end: int) -> Callable[[], bytes] | None:
    """Ask for the bytes ``[start, end)`` of an object, and leave the answer for later.

    Args:
        store: Whom.
        key: Of the object.
        start: First byte.
        end: After the last one; at most ``AHEAD_BYTES`` and one more.

    Returns:
        What waits for the answer, and returns or raises as ``Store.get``, sent once; or raises ``NotYetError``, and is
        to be called again. None if the store cannot, or not now, and nothing was sent: read the answers that are under
        way, or ask in the usual way.

    Raises:
        ArtifactSyncError: it could not be sent.
    """
    begin: Callable[..., Callable[[], bytes] | None] | None = getattr(store, "begin_get", None)
    return None if begin is None else begin(key, start=start, end=end)


def begin_put(store: Store, key: str, data: bytes, *, sha256: str) -> Callable[[], ObjectInfo] | None:
    """Write an object, replacing what was there, and leave the answer for later; otherwise as ``begin_get``.

    ``sha256`` is that of ``data``, in lower-case hex: it may go along.
    """
    begin: Callable[..., Callable[[], ObjectInfo] | None] | None = getattr(store, "begin_put", None)
    return None if begin is None else begin(key, data, sha256=sha256)
