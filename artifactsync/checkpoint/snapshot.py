"""A copy of training state, taken while training stands still for as short a time as possible.

Owns: the copy of a state in host memory, and the plan of it that is kept from one snapshot to the next. Does not own:
what may be in a state (``plain_tree``), what may be copied later (``overlap``), writing it (``write``), or when it is
taken (``state_io``).

Invariant: after ``take_snapshot`` returns, nothing the caller does to its state changes the snapshot without the
snapshot saying so, and the snapshot holds only what ``torch.load(weights_only=True)`` opens again. Tensors that share
memory in the state share it in the snapshot.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from artifactsync.checkpoint.copy_plan import CopyPlan, Span
from artifactsync.checkpoint.copying import MAX_COPIERS, Copy
from artifactsync.checkpoint.host_memory import HostMemory
from artifactsync.checkpoint.overlap import Overlap, Ownership, version_of
from artifactsync.checkpoint.plain_tree import PlainTree
from artifactsync.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


class SnapshotBuffers:
    """Host memory kept from one snapshot to the next, so that only the first one pays for touching new pages.

    Buffers are pinned where the tensors live on a CUDA device. Not thread-safe: one snapshot at a time.
    """

    def __init__(self) -> None:
        self._memory = HostMemory()
        self._plan = CopyPlan()
        self._streams: dict[torch.device, Any] = {}
        self._last: Snapshot | None = None
        self.may_overlap = True
        """False once something was changed while it was still to be copied: from then on all is copied at once."""

    @property
    def size_bytes(self) -> int:
        """Host memory held."""
        return self._memory.size_bytes

    def prepare(self, state: Any) -> None:
        """Have the memory for snapshots of ``state``, touched, so that the first one is as quick as any other.

        Raises:
            ConfigurationError: as ``take_snapshot``.
        """
        for target in self.plan_for(self.tree_of(state)).targets():
            target.zero_()

    def tree_of(self, state: Any) -> PlainTree:
        """Walk a state, in the light of the last one."""
        return PlainTree(state, self._plan.known, self._plan.addresses)

    def plan_for(self, tree: PlainTree) -> CopyPlan:
        """How to copy ``tree``; every buffer may be overwritten from now on."""
        if self._last is not None:
            self._last.drop()
            self._last = None
        if not tree.is_known:
            self._plan = CopyPlan()  # lets go of buffers that are not needed any more
            self._plan.make(tree, self._memory)
        return self._plan

    def stream(self, device: torch.device) -> Any:
        """The side stream on which that device is copied while training goes on."""
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch's own lack of hints
        return self._streams[device]

    def remember(self, snapshot: Snapshot) -> None:
        """Drop this one before its buffers are used again."""
        self._last = snapshot


class Snapshot:
    """A copied state. Valid until its buffers are used again."""

    def __init__(
        self,
        state: Any,
        size_bytes: int,
        *,
        events: Sequence[tuple[torch.device, Any]] = (),
        keep: Any = None,
        overlap: Overlap | None = None,
        shells: Sequence[torch.Tensor] = (),
        buffers: SnapshotBuffers | None = None,
    ) -> None:
        self.state = state
        """The state: plain containers, numbers, strings and CPU tensors."""
        self.size_bytes = size_bytes
        """Bytes of tensor data copied."""
        self._events, self._keep, self._overlap = events, keep, overlap
        self._shells, self._buffers = shells, buffers

    @property
    def is_overlapped(self) -> bool:
        """Whether a part of it was still to be copied when it was taken."""
        return self._overlap is not None

    @property
    def waited_s(self) -> float:
        """Seconds that optimizers were held up for it so far."""
        return 0.0 if self._overlap is None else self._overlap.waited_s

    def wait(self) -> None:
        """Wait until everything is copied, and help with it. Call it on the thread that reads the snapshot.

        Raises:
            ConfigurationError: a tensor was changed, by something else than its optimizer, before it was copied.
        """
        for device, event in self._events:
            with torch.cuda.device(device):  # a new thread is on device 0, and would make itself a context there
                event.synchronize()
        self._keep = None
        if self._overlap is not None:
            self._overlap.finish()
            self._raise_if_changed()

    def settle(self) -> None:
        """Hold the calling thread until everything is copied, before it changes tensors where no step hook sees it."""
        if self._overlap is not None:
            self._overlap.settle()

    def confirm(self) -> None:
        """Make sure of what was read: call it after the last byte was used, and before anybody relies on it.

        Raises:
            ConfigurationError: a tensor was changed, by something else than its optimizer, before it was copied.
        """
        self.settle()
        self._raise_if_changed()

    def drop(self) -> None:
        """Copy nothing more: nobody wants it."""
        if self._overlap is not None:
            self._overlap.drop()

    def _raise_if_changed(self) -> None:
        if self._overlap is None or not self._overlap.changed:
            return
        if self._buffers is not None:
            self._buffers.may_overlap = False
        places = sorted({_place(self.state, self._shells[number]) or "?" for number in self._overlap.changed})
        more = f" and {len(places) - 3} more" if len(places) > 3 else ""  # noqa: PLR2004  (names enough to find it)
        raise ConfigurationError(
            f"{', '.join(places[:3])}{more} of the state changed outside of an optimizer's step while being copied: "
            "this checkpoint would hold a mixture, and was not made; later ones are copied without overlap",
            hint="save without overlap, or call wait_copied() of the run before changing it",
        )


def take_snapshot(state: Any, buffers: SnapshotBuffers, *, overlap: Sequence[torch.optim.Optimizer] = ()) -> Snapshot:
    """Copy ``state`` into ``buffers``.

    CPU tensors are copied when this returns. Copies from CUDA devices are queued on the current stream: what the
    caller queues there afterwards cannot overtake them, so the caller never waits for the device.

    Args:
        state: Nested dicts, lists and tuples of tensors, numbers, strings, ``None``, and objects with
            ``state_dict()``, each of which is asked once.
        buffers: Memory to reuse. The snapshot taken with them before becomes invalid.
        overlap: Optimizers. What they alone change, their parameters and their state, is copied by the thread that
            calls ``wait`` of the snapshot, and their ``step`` waits for what is left. Everything else is copied now.

    Raises:
        ConfigurationError: the state holds something that ``torch.load(weights_only=True)`` would refuse, or holds
            itself; the message says where.
    """
    ownership = Ownership(overlap if buffers.may_overlap else ())
    tree = buffers.tree_of(state)
    plan = buffers.plan_for(tree)
    plan.divide(tree, ownership)
    for number in plan.wanderers:
        tree.shells[number].copy_(tree.tensors[number])
    events = _copy_from_devices(plan.device_spans[0], tree)
    if len(plan.owners) == 1:
        Copy([plan.pieces[0]]).finish(copiers=MAX_COPIERS)
        # Memory that is given back on another stream could be used again before it is copied: it is kept till then.
        return Snapshot(tree.value, plan.size_bytes, events=events, keep=tree.tensors if events else None)
    calls: list[Callable[[], None] | None] = [None]
    streams: dict[torch.device, Any] = {}
    for spans in plan.device_spans[1:]:
        for device in {tree.tensors[span.tensor].device for span in spans} - streams.keys():
            streams[device] = buffers.stream(device)
            streams[device].wait_stream(torch.cuda.current_stream(device))
        calls.append(partial(_copy_beside, spans, tree, streams) if spans else None)
    watched = [
        [(tensor, version_of(tensor), number) for tensor, number in group] for group in plan.watched(tree, ownership)
    ]
    copy = Copy(plan.pieces, calls)
    copy.finish([0], copiers=MAX_COPIERS)
    later = Overlap(copy, plan.owners, ownership.optimizers, watched, list(streams.values()), keep=tree.tensors)
    snapshot = Snapshot(
        tree.value, plan.size_bytes, events=events, keep=tree.tensors if events else None, overlap=later,
        shells=tree.shells, buffers=buffers,
    )  # fmt: skip
    buffers.remember(snapshot)
    return snapshot


def _copy_from_devices(spans: Sequence[Span], tree: PlainTree) -> list[tuple[torch.device, Any]]:
    """Copy what is on a device, in the order of its current stream; returns what to wait for, by device."""
    devices = set()
    for span in spans:
        source = span.source(tree)
        span.target.copy_(source, non_blocking=source.is_cuda)
        if source.is_cuda:
            devices.add(source.device)
    events = []
    for device in devices:
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # who waits sleeps: cores are for training
        event.record(torch.cuda.current_stream(device))
        events.append((device, event))
    return events


def _copy_beside(spans: Sequence[Span], tree: PlainTree, streams: Mapping[torch.device, Any]) -> None:
    """Copy what is on a device on a stream beside that of training."""
    for span in spans:
        source = span.source(tree)
        with torch.cuda.stream(streams[source.device]):
            span.target.copy_(source, non_blocking=True)


def _place(value: Any, shell: torch.Tensor) -> str | None:
    """``['optimizer']['state'][0]``: where in a snapshot's state a tensor is."""
    if value is shell:
        return ""
    items = value.items() if isinstance(value, dict) else enumerate(value) if type(value) in (list, tuple) else ()
    for key, item in items:
        found = _place(item, shell)
        if found is not None:
            return f"[{key!r}]{found}"
    return None
