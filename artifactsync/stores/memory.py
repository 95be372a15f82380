"""The memory of this process as a store: for trials and tests; gone when the process ends."""

from __future__ import annotations

import threading
from typing import Any

from artifactsync.stores.object import Lanes, ObjectStore

_stores: dict[str, Any] = {}
_lock = threading.Lock()


def memory_store(name: str) -> ObjectStore:
    """Open the store ``memory://<name>``; the same name is the same store everywhere in this process."""
    from obstore.store import MemoryStore  # noqa: PLC0415 loads the cloud library

    with _lock:
        inner = _stores.setdefault(name, MemoryStore())
    return ObjectStore(Lanes(ask=inner, create=inner, write=inner, read=inner), f"memory://{name}")
