"""The ``.safetensors`` format: a flat dict of tensors, as Hugging Face's tools and many others open it.

Owns: the format, both ways. It is so simple (a length, a JSON header, the bytes) that it needs no package: written like
every checkpoint from the snapshot's own memory, without a second copy, hashed and uploaded meanwhile. Does not own: the
way to the disk (``write``).

Invariant: the bytes are those that the safetensors package itself writes for the same tensors; a header that is not
true of its file is refused.

Source: github.com/huggingface/safetensors, README (format) and safetensors/src/tensor.rs (order, limit), read 2026-11.
"""

from __future__ import annotations

import itertools
import json
import math
import sys
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from artifactsync.checkpoint.image import Image
from artifactsync.checkpoint.overlap import span_of
from artifactsync.checkpoint.placing import restored
from artifactsync.errors import ConfigurationError, DamagedError, ObjectNotFoundError

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping

SUFFIX = ".safetensors"
_METADATA = "__metadata__"
_MADE_WITH = {"format": "pt"}  # which transformers asks for
_MOST_HEADER_BYTES = 100_000_000
# In the order in which the package writes them, the last ones first.
_NAMES = (
    ("BOOL", "bool"), ("U8", "uint8"), ("I8", "int8"), ("F8_E5M2", "float8_e5m2"), ("F8_E4M3", "float8_e4m3fn"),
    ("F8_E8M0", "float8_e8m0fnu"), ("F8_E4M3FNUZ", "float8_e4m3fnuz"), ("F8_E5M2FNUZ", "float8_e5m2fnuz"),
    ("I16", "int16"), ("U16", "uint16"), ("F16", "float16"), ("BF16", "bfloat16"), ("I32", "int32"), ("U32", "uint32"),
    ("F32", "float32"), ("C64", "complex64"), ("F64", "float64"), ("I64", "int64"), ("U64", "uint64"),
)  # fmt: skip
_DTYPES: dict[str, torch.dtype] = {name: getattr(torch, own) for name, own in _NAMES if hasattr(torch, own)}
_RANKS = {dtype: (place, name) for place, (name, dtype) in enumerate(_DTYPES.items())}


def check_flat(state: Any) -> Mapping[str, torch.Tensor]:
    """The state, if a ``.safetensors`` file can hold it.

    Raises:
        ConfigurationError: it cannot; says what of it.
    """
    if sys.byteorder != "little":
        raise ConfigurationError("safetensors files are little-endian, and this machine is not", hint="save as .pt")
    if type(state) is not dict and not isinstance(state, dict):
        raise _refused(f"the state is a {type(state).__name__}")
    spans = []
    for name, value in state.items():
        if not isinstance(name, str) or name == _METADATA:
            raise _refused(f"{name!r} is no name of a tensor")
        if not isinstance(value, torch.Tensor):
            raise _refused(f"{name!r} is a {type(value).__name__}")
        if value.layout != torch.strided or value.dtype not in _RANKS:
            kind = value.dtype if value.layout == torch.strided else value.layout
            raise ConfigurationError(
                f"safetensors has no {str(kind).removeprefix('torch.')}, which {name!r} is",
                hint="convert it, or save without format",
            )
        if value.numel():
            spans.append((*span_of(value), name))
    spans.sort()
    for (_, end, one), (start, _, other) in itertools.pairwise(spans):
        if start < end:
            raise ConfigurationError(
                f"safetensors holds no tensors that share memory, and {one!r} and {other!r} do",
                hint="leave one of them out, or clone() it, or save without format",
            )
    return state


def _refused(what: str) -> ConfigurationError:
    return ConfigurationError(
        f"safetensors holds a flat dict of tensors, and {what}",
        hint="save a model alone, as run.save(model, …), or leave format out",
    )


