"""A store that remembers what was asked of it, and can be held up."""

from __future__ import annotations

import threading
from collections import Counter

from tests.testing.dict_store import DictStore


class CountingStore(DictStore):
    """Correct; ``asked`` counts requests by kind, and ``hold(kind, prefix)`` makes some of them wait."""

    def __init__(self):
        super().__init__()
        self.asked = Counter()
        self.held = Counter()
        self.arrived = threading.Event()
        self._gates = {}

    def hold(self, kind, prefix=""):
        """From now on requests of this kind for these keys wait until the returned event is set."""
        gate = threading.Event()
        self._gates[kind] = prefix, gate
        return gate

    def get(self, key, **more):
        self._pass("get", key)
        return super().get(key, **more)

    def put(self, key, body):
        self._pass("put", key)
        return super().put(key, body)

    def put_if_absent(self, key, body):
        self._pass("put", key)
        return super().put_if_absent(key, body)

    def head(self, key):
        self._pass("head", key)
        return super().head(key)

    def list(self, prefix="", **more):
        self._pass("list", prefix)
        return super().list(prefix, **more)

    def list_folders(self, prefix=""):
        self._pass("list_folders", prefix)
        return super().list_folders(prefix)

    def delete(self, keys):
        every = list(keys)
        self._pass("delete", every[0] if every else "")
        super().delete(every)

    def _pass(self, kind, key):
        self.asked[kind] += 1
        prefix, gate = self._gates.get(kind, ("", None))
        if gate and key.startswith(prefix) and not gate.is_set():
            self.held[kind] += 1
            self.arrived.set()
            assert gate.wait(60)
