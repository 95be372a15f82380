"""Copying memory on as many threads as have time for it.

Owns: the pieces of a copy, who takes which, and waiting for them. Does not own: what they mean (``snapshot``), or
whether the memory still holds what it should (``overlap``).

Invariant: every piece is copied once, by one thread, and ``finish`` returns when those asked for are copied.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

_PIECE_BYTES = 4 << 20
"""What one thread takes at a time: long enough that taking it costs nothing, short enough to wait for (1 ms)."""
MAX_COPIERS = max(1, min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1))
"""Threads that copy while the caller waits. Four fill the memory bandwidth that one socket gives."""

_move = ctypes.memmove  # releases the interpreter lock


Piece = tuple[tuple[int, int, int], ...]
"""Copies in host memory that one thread makes at a time: (target, source, bytes) each."""


def pieces_of(spans: Iterable[tuple[int, int, int]]) -> list[Piece]:
    """Cut and join copies (target, source, bytes) so that none of the pieces is long, and few are short."""
    pieces: list[Piece] = []
    batch: list[tuple[int, int, int]] = []
    batch_bytes = 0
    for target, source, size_bytes in spans:
        done = 0
        while done < size_bytes:
            part = min(_PIECE_BYTES - batch_bytes, size_bytes - done)
            batch.append((target + done, source + done, part))
            done += part
            batch_bytes += part
            if batch_bytes == _PIECE_BYTES:
                pieces.append(tuple(batch))
                batch, batch_bytes = [], 0
    if batch:
        pieces.append(tuple(batch))
    return pieces


class Copy:
    """Copies in groups, each of which can be finished by itself.

    Args:
        groups: Pieces by group.
        calls: Functions by group that copy from devices; they run before its pieces.
    """

    def __init__(
        self,
        groups: Sequence[Sequence[Piece]],
        calls: Sequence[Callable[[], None] | None] = (),
    ) -> None:
        self._todo: list[deque[Any]] = [deque(group) for group in groups]
        for queue, call in zip(self._todo, calls, strict=False):
            if call is not None:
                queue.appendleft(call)
        self._left = [len(queue) for queue in self._todo]
        self._busy = 0  # pieces that are being copied
        self._changed = threading.Condition()
        self._error: BaseException | None = None

    def finish(self, groups: Iterable[int] | None = None, *, copiers: int = 1) -> None:
        """Copy what nobody has taken yet, and wait for what others have taken.

        Args:
            groups: Those to be finished; None is all.
            copiers: Threads that copy, this one included.
        """
        wanted = list(range(len(self._todo)) if groups is None else groups)
        left = sum(len(self._todo[group]) for group in wanted)
        for _ in range(min(copiers, left // 4) - 1):
            threading.Thread(target=self._take, args=(wanted,), name="artifactsync-copy", daemon=True).start()
        self._take(wanted)
        with self._changed:
            self._changed.wait_for(
                lambda: not self._busy if self._error else not any(self._left[group] for group in wanted)
            )
            if self._error is not None:
                raise self._error

    def drop(self) -> None:
        """Copy nothing more; when this returns, nobody writes to the memory any more."""
        with self._changed:
            self._error = self._error or RuntimeError("the snapshot was dropped")
            self._changed.wait_for(lambda: not self._busy)

    def _take(self, wanted: Sequence[int]) -> None:
        for group in wanted:
            queue = self._todo[group]
            while True:
                with self._changed:
                    if self._error is not None or not queue:
                        break
                    piece = queue.popleft()
                    self._busy += 1
                self._copy(group, piece)

    def _copy(self, group: int, piece: Any) -> None:
        error: BaseException | None = None
        try:
            if callable(piece):
                piece()
            else:
                for target, source, size_bytes in piece:
                    _move(target, source, size_bytes)
        except BaseException as caught:
            error = caught
            raise
        finally:
            with self._changed:
                self._busy -= 1
                self._error = self._error or error
                if error is None:
                    self._left[group] -= 1
                if self._error is not None or not self._left[group]:
                    self._changed.notify_all()
