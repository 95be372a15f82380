"""A copy of training state, taken while training stands still for as short a time as possible.

Owns: what may be in a state, and the copy of it in host memory. Does not own: writing it (``write``), or when it is
taken (``state_io``).

Invariant: after ``take_snapshot`` returns, nothing the caller does to its state changes the snapshot, and the
snapshot holds only what ``torch.load(weights_only=True)`` opens again. Tensors that share memory in the state share it
in the snapshot.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch

from artifactsync.errors import ConfigurationError

_ALIGN_BYTES = 64
"""Where a copied span begins in its storage: a multiple of every element size."""

_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size)
_KEYS = (type(None), bool, int, float, str, bytes)
_ADVICE = {
    "ndarray": "save torch.from_numpy(array), and .numpy() it after loading",
    "defaultdict": "save dict(...) of it",
    "function": "leave it out: code is not saved",
}


class SnapshotBuffers:
    """Host memory kept from one snapshot to the next, so that only the first one pays for touching new pages.

    Buffers are pinned where the tensors live on a CUDA device. Not thread-safe: one snapshot at a time.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, torch.Tensor] = {}
        self._used: set[str] = set()

    def begin(self) -> None:
        """Start a new snapshot: every buffer may be overwritten."""
        self._used.clear()

    def take(self, place: str, size_bytes: int, *, pinned: bool) -> torch.Tensor:
        """The buffer for the storage first met at ``place``, ``size_bytes`` long; new where the size has changed."""
        self._used.add(place)
        kept = self._buffers.get(place)
        if kept is None or kept.numel() != size_bytes or kept.is_pinned() != pinned:
            self._buffers.pop(place, None)  # freed before the new one is made
            kept = torch.empty(size_bytes, dtype=torch.uint8, pin_memory=pinned)
            self._buffers[place] = kept
        return kept

    def end(self) -> None:
        """Free the buffers that the last snapshot did not use."""
        for place in self._buffers.keys() - self._used:
            del self._buffers[place]

    @property
    def size_bytes(self) -> int:
        """Host memory held."""
        return sum(buffer.numel() for buffer in self._buffers.values())


@dataclass(frozen=True)
class Snapshot:
    """A copied state. Valid until its buffers are used again."""

    state: Any
    """The state: plain containers, numbers, strings and CPU tensors."""
    size_bytes: int
    """Bytes of tensor data copied."""
    _copies: tuple[Any, ...] = ()

    def wait(self) -> None:
        """Wait until copies from a device have arrived. Call it on the thread that reads the snapshot."""
        for event in self._copies:
            event.synchronize()


def take_snapshot(state: Any, buffers: SnapshotBuffers) -> Snapshot:
    """Copy ``state`` into ``buffers``.

    CPU tensors are copied when this returns. Copies from CUDA devices are queued on the current stream: what the
    caller queues there afterwards cannot overtake them, so the caller never waits for the device.

    Args:
        state: Nested dicts, lists and tuples of tensors, numbers, strings, ``None``, and objects with
            ``state_dict()``, each of which is asked once.
        buffers: Memory to reuse. The snapshot taken with them before becomes invalid.

    Raises:
        ConfigurationError: the state holds something that ``torch.load(weights_only=True)`` would refuse, or holds
            itself; the message says where.
    """
    expansion = _Expansion()
    plain = expansion.expand(state, ())
    buffers.begin()
    copier = _Copier(expansion.spans, buffers)
    copied = copier.copy(plain)
    buffers.end()
    return Snapshot(copied, copier.size_bytes, copier.record_events())


@dataclass
class _Span:
    """The part of one storage that the state's tensors use."""

    place: str
    start: int
    end: int
    source: torch.Tensor


class _Expansion:
    """First pass: plain containers with the caller's own tensors in them, all checked."""

    def __init__(self) -> None:
        self.spans: dict[int, _Span] = {}
        self._memo: dict[int, Any] = {}
        self._keep: list[Any] = []  # what the memo's ids belong to must stay alive
        self._open: set[int] = set()

    def expand(self, value: Any, path: tuple[Any, ...]) -> Any:
        kind = type(value)
        if kind in _PLAIN:
            return value
        if id(value) in self._memo:
            return self._memo[id(value)]
        if isinstance(value, torch.Tensor):
            done: Any = self._tensor(value, path)
        else:
            if id(value) in self._open:
                raise ConfigurationError(
                    f"the state at {_shown(path)} contains itself", hint="save a tree, without loops"
                )
            self._open.add(id(value))
            done = self._container(value, path)
            self._open.discard(id(value))
        self._memo[id(value)] = done
        self._keep.append(value)
        return done

    def _container(self, value: Any, path: tuple[Any, ...]) -> Any:
        kind = type(value)
        if kind in (dict, OrderedDict):
            done = kind((self._key(k, path), self.expand(v, (*path, k))) for k, v in value.items())
            metadata = getattr(value, "_metadata", None)
            if metadata is not None:  # module versions, which load_state_dict needs
                done._metadata = self.expand(metadata, (*path, "_metadata"))  # type: ignore[attr-defined]  # noqa: SLF001  (torch's own contract)
            return done
        if kind in (list, tuple):
            return kind(self.expand(item, (*path, index)) for index, item in enumerate(value))
        if kind is set:
            return {self._key(item, path) for item in value}
        if kind is bytearray:
            return bytes(value)
        if callable(getattr(value, "state_dict", None)):
            return self.expand(value.state_dict(), path)
        number = _number(value)
        if number is not None:
            return number
        raise _refuse(value, path)

    def _key(self, key: Any, path: tuple[Any, ...]) -> Any:
        if type(key) in _KEYS:
            return key
        if type(key) is tuple:
            return tuple(self._key(part, path) for part in key)
        number = _number(key)
        if number is None:
            raise _refuse(key, (*path, key), what="the key ")
        return number

    def _tensor(self, tensor: torch.Tensor, path: tuple[Any, ...]) -> torch.Tensor:
        if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
            raise _refuse(tensor, path)
        if tensor.is_meta:
            raise ConfigurationError(
                f"the tensor at {_shown(path)} is on the meta device and has no values",
                hint="materialise the model before saving it",
            )
        tensor = tensor.detach()
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested:
            return tensor.to("cpu", copy=True)
        if tensor.is_conj() or tensor.is_neg():
            tensor = tensor.resolve_conj().resolve_neg()
        if tensor.numel():
            self._note(tensor, path)
        return tensor

    def _note(self, tensor: torch.Tensor, path: tuple[Any, ...]) -> None:
        size = tensor.element_size()
        start = int(tensor.storage_offset()) * size
        last = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
        end = start + (last + 1) * size
        start -= start % _ALIGN_BYTES
        key = _storage_key(tensor)
        span = self.spans.get(key)
        if span is None:
            self.spans[key] = _Span(_shown(path), start, end, tensor)
        else:
            span.start, span.end = min(span.start, start), max(span.end, end)


