"""A store in a folder, files to send, and a gate that holds uploads until a test lets them go."""

from __future__ import annotations

import random
import threading
from collections import defaultdict

import pytest

from artifactsync.stores.local import LocalStore
from artifactsync.testing import FaultyStore

DEADLINE_S = 20  # of what must happen at once; only a broken test ever waits so long


class Gate:
    """Holds every put of a store until it is opened, and notes what came."""

    def __init__(self):
        self._open = threading.Event()
        self._arrived = defaultdict(threading.Event)
        self._lock = threading.Lock()
        self.puts = []

    def __call__(self, call):
        if call.operation not in {"put", "put_if_absent"}:
            return
        with self._lock:
            self.puts.append(call.key)
        self._arrived[call.key].set()
        assert self._open.wait(DEADLINE_S), "nobody opened the gate"

    def open(self):
        self._open.set()

    def wait_for(self, key):
        """Wait until the upload of ``key`` stands at the gate."""
        assert self._arrived[key].wait(DEADLINE_S), f"no upload of {key} began"


@pytest.fixture
def store(tmp_path):
    return LocalStore(tmp_path / "remote")


@pytest.fixture
def gate():
    gate = Gate()
    yield gate
    gate.open()


@pytest.fixture
def gated(store, gate):
    return FaultyStore(store, on_call=gate)


@pytest.fixture
def make_file(tmp_path):
    """Make a local file of some bytes, the same ones for the same name and size."""

    def make(name, content: bytes | int = 1000):
        path = tmp_path / "local" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(
            content if isinstance(content, bytes) else random.Random(f"{name}{content}").randbytes(content)
        )
        return path

    return make
