"""A store that fails on purpose.

Owns: ``FaultyStore``, an adapter around any store. Does not own: which calls are hit (``testing.fault_plan``), faults
below HTTP (a proxy's work), retries (``stores.retry``).

Invariant: with the same seed, faults and calls per key, the same calls fail, whatever the threads' order; with no
faults the adapter changes nothing.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from artifactsync.errors import (
    ArtifactSyncError,
    CredentialsError,
    DiskFullError,
    PermissionDeniedError,
    RemoteUnreachableError,
    TransientStoreError,
    UnknownOutcomeError,
)
from artifactsync.stores.protocol import BytesBody
from artifactsync.testing.fault_plan import Call, Fault, FaultPlan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from artifactsync.stores.protocol import Body, ObjectInfo, Store


class Clock(Protocol):
    """What latency passes on: the ``time`` module, or a ``FakeClock``."""

    def sleep(self, seconds: float, /) -> None:
        """Let time pass."""


class FaultyStore:
    """Any store, with faults by schedule or by chance. A Store itself; closing it closes the store below.

    Args:
        store: What the calls go to.
        faults: The plan; all that match a call take effect, in their order.
        seed: Of the chances. The same seed and calls give the same faults.
        clock: Where latency passes.
        on_call: Called before each call is applied; may raise or end the process ("killed at the n-th call").
        on_answer: Called after each call was applied and before its answer is given.
    """

    can_begin = True
    """Requests that are begun (``stores.ahead``) are applied when their answers are asked for."""

    def __init__(
        self,
        store: Store,
        faults: Sequence[Fault] = (),
        seed: int = 0,
        *,
        clock: Clock = time,
        on_call: Callable[[Call], None] | None = None,
        on_answer: Callable[[Call], None] | None = None,
    ) -> None:
        self._store = store
        self._plan = FaultPlan(tuple(faults), seed)
        self._clock = clock
        self._on_call = on_call
        self._on_answer = on_answer
        self.ordered_listing: bool = getattr(store, "ordered_listing", False)

    @property
    def url(self) -> str:
        """The root of the store below."""
        return self._store.url

    @property
    def calls(self) -> Counter[str]:
        """How many calls of each operation there were, faulty ones among them."""
        with self._plan.lock:
            return Counter(self._plan.calls)

    @property
    def faults_hit(self) -> int:
        """How many faults took effect."""
        with self._plan.lock:
            return self._plan.hits.total()

    def begin_get(self, key: str, *, start: int, end: int) -> Callable[[], bytes]:
        """See ``stores.ahead``."""
        return lambda: self.get(key, start=start, end=end)

    def begin_put(self, key: str, data: bytes, *, sha256: str) -> Callable[[], ObjectInfo]:  # noqa: ARG002
        """See ``stores.ahead``."""
        return lambda: self.put(key, BytesBody(data))

    def get(self, key: str, *, start: int = 0, end: int | None = None) -> bytes:
        """Get, perhaps cut or with a wrong bit."""
        call, faults, draw = self._begin("get", key)
        data = self._store.get(key, start=start, end=end)
        self._end(call, faults)
        for fault in faults:
            if fault.kind == "truncated":
                data = data[: len(data) // 2]
            elif fault.kind == "flipped-bit":
                data = _flip(data, draw)
        return data

    def put(self, key: str, body: Body | bytes) -> ObjectInfo:
        """Put, perhaps with a wrong bit."""
        call, faults, draw = self._begin("put", key)
        info = self._store.put(key, _damaged(body, faults, draw))
        self._end(call, faults)
        return info

    def put_if_absent(self, key: str, body: Body | bytes) -> ObjectInfo:
        """Create, perhaps with a wrong bit."""
        call, faults, draw = self._begin("put_if_absent", key)
        info = self._store.put_if_absent(key, _damaged(body, faults, draw))
        self._end(call, faults)
        return info

    def head(self, key: str) -> ObjectInfo:
        """Head."""
        call, faults, _ = self._begin("head", key)
        info = self._store.head(key)
        self._end(call, faults)
        return info

    def list(self, prefix: str = "", *, start_after: str = "") -> Iterator[ObjectInfo]:
        """List, perhaps breaking off after the first entry."""
        call, faults, _ = self._begin("list", prefix)
        return self._broken_off(self._store.list(prefix, start_after=start_after), call, faults)

    def list_folders(self, prefix: str = "") -> Sequence[str]:
        """List folders."""
        call, faults, _ = self._begin("list_folders", prefix)
        folders = self._store.list_folders(prefix)
        self._end(call, faults)
        return folders

    def delete(self, keys: Iterable[str]) -> None:
        """Delete."""
        keys = list(keys)
        call, faults, _ = self._begin("delete", keys[0] if keys else "")
        self._store.delete(keys)
        self._end(call, faults)

    def copy(self, source: str, target: str) -> ObjectInfo:
        """Copy."""
        call, faults, _ = self._begin("copy", target)
        info = self._store.copy(source, target)
        self._end(call, faults)
        return info

    def close(self) -> None:
        """Close the store below."""
        self._store.close()

    def _begin(self, operation: str, key: str) -> tuple[Call, Sequence[Fault], random.Random]:
        """Count the call, run the hook, and fail where nothing is to be applied."""
        call, faults, draw = self._plan.begin(operation, key)
        if self._on_call is not None:
            self._on_call(call)
        for fault in faults:
            if fault.kind == "latency":
                self._clock.sleep(fault.latency_s)
            elif (error := self._error_before(fault, call)) is not None:
                raise error
        return call, faults, draw

    def _end(self, call: Call, faults: Sequence[Fault]) -> None:
        """Run the hook after the call was applied, and lose its answer where the plan says so."""
        if self._on_answer is not None:
            self._on_answer(call)
        if any(fault.kind == "lost-response" for fault in faults):
            message = f"injected: the answer of {call.operation} {call.key!r} was lost"
            if call.operation == "put_if_absent":
                raise UnknownOutcomeError(message, url=self._url_of(call.key))
            raise TransientStoreError(message, url=self._url_of(call.key))

    def _error_before(self, fault: Fault, call: Call) -> ArtifactSyncError | None:
        message = f"injected: {call.operation} {call.key!r} failed ({fault.kind})"
        url = self._url_of(call.key)
        if fault.kind == "transient":
            return TransientStoreError(message, url=url, retry_after_s=fault.retry_after_s)
        classes: dict[str, type[ArtifactSyncError]] = {
            "unreachable": RemoteUnreachableError,
            "permission": PermissionDeniedError,
            "credentials": CredentialsError,
            "disk-full": DiskFullError,
        }
        return classes[fault.kind](message, url=url) if fault.kind in classes else None

    def _broken_off(self, entries: Iterator[ObjectInfo], call: Call, faults: Sequence[Fault]) -> Iterator[ObjectInfo]:
        is_lost = any(fault.kind == "lost-response" for fault in faults)
        for entry in entries:
            yield entry
            if is_lost:
                break
        self._end(call, faults)

    def _url_of(self, key: str) -> str:
        return f"{self.url.rstrip('/')}/{key}"


def _damaged(body: Body | bytes, faults: Sequence[Fault], draw: random.Random) -> Body | bytes:
    if not any(fault.kind == "flipped-bit" for fault in faults):
        return body
    return _FlippedBody(BytesBody(body) if isinstance(body, bytes) else body, draw.random())


@dataclass(frozen=True)
class _FlippedBody:
    """A body with one wrong bit in its first chunk."""

    body: Body
    place: float

    @property
    def size_bytes(self) -> int:
        return self.body.size_bytes

    def chunks(self, chunk_bytes: int) -> Iterator[bytes]:
        for number, chunk in enumerate(self.body.chunks(chunk_bytes)):
            yield _flip(chunk, random.Random(self.place)) if number == 0 else chunk  # noqa: S311 - a plan, no secret


def _flip(data: bytes, draw: random.Random) -> bytes:
    if not data:
        return data
    flipped = bytearray(data)
    flipped[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return bytes(flipped)