class _Copier:
    """Second pass: the same tree with every tensor's storage copied into its buffer."""

    def __init__(self, spans: dict[int, _Span], buffers: SnapshotBuffers) -> None:
        self._spans = spans
        self._buffers = buffers
        self._done: dict[int, torch.Tensor] = {}
        self._tensors: dict[int, torch.Tensor] = {}
        self._containers: dict[int, Any] = {}
        self._devices: set[torch.device] = set()
        self.size_bytes = 0

    def copy(self, value: Any) -> Any:
        """Replace tensors in the plain tree, in place where the container can change."""
        if isinstance(value, torch.Tensor):
            copied = self._tensors.get(id(value))
            if copied is None:
                copied = self._tensors[id(value)] = self._tensor(value)
            return copied
        if type(value) in _PLAIN:
            return value
        if id(value) in self._containers:
            return self._containers[id(value)]
        done = value
        if isinstance(value, dict):
            for key, item in value.items():
                value[key] = self.copy(item)
        elif type(value) is list:
            value[:] = [self.copy(item) for item in value]
        elif type(value) is tuple:
            done = tuple(self.copy(item) for item in value)
        self._containers[id(value)] = done
        return done

    def _tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested:
            return tensor  # a copy already
        if tensor.numel() == 0:
            return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
        key = _storage_key(tensor)
        span = self._spans[key]
        buffer = self._done.get(key)
        if buffer is None:
            buffer = self._done[key] = self._storage(span)
        offset = (tensor.storage_offset() * tensor.element_size() - span.start) // tensor.element_size()
        storage = buffer.untyped_storage()
        return torch.empty(0, dtype=tensor.dtype).set_(storage, offset, tensor.shape, tensor.stride())

    def _storage(self, span: _Span) -> torch.Tensor:
        device = span.source.device
        size_bytes = span.end - span.start
        is_cuda = device.type == "cuda"
        target = self._buffers.take(span.place, size_bytes, pinned=is_cuda)
        source = torch.empty(0, dtype=torch.uint8, device=device)
        source.set_(span.source.untyped_storage(), span.start, (size_bytes,), (1,))
        target.copy_(source, non_blocking=is_cuda)
        if is_cuda:
            self._devices.add(device)
        self.size_bytes += size_bytes
        return target

    def record_events(self) -> tuple[Any, ...]:
        """One event on each CUDA device's current stream, after the copies from it."""
        events = []
        for device in self._devices:
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch's own lack of hints
            event.record(torch.cuda.current_stream(device))
            events.append(event)
        return tuple(events)


def _storage_key(tensor: torch.Tensor) -> int:
    """What tells storages apart while they live, as ``torch.save`` does it."""
    return int(tensor.untyped_storage()._cdata)  # noqa: SLF001


def _number(value: Any) -> bool | int | float | complex | str | None:
    """The plain number or string that a subclass of one (NumPy's scalars, ``IntEnum``) stands for, else None."""
    item = getattr(value, "item", None)
    if callable(item) and getattr(value, "shape", None) == () and type(value).__module__ == "numpy":
        value = item()
    plain: bool | int | float | complex | str | None = None
    if isinstance(value, str):
        plain = str.__str__(value)
    elif isinstance(value, bool):
        plain = bool(value)
    elif isinstance(value, int):
        plain = int(value)
    elif isinstance(value, float):
        plain = float(value)
    elif isinstance(value, complex):
        plain = complex(value)
    return plain


def _refuse(value: Any, path: tuple[Any, ...], what: str = "") -> ConfigurationError:
    name = type(value).__name__
    if isinstance(value, torch.Tensor):
        hint = "save tensor.full_tensor() or tensor.as_subclass(torch.Tensor)"
    else:
        hint = _ADVICE.get(name, "save its numbers, strings and tensors, or give it a state_dict() method")
    return ConfigurationError(
        f"{what}state{'' if not path else ' at'} {_shown(path)} is of type {type(value).__module__}.{name}, "
        "which torch.load(weights_only=True) would refuse",
        hint=hint,
    )


def _shown(path: tuple[Any, ...]) -> str:
    """``['optimizer']['state'][0]``, for messages and buffer names."""
    return "".join(f"[{part!r}]" for part in path)
