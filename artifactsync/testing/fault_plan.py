"""Which calls of a faulty store fail, and how.

Owns: ``Fault`` (one line of a plan), ``Call`` (one call as it is counted) and ``FaultPlan``, which picks the faults
of each call. Does not own: what a fault does to the call (``testing.faults``).

Invariant: a chance is drawn from the seed, the operation, the key and how often that key was called, so the same
calls fail whatever the order of the threads.
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Container, Sequence

FaultKind = Literal[
    "transient",
    "unreachable",
    "lost-response",
    "latency",
    "permission",
    "credentials",
    "disk-full",
    "truncated",
    "flipped-bit",
]
"""What goes wrong.

=================  ==================================================================================================
``transient``      ``TransientStoreError`` before anything is applied (``retry_after_s`` goes along)
``unreachable``    ``RemoteUnreachableError`` before anything is applied
``lost-response``  the call is applied, its answer is lost: ``UnknownOutcomeError`` for ``put_if_absent``, else
                   ``TransientStoreError``; a listing breaks off after its first entry
``latency``        ``latency_s`` seconds pass on the clock, then the call goes on
``permission``     ``PermissionDeniedError`` before anything is applied
``credentials``    ``CredentialsError`` before anything is applied
``disk-full``      ``DiskFullError`` before anything is applied
``truncated``      ``get`` returns only the first half, and does not say so
``flipped-bit``    one bit is wrong: in what ``get`` returns, or in what a put stores
=================  ==================================================================================================
"""

OPERATIONS = ("get", "put", "put_if_absent", "head", "list", "list_folders", "delete", "copy")
"""The operations that are counted and can fail."""

_WRITES_BYTES = frozenset({"put", "put_if_absent"})


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One line of a fault plan: what, on which calls."""

    kind: FaultKind
    """What goes wrong."""
    operations: Container[str] = OPERATIONS
    """Operations it may hit. ``truncated`` only ever hits ``get``, ``flipped-bit`` only ``get`` and puts."""
    keys: str = "*"
    """Pattern (``fnmatch``) of the keys it may hit; for ``list`` the prefix, for ``delete`` its first key."""
    calls: Container[int] | None = None
    """Schedule: the calls of the operation that are hit, counted from 1 over all keys. None: by probability."""
    probability: float = 1.0
    """Chance of each call, where there is no schedule."""
    times: int | None = None
    """At most so many hits in all; None: no limit."""
    latency_s: float = 0.0
    """How long a ``latency`` takes, in seconds."""
    retry_after_s: float | None = None
    """What a ``transient`` says in Retry-After, in seconds."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call as the hooks see it."""

    operation: str
    """One of ``OPERATIONS``."""
    key: str
    """Its key; for ``list`` the prefix, for ``delete`` the first key, for ``copy`` the target."""
    number: int
    """How many-th call of this operation, from 1."""
    total: int
    """How many-th call of any operation, from 1."""


@dataclass
class FaultPlan:
    """Counts the calls and picks what hits each. Thread-safe."""

    faults: Sequence[Fault]
    seed: int
    lock: threading.Lock = field(default_factory=threading.Lock)
    hits: Counter[int] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)
    calls_of_key: Counter[tuple[str, str]] = field(default_factory=Counter)

    def begin(self, operation: str, key: str) -> tuple[Call, Sequence[Fault], random.Random]:
        """Count a call; return it, its faults, and the source of their details."""
        with self.lock:
            self.calls[operation] += 1
            self.calls_of_key[operation, key] += 1
            call = Call(operation=operation, key=key, number=self.calls[operation], total=self.calls.total())
            # Drawn by key and its own count, so that the order of threads does not matter.
            draw = random.Random(f"{self.seed}/{operation}/{key}/{self.calls_of_key[operation, key]}")  # noqa: S311 - a plan, no secret
            return call, [f for i, f in enumerate(self.faults) if self._is_hit(i, f, call, draw.random())], draw

    def _is_hit(self, index: int, fault: Fault, call: Call, chance: float) -> bool:
        is_hit = (
            call.operation in fault.operations
            and _can_hit(fault.kind, call.operation)
            and fnmatchcase(call.key, fault.keys)
            and (chance < fault.probability if fault.calls is None else call.number in fault.calls)
            and (fault.times is None or self.hits[index] < fault.times)
        )
        self.hits[index] += is_hit
        return is_hit


def _can_hit(kind: FaultKind, operation: str) -> bool:
    if kind == "truncated":
        return operation == "get"
    return kind != "flipped-bit" or operation == "get" or operation in _WRITES_BYTES
