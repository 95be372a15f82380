"""How a state is copied: which parts of which storages, to which buffers, and what of it may wait.

Owns: the plan, which stays the same from one snapshot to the next while the tensors stay where they are. Does not own:
carrying it out (``copying``, ``overlap``).

Invariant: every byte of every tensor lies in exactly one span; a span waits only if optimizers own all of its tensors.
"""

from __future__ import annotations

from bisect import bisect_right
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from artifactsync.checkpoint.copying import Piece, pieces_of
from artifactsync.checkpoint.overlap import AT_ONCE, Ownership, span_of
from artifactsync.checkpoint.plain_tree import layout_of, may_wander, wanderer_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from artifactsync.checkpoint.host_memory import HostMemory
    from artifactsync.checkpoint.plain_tree import Layout, PlainTree

_ALIGN_BYTES = 64
"""Where a copied span begins in its storage: a multiple of every element size."""


@dataclass
class Span:
    """The part of one storage that the state's tensors use."""

    tensor: int
    """One of the tensors, by its number."""
    start: int
    """Offset in the storage, in bytes."""
    end: int
    """The offset behind its last byte."""
    address: int = 0
    """Of its first byte, where it is."""
    owners: frozenset[int] = AT_ONCE
    """The optimizers that own all of its tensors."""
    tensors: int = 0
    """How many of them are in it."""
    wanders: bool = False
    """Whether its one tensor is elsewhere each time."""

    def __post_init__(self) -> None:
        self.target = torch.empty(0, dtype=torch.uint8)
        """The buffer that it is copied to."""

    def source(self, tree: PlainTree) -> torch.Tensor:
        """Its bytes where they are."""
        tensor = tree.tensors[self.tensor]
        source = torch.empty(0, dtype=torch.uint8, device=tensor.device)
        return source.set_(tensor.untyped_storage(), self.start, (self.end - self.start,), (1,))


