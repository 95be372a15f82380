"""Where ``map_location`` puts what was loaded."""

from __future__ import annotations

from typing import Any

import torch


def restored(storage: torch.UntypedStorage, location: str, map_location: Any) -> Any:
    """The storage where ``torch.load`` would put it.

    Args:
        storage: In host memory.
        location: Where it was when it was saved, as ``cpu`` or ``cuda:0``.
        map_location: As ``torch.load`` takes it.

    Raises:
        RuntimeError: there is no such device here.
    """
    if callable(map_location):
        placed = map_location(storage, location)
        if placed is not None:
            return placed
    elif isinstance(map_location, dict):
        location = map_location.get(location, location)
    elif map_location is not None:
        location = str(map_location)
    return torch.serialization.default_restore_location(storage, location)  # type: ignore[no-untyped-call]  # torch's own lack of hints
