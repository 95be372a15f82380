"""Copying what only an optimizer's step changes while the next forward and backward run.

Owns: which tensors belong to which optimizer, the hook that holds a step up until they are copied, and the guard that
notices when something else changed them. Does not own: the copying (``copying``), or the snapshot (``snapshot``).

Invariant: a snapshot whose tensors were changed before they were copied is never confirmed. The guard is torch's own
version counter of every tensor, read when the snapshot is taken and again on the training thread right before the step
(or, where no step comes, once the file is written): an operation counts up after it has written, so that a reading
while it runs proves nothing. What torch does not count, it cannot see: writes through ``.data`` or a NumPy view, and
the replay of a CUDA graph.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_right
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from artifactsync.checkpoint.copying import MAX_COPIERS
from artifactsync.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from artifactsync.checkpoint.copying import Copy

AT_ONCE: frozenset[int] = frozenset()
"""The owners of what no optimizer owns."""


def version_of(tensor: torch.Tensor) -> int:
    """How often an operation has changed it in place, as torch counts for autograd's own checks."""
    return tensor._version  # noqa: SLF001  (documented under "In-place correctness checks")


class Ownership:
    """The memory that optimizers own: their parameters, and the tensors of their state.

    Args:
        optimizers: Nothing but their steps changes these tensors, until the snapshot is copied.

    Raises:
        ConfigurationError: one of them is no ``torch.optim.Optimizer``.
    """

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        for optimizer in optimizers:
            if not isinstance(optimizer, torch.optim.Optimizer):
                raise ConfigurationError(
                    f"overlap got a {type(optimizer).__name__}, which is no torch.optim.Optimizer",
                    hint="pass the optimizers whose step changes the state, or save without overlap",
                )
        self.optimizers = list(optimizers)
        self.tensors = [list(_owned(optimizer)) for optimizer in optimizers]
        """Tensors by optimizer."""

    def signature(self) -> Any:
        """Equal as long as the same memory is owned."""
        return [[(tensor.data_ptr(), tensor.nbytes) for tensor in tensors] for tensors in self.tensors]

    def owners_of(self, tensors: Sequence[torch.Tensor]) -> list[frozenset[int]]:
        """Which optimizers own each tensor, all of it; :data:`AT_ONCE` where a byte of it may be somebody else's."""
        ranges = sorted(
            (*span, owner)
            for owner, owned in enumerate(self.tensors)
            for tensor in owned
            if (span := _dense_span(tensor)) is not None
        )
        merged: list[tuple[int, int, frozenset[int]]] = []
        for start, end, owner in ranges:
            if merged and start < merged[-1][1]:  # they overlap: whoever steps first must wait for all
                before = merged[-1]
                merged[-1] = (before[0], max(end, before[1]), before[2] | {owner})
            else:
                merged.append((start, end, frozenset({owner})))
        starts = [start for start, _, _ in merged]
        return [_owners(tensor, merged, starts) for tensor in tensors]


def _owners(tensor: torch.Tensor, merged: list[tuple[int, int, frozenset[int]]], starts: list[int]) -> frozenset[int]:
    start, end = span_of(tensor)
    owners: frozenset[int] = AT_ONCE
    index = bisect_right(starts, start) - 1
    while start < end:
        if index < 0 or index >= len(merged) or not merged[index][0] <= start < merged[index][1]:
            return AT_ONCE
        owners |= merged[index][2]
        start = merged[index][1]
        index += 1
    return owners


def _owned(optimizer: torch.optim.Optimizer) -> Iterator[torch.Tensor]:
    for group in optimizer.param_groups:
        yield from group["params"]
    for kept in optimizer.state.values():
        yield from _tensors_in(kept.values() if isinstance(kept, dict) else (kept,))


def _tensors_in(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    for value in values:
        kind = type(value)
        if kind is torch.Tensor:
            yield value
        elif kind is dict:
            yield from _tensors_in(value.values())
        elif kind in (list, tuple):
            yield from _tensors_in(value)


def span_of(tensor: torch.Tensor) -> tuple[int, int]:
    """The addresses between which a tensor of at least one element lies."""
    start = tensor.data_ptr()
    last = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return start, start + (last + 1) * tensor.element_size()


def _dense_span(tensor: torch.Tensor) -> tuple[int, int] | None:
    """The same where every byte between them is the tensor's, and torch counts what changes it."""
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter) or tensor.layout != torch.strided:
        return None
    if tensor.device.type not in ("cpu", "cuda") or not tensor.numel() or tensor.is_inference():
        return None
    start, end = span_of(tensor)
    return (start, end) if end - start == tensor.nbytes else None


class Overlap:
    """The copies of one snapshot that go on while training does.

    Args:
        copy: The copy; each of its groups after the first belongs to some of the optimizers.
        owners: The optimizers of each group, as indices.
        optimizers: The optimizers.
        watched: For each group, its tensors with their version at the time of the snapshot, and what they are called.
        streams: The side streams on which device memory is copied.
        keep: What must stay alive until all is copied.
    """

    def __init__(
        self,
        copy: Copy,
        owners: Sequence[frozenset[int]],
        optimizers: Sequence[torch.optim.Optimizer],
        watched: Sequence[Sequence[tuple[torch.Tensor, int, int]]],
        streams: Sequence[Any] = (),
        *,
        keep: Any = None,
    ) -> None:
        self._copy, self._watched, self._streams = copy, list(watched), list(streams)
        self._groups = {
            id(optimizer): [group for group, owned in enumerate(owners) if index in owned]
            for index, optimizer in enumerate(optimizers)
        }
        self._optimizers = list(optimizers)  # whose ids the keys are
        self._keep = keep
        self._open = set(range(1, len(owners)))
        self._lock = threading.Lock()
        self.changed: list[int] = []
        """What was changed too early, by the number it was given in ``watched``."""
        self.waited_s = 0.0
        """Seconds that steps were held up."""
        self._hook = register_optimizer_step_pre_hook(self._before_step)

    def finish(self) -> None:
        """Copy and wait for all of it, on the thread that reads the snapshot."""
        self._copy.finish()
        for stream in self._streams:
            stream.synchronize()
        self._keep = None
        with self._lock:
            for group in self._open:
                self._look(group)

    def settle(self, groups: Iterable[int] | None = None) -> None:
        """Finish, and look at the version counters for the last time: from here on everything may be changed.

        On the training thread this is exact. The step hook calls it; a caller that changes tensors in another way
        calls it before.
        """
        wanted = list(range(len(self._watched)) if groups is None else groups)
        try:
            self._copy.finish(wanted, copiers=MAX_COPIERS)
            for stream in self._streams:
                torch.cuda.current_stream(stream.device).wait_stream(stream)
        finally:
            with self._lock:
                for group in self._open.intersection(wanted):
                    self._look(group)
                    self._open.discard(group)
                    self._watched[group] = ()
                if not self._open:
                    self._hook.remove()
                    self._optimizers.clear()

    def drop(self) -> None:
        """Nobody wants the snapshot any more."""
        self._copy.drop()
        for stream in self._streams:
            stream.synchronize()
        with suppress(Exception):  # that it was dropped
            self.settle()

    def _look(self, group: int) -> None:
        self.changed += [number for tensor, version, number in self._watched[group] if version_of(tensor) != version]

    def _before_step(self, optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
        began = time.perf_counter()
        with suppress(Exception):  # the checkpoint tells what went wrong with it; training goes on
            self.settle(self._groups.get(id(optimizer)))
        self.waited_s += time.perf_counter() - began
