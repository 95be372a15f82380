"""What may be in a state, and the same state as plain containers.

Owns: the walk over a state, what is refused, and which of its tensors have to be copied. Does not own: copying them
(``copying``), or the memory they are copied to (``host_memory``).

Invariant: the result holds only what ``torch.load(weights_only=True)`` opens again, shares no container with the state,
and holds an empty tensor, a *shell*, for every tensor that is to be copied.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import torch

from artifactsync.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Layout = tuple[Any, ...]
"""Where a tensor is and how: all that decides what its copy looks like."""
_WANDERS = "wanders"
_WANDERER_BYTES = 1 << 16

_PLAIN = frozenset(
    (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size),
)
_KEYS = frozenset((type(None), bool, int, float, str, bytes))
_ADVICE = {
    "ndarray": "save torch.from_numpy(array), and .numpy() it after loading",
    "defaultdict": "save dict(...) of it",
    "function": "leave it out: code is not saved",
}


def layout_of(tensor: torch.Tensor) -> Layout:
    """What two tensors have in common if their copies may be the same."""
    return (
        tensor.data_ptr(),
        tensor.dtype,
        tensor.shape,
        tensor.stride(),
        tensor.storage_offset(),
        tensor.device,
        tensor.is_conj(),
        tensor.is_neg(),
    )


def wanderer_of(layout: Layout) -> Layout:
    """The layout of a small tensor that is made anew for every save, as the state of random generators is."""
    return (_WANDERS, layout[1], layout[2])


def may_wander(tensor: torch.Tensor) -> bool:
    """Whether it is small and a storage by itself."""
    return (
        tensor.device.type == "cpu"
        and tensor.nbytes <= _WANDERER_BYTES
        and tensor.is_contiguous()
        and not tensor.is_conj()
        and not tensor.is_neg()
        and tensor.untyped_storage().nbytes() == tensor.nbytes
    )


class PlainTree:
    """A state walked once: every object with ``state_dict()`` is asked once.

    Args:
        state: What the caller wants to save.
        known: Layouts and shells of the last walk. As long as the same tensors come in the same order, which they do
            while training goes on, their shells are used again and nothing else has to be found out.
        addresses: Where the known tensors are that do not wander, in order.

    Raises:
        ConfigurationError: it holds something that could not be loaded again, or itself; the message says where.
    """

    def __init__(
        self, state: Any, known: Sequence[tuple[Layout, torch.Tensor]] = (), addresses: Sequence[int] = ()
    ) -> None:
        self.tensors: list[torch.Tensor] = []
        """The tensors to be copied, in the order of the walk."""
        self.shells: list[torch.Tensor] = []
        """What stands for each of them in ``value``."""
        self.layouts: list[Layout] = []
        """Their layouts."""
        self.is_known = True
        """Whether all of them were known."""
        self.moved: set[int] = set()
        """Numbers of those that are where another of their kind was not."""
        self._known, self._addresses = known, addresses
        self._wanderers: set[int] = set()
        self._memo: dict[int, Any] = {}
        self._keep: list[Any] = []  # what the memo's ids belong to must stay alive
        self._open: set[int] = set()
        try:
            self.value = self._expand(state)
            """The state as plain containers with shells."""
        except _RefusalError as refusal:
            raise refusal.told() from None
        self.is_known = self.is_known and len(self.tensors) == len(known)

    def _expand(self, value: Any) -> Any:
        kind = type(value)
        if kind in _PLAIN:
            return value
        if kind is torch.Tensor or kind is torch.nn.Parameter:
            return self._tensor(value)
        if id(value) in self._memo:
            return self._memo[id(value)]
        if id(value) in self._open:
            raise _RefusalError("the state{} contains itself", "save a tree, without loops")
        self._open.add(id(value))
        done = self._container(value, kind)
        self._open.discard(id(value))
        self._memo[id(value)] = done
        self._keep.append(value)
        return done

    def _container(self, value: Any, kind: type) -> Any:
        if kind is dict or kind is OrderedDict:
            done = kind(self._items(value.items()))
            metadata = getattr(value, "_metadata", None)
            if metadata is not None:  # module versions, which load_state_dict needs
                done._metadata = self._expand(metadata)  # type: ignore[attr-defined]  # noqa: SLF001  (torch's own contract)
            return done
        if kind is list or kind is tuple:
            return kind(item for _, item in self._items(enumerate(value)))
        if kind is set:
            return {self._key(item) for item in value}
        if kind is bytearray:
            return bytes(value)
        if isinstance(value, torch.Tensor):
            raise _refuse(value)
        if callable(getattr(value, "state_dict", None)):
            return self._expand(value.state_dict())
        number = _number(value)
        if number is not None:
            return number
        raise _refuse(value)

    def _items(self, items: Iterable[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
        done = []
        key = None
        try:
            for key, item in items:
                kind = type(item)
                plain = item if kind in _PLAIN else self._expand(item)
                done.append((key if type(key) in _KEYS else self._key(key), plain))
        except _RefusalError as refusal:
            refusal.path.append(key)
            raise
        return done

    def _key(self, key: Any) -> Any:
        if type(key) in _KEYS:
            return key
        if type(key) is tuple:
            return tuple(self._key(part) for part in key)
        number = _number(key)
        if number is None:
            raise _refuse(key, what="the key ")
        return number

    def _tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        index = len(self.tensors)
        if index < len(self._known) and tensor.layout is torch.strided and not tensor.is_nested:
            layout, shell = self._known[index]
            if layout_of(tensor) == layout:
                self.tensors.append(tensor)
                self.shells.append(shell)
                self.layouts.append(layout)
                return shell
            if layout[0] == _WANDERS and self._wandered(tensor, layout):
                self.tensors.append(tensor)
                self.shells.append(shell)
                self.layouts.append(layout)
                return shell
            if layout[1] == tensor.dtype and layout[2] == tensor.shape:
                self.moved.add(index)
        return self._new_tensor(tensor)

    def _wandered(self, tensor: torch.Tensor, layout: Layout) -> bool:
        """Whether it is of the kind that was in its place before, and shares memory with nothing else."""
        if tensor.dtype != layout[1] or tensor.shape != layout[2] or not may_wander(tensor):
            return False
        address = tensor.data_ptr()
        if address in self._wanderers:
            return False
        self._wanderers.add(address)
        place = bisect_left(self._addresses, address)
        return place == len(self._addresses) or self._addresses[place] >= address + tensor.nbytes

    def _new_tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        original = tensor
        tensor = tensor.detach()
        shell: torch.Tensor | None
        if tensor.is_meta:
            raise _RefusalError(
                "the tensor{} is on the meta device and has no values", "materialise the model before saving it"
            )
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested:
            shell = tensor.to("cpu", copy=True)
        elif tensor.is_conj() or tensor.is_neg():  # a view whose values are nowhere in memory
            shell = tensor.resolve_conj().resolve_neg().to("cpu")
        elif tensor.numel() == 0:
            shell = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
        else:
            shell = self._memo.get(id(original))
            if shell is None:
                shell = torch.empty(0, dtype=tensor.dtype)
            self.tensors.append(tensor)
            self.shells.append(shell)
            self.layouts.append(layout_of(tensor))
            self.is_known = False
        self._memo[id(original)] = shell
        self._keep.append(original)
        return shell


class _RefusalError(Exception):
    """Something that cannot be saved; the way to it is told by the containers it passes through."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self._message, self._hint = message, hint
        self.path: list[Any] = []
        """Keys and indices, innermost first."""

    def told(self) -> ConfigurationError:
        shown = "".join(f"[{part!r}]" for part in reversed(self.path))
        return ConfigurationError(self._message.format(f" at {shown}" if shown else ""), hint=self._hint)


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


def _refuse(value: Any, what: str = "") -> _RefusalError:
    name = type(value).__name__
    if isinstance(value, torch.Tensor):
        hint = "save tensor.full_tensor() or tensor.as_subclass(torch.Tensor)"
    else:
        hint = _ADVICE.get(name, "save its numbers, strings and tensors, or give it a state_dict() method")
    module = type(value).__module__.replace("{", "{{").replace("}", "}}")
    return _RefusalError(
        f"{what}state{{}} is of type {module}.{name}, which torch.load(weights_only=True) would refuse", hint
    )
