"""``.metadata`` of torch.distributed.checkpoint, which is a pickle: read without running anything that is in it.

Owns: which classes may be in it, and whether it fits the files beside it. Does not own: reading shards (``shards``).

Invariant: nothing is called but the plain classes that DCP itself puts there; and a tensor that it promises is no
larger than the bytes of its shards.
"""

from __future__ import annotations

import pickle
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.checkpoint import filesystem, metadata
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from artifactsync.errors import DamagedError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

NAME = ".metadata"
"""Name of the file in a sharded checkpoint's folder."""


def _member(owner: object, name: object) -> Any:
    """How Python 3.11.0 to 3.11.3 pickle a member of an enumeration; nothing else's attribute is had.

    Seen with Debian 12's 3.11.2.
    """
    if owner is not metadata._MEM_FORMAT_ENCODING:  # noqa: SLF001  (torch's own format)
        raise pickle.UnpicklingError("an attribute does not belong there")
    return metadata._MEM_FORMAT_ENCODING[str(name)]  # noqa: SLF001


_CLASSES: dict[tuple[str, str], Any] = {
    **{
        (metadata.__name__, name): getattr(metadata, name)
        for name in (
            "BytesStorageMetadata",
            "ChunkStorageMetadata",
            "Metadata",
            "MetadataIndex",
            "StorageMeta",
            "TensorProperties",
            "TensorStorageMetadata",
            "_MEM_FORMAT_ENCODING",
        )
    },
    (filesystem.__name__, "_StorageInfo"): filesystem._StorageInfo,  # noqa: SLF001  (torch's own format)
    ("torch", "Size"): torch.Size,
    ("torch.serialization", "_get_layout"): lambda name: {"torch.strided": torch.strided}[name],
    ("pathlib", "PosixPath"): PurePosixPath,
    ("pathlib._local", "PosixPath"): PurePosixPath,
    ("collections", "OrderedDict"): dict,
    ("builtins", "getattr"): _member,
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        found = _CLASSES.get((module, name))
        if found is None and module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            found = getattr(torch, name)
        if found is None:
            raise pickle.UnpicklingError(f"{module}.{name} does not belong there")
        return found


def read_metadata(path: Path, sizes: Mapping[str, int]) -> Metadata:
    """Read it.

    Args:
        path: The file.
        sizes: Length of each shard file beside it, by name.

    Raises:
        DamagedError: it holds something else, or does not fit the shards.
    """
    try:
        with path.open("rb") as file:
            read = _Reader(file).load()
        if not isinstance(read, Metadata):
            raise TypeError(f"it is a {type(read).__name__}")  # noqa: TRY301  (one kind of damage among others)
        _check(read, sizes)
    except Exception as error:  # a damaged pickle can raise anything
        raise DamagedError(
            f"the metadata of a sharded checkpoint cannot be read: {str(error)[:200]}",
            hint="use an older checkpoint",
            url=str(path),
        ) from error
    return read


def _check(read: Metadata, sizes: Mapping[str, int]) -> None:
    for index, info in read.storage_data.items():
        if not isinstance(index, metadata.MetadataIndex) or not isinstance(info, filesystem._StorageInfo):  # noqa: SLF001
            raise TypeError("its storage data are something else")
        if info.relative_path not in sizes:
            raise ValueError(f"{info.relative_path!r} is no shard of this checkpoint")
        if not 0 <= info.offset <= info.offset + info.length <= sizes[info.relative_path]:
            raise ValueError(f"{index.fqn} lies outside of {info.relative_path}")
        if info.transform_descriptors:
            raise ValueError(f"{index.fqn} is transformed by {info.transform_descriptors}")
    promised = sum(
        each.size.numel() * each.properties.dtype.itemsize
        for each in read.state_dict_metadata.values()
        if isinstance(each, TensorStorageMetadata)
    )
    if promised > sum(sizes.values()):
        raise ValueError(f"it promises {promised} bytes of tensors, more than there are in its shards")