class SafetensorsImage(Image):
    """The bytes of a ``.safetensors`` file.

    Args:
        state: A flat dict of CPU tensors. Their memory must not change while the image is in use; those that are not
            contiguous are copied.

    Raises:
        ConfigurationError: the format cannot hold it.
    """

    def __init__(self, state: Any) -> None:
        flat = check_flat(state)
        header: dict[str, Any] = {_METADATA: _MADE_WITH}
        pieces: list[memoryview] = []
        checksums: dict[int, int] = {}
        at = 0
        for name in sorted(flat, key=lambda name: (-_RANKS[flat[name].dtype][0], name)):
            tensor = flat[name]
            end = at + tensor.numel() * tensor.element_size()
            header[name] = {
                "dtype": _RANKS[tensor.dtype][1], "shape": list(tensor.shape), "data_offsets": [at, end],
            }  # fmt: skip
            at = end
            if tensor.numel():
                array: Any = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
                data = memoryview(array)
                pieces.append(data)
                # As of a .pt file it is of the whole storage; of several tensors in one, all count.
                address = tensor.untyped_storage().data_ptr()
                checksums[address] = zlib.crc32(data, checksums.get(address, 0))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)  # so that the bytes of tensors are aligned
        super().__init__([memoryview(len(text).to_bytes(8, "little") + text), *pieces], checksums, state)


def load_safetensors(path: str | os.PathLike[str], *, map_location: Any = "cpu") -> dict[str, torch.Tensor]:
    """Load a ``.safetensors`` file, memory-mapped.

    Args:
        path: The file. It must not be changed in place while the loaded tensors live.
        map_location: As ``torch.load`` takes it.

    Raises:
        DamagedError: it is no whole file of that format.
        ObjectNotFoundError: no such file.
    """
    try:
        with Path(path).open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            header_bytes = int.from_bytes(file.read(8), "little")
            if not 0 < header_bytes <= min(size - 8, _MOST_HEADER_BYTES):
                raise _damaged(path, f"its header cannot have {header_bytes} bytes")
            header = json.loads(file.read(header_bytes))
        described = list(_described(header, size - 8 - header_bytes))
        storage = torch.UntypedStorage.from_file(str(path), False, size)
    except FileNotFoundError as error:
        raise ObjectNotFoundError(f"there is no file at {path}", hint="check the path", url=str(path)) from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from error
    data_start = 8 + header_bytes
    loaded = {}
    for name, dtype, shape, start, end in described:
        own = restored(storage[data_start + start : data_start + end], "cpu", map_location)
        loaded[name] = torch.empty(0, dtype=dtype, device=own.device).set_(own, 0, shape, _strides(shape))
    return {name: loaded[name] for name in header if name != _METADATA}


def _described(header: Any, data_bytes: int) -> Iterator[tuple[str, torch.dtype, tuple[int, ...], int, int]]:
    """What a header says, checked: no byte is in two tensors, or in none.

    Raises:
        ValueError, TypeError, KeyError, AttributeError: it is not true.
    """
    at = 0
    entries = [(name, entry) for name, entry in header.items() if name != _METADATA]
    for name, entry in sorted(entries, key=lambda item: tuple(item[1]["data_offsets"])):
        dtype, shape = _DTYPES[entry["dtype"]], tuple(entry["shape"])
        start, end = entry["data_offsets"]
        if not all(type(n) is int and n >= 0 for n in (*shape, start, end)):
            raise ValueError(f"{name!r} has shape {shape}")
        if start != at or end - start != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{name!r} is said to be at {start} to {end}")
        yield name, dtype, shape, start, end
        at = end
    if at != data_bytes:
        raise ValueError(f"{data_bytes} bytes of tensors, not {at}")


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides, below = [], 1
    for length in reversed(shape):
        strides.append(below)
        below *= max(length, 1)
    return tuple(reversed(strides))


def _damaged(path: str | os.PathLike[str], what: str) -> DamagedError:
    return DamagedError(
        f"{path} is no whole safetensors file: {what[:200]}", hint="use an older checkpoint", url=str(path)
    )
