"""Memory that snapshots are copied to, kept from one to the next.

Owns: buffers, their reuse, and that they are pinned where a device copies into them. Does not own: what is copied
(``snapshot``).

Invariant: no more is held than the last snapshot needs.
"""

from __future__ import annotations

import mmap
import weakref

import torch

_OWN_MAPPING_BYTES = 1 << 20
"""From this size pinned memory is mapped and registered by us: torch's own allocator for it rounds up to a power of two
(CachingHostAllocator.h), which would hold up to twice the state. Unverified on a GPU."""


class HostMemory:
    """Buffers by size. Not thread-safe: one snapshot at a time."""

    def __init__(self) -> None:
        self._taken: list[tuple[tuple[int, bool], torch.Tensor]] = []

    def take(self, sizes: list[tuple[int, bool]]) -> list[torch.Tensor]:
        """One buffer for each (bytes, whether pinned); those of last time may be among them.

        What is not needed any more is freed before anything new is made.
        """
        free: dict[tuple[int, bool], list[torch.Tensor]] = {}
        for key, buffer in reversed(self._taken):  # the same storage gets the same buffer again
            free.setdefault(key, []).append(buffer)
        self._taken.clear()
        found = [kept.pop() if (kept := free.get(size)) else None for size in sizes]
        free.clear()
        buffers = [_new(*size) if buffer is None else buffer for size, buffer in zip(sizes, found, strict=True)]
        self._taken = list(zip(sizes, buffers, strict=True))
        return buffers

    @property
    def size_bytes(self) -> int:
        """Memory held."""
        return sum(size for (size, _), _ in self._taken)


def _new(size_bytes: int, pinned: bool) -> torch.Tensor:
    if not pinned:
        return torch.empty(size_bytes, dtype=torch.uint8)
    if size_bytes >= _OWN_MAPPING_BYTES:
        buffer = torch.frombuffer(mmap.mmap(-1, size_bytes), dtype=torch.uint8)
        runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]  # torch's own lack of hints
        if int(runtime.cudaHostRegister(buffer.data_ptr(), size_bytes, 0)) == 0:
            weakref.finalize(buffer, runtime.cudaHostUnregister, buffer.data_ptr()).atexit = False
            return buffer
    return torch.empty(size_bytes, dtype=torch.uint8, pin_memory=True)