class CopyPlan:
    """The plan; empty until ``make``."""

    def __init__(self) -> None:
        self.known: list[tuple[Layout, torch.Tensor]] = []
        """The tensors it is made for, with their shells."""
        self.addresses: list[int] = []
        """Where those of them are that do not wander, in order."""
        self.wanderers: list[int] = []
        """The numbers of those that do: small ones, to be copied one by one."""
        self.size_bytes = 0
        """Of all spans."""
        self.owners: list[frozenset[int]] = []
        """For each group, the optimizers whose step changes it. The first group is copied at once."""
        self.pieces: list[list[Piece]] = []
        """For each group, what is to be copied in host memory."""
        self.device_spans: list[list[Span]] = []
        """For each group, what is to be copied from devices."""
        self._spans: list[Span] = []
        self._span_of: list[Span] = []  # by tensor
        self._ownership: Any = None
        self._watched: list[list[tuple[int, int | None, int]]] = []

    def targets(self) -> Iterator[torch.Tensor]:
        """The buffers."""
        return (span.target for span in self._spans)

    def make(self, tree: PlainTree, memory: HostMemory) -> None:
        """Plan the copy of ``tree`` into ``memory``, and fill its shells in."""
        for shell in tree.shells:
            shell.set_()  # type: ignore[call-overload]  # lets go of the buffer of last time
        spans: dict[int, Span] = {}
        for number, tensor in enumerate(tree.tensors):
            size = tensor.element_size()
            start = int(tensor.storage_offset()) * size
            base = tensor.data_ptr() - start
            first, behind = span_of(tensor)
            end = start + behind - first
            start -= start % _ALIGN_BYTES
            # What tells storages apart while they live, as torch.save does it.
            span = spans.setdefault(int(tensor.untyped_storage()._cdata), Span(number, start, end))  # noqa: SLF001
            span.start, span.end = min(span.start, start), max(span.end, end)
            span.address = base + span.start
            span.tensors += 1
            self._span_of.append(span)
        self._spans = list(spans.values())
        self.size_bytes = sum(span.end - span.start for span in self._spans)
        devices = [tree.tensors[span.tensor].device for span in self._spans]
        sizes = [(span.end - span.start, d.type == "cuda") for span, d in zip(self._spans, devices, strict=True)]
        on_cuda = next((device for device in devices if device.type == "cuda"), None)
        # Pinning is done on the current device: on one that is in use, or each rank would have a context on device 0.
        with nullcontext() if on_cuda is None else torch.cuda.device(on_cuda):
            buffers = memory.take(sizes)
        for span, target in zip(self._spans, buffers, strict=True):
            span.target = target
        for tensor, shell, span in zip(tree.tensors, tree.shells, self._span_of, strict=True):
            offset = (int(tensor.storage_offset()) * tensor.element_size() - span.start) // tensor.element_size()
            shell.set_(span.target.untyped_storage(), offset, tensor.shape, tensor.stride())
        for number, (tensor, layout, span) in enumerate(zip(tree.tensors, tree.layouts, self._span_of, strict=True)):
            did_move = number in tree.moved or layout == wanderer_of(layout)
            span.wanders = did_move and span.tensors == 1 and may_wander(tensor)
            if span.wanders:
                self.wanderers.append(number)
        self.known = [
            (wanderer_of(layout) if span.wanders else layout_of(tensor), shell)
            for tensor, layout, shell, span in zip(tree.tensors, tree.layouts, tree.shells, self._span_of, strict=True)
        ]
        self.addresses = sorted(
            tensor.data_ptr() for tensor, span in zip(tree.tensors, self._span_of, strict=True) if not span.wanders
        )

    def divide(self, tree: PlainTree, ownership: Ownership) -> None:
        """Divide the copies into groups by who owns the tensors."""
        signature = ownership.signature()
        if signature == self._ownership:
            return
        for span in self._spans:
            span.owners = AT_ONCE
        if ownership.optimizers:
            partly_free = set()
            for span, owners in zip(self._span_of, ownership.owners_of(tree.tensors), strict=True):
                span.owners |= owners
                if owners == AT_ONCE or span.wanders:
                    partly_free.add(id(span))
            for span in self._spans:
                if id(span) in partly_free:
                    span.owners = AT_ONCE
        later = sorted({span.owners for span in self._spans} - {AT_ONCE}, key=sorted)
        self.owners = [AT_ONCE, *later]
        groups = [[span for span in self._spans if span.owners == owners] for owners in self.owners]
        on_cpu = [
            [span for span in group if not span.wanders and tree.tensors[span.tensor].device.type == "cpu"]
            for group in groups
        ]
        self.device_spans = [
            [span for span in group if tree.tensors[span.tensor].device.type != "cpu"] for group in groups
        ]
        self.pieces = [
            pieces_of((span.target.data_ptr(), span.address, span.end - span.start) for span in group)
            for group in on_cpu
        ]
        self._watched = self._find_watched(ownership)
        self._ownership = signature

    def _find_watched(self, ownership: Ownership) -> list[list[tuple[int, int | None, int]]]:
        watched: list[list[tuple[int, int | None, int]]] = [[] for _ in self.owners]
        group_of = {owners: group for group, owners in enumerate(self.owners)}
        for number, span in enumerate(self._span_of):
            if span.owners != AT_ONCE:
                watched[group_of[span.owners]].append((number, None, number))
        by_address = sorted((span for span in self._spans if span.owners != AT_ONCE), key=lambda span: span.address)
        addresses = [span.address for span in by_address]
        for owner, tensors in enumerate(ownership.tensors):
            for index, tensor in enumerate(tensors):
                place = bisect_right(addresses, tensor.data_ptr()) - 1
                if place < 0 or not tensor.numel():
                    continue
                span = by_address[place]
                if tensor.data_ptr() < span.address + span.end - span.start:
                    watched[group_of[span.owners]].append((span.tensor, owner, index))
        return watched

    def watched(self, tree: PlainTree, ownership: Ownership) -> list[list[tuple[torch.Tensor, int]]]:
        """For each group, the tensors by which a change of it is seen, with the number of a tensor in the state."""
        return [
            [
                (tree.tensors[index] if owner is None else ownership.tensors[owner][index], number)
                for number, owner, index in group
            ]
            for group in self._watched
        ]
