"""Shards of one checkpoint: torch.distributed.checkpoint's ``StorageWriter`` and ``StorageReader`` on our files.

A folder as DCP's own: ``__{rank}_{n}.distcp`` and ``.metadata``, so that ``torch.distributed.checkpoint.load`` and
``dcp_to_torch_save`` open what was pulled.

Owns: the way of a plan's tensors to and from local files. Does not own: plans (``sharding``), what happens to the files
(``together``), or ``.metadata``'s safety (``shard_metadata``).

Invariant: a file appears whole under its name, with its sha256 known; no byte of a shard is unpickled but by
``torch.load(weights_only=True)``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import pickle
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.checkpoint.filesystem import CURRENT_DCP_VERSION, DEFAULT_SUFFIX, _StorageInfo, _StoragePrefix
from torch.distributed.checkpoint.planner import (
    LoadItemType,
    LoadPlan,
    LoadPlanner,
    SavePlan,
    SavePlanner,
    WriteItemType,
)
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from artifactsync.checkpoint.shard_metadata import NAME, read_metadata
from artifactsync.checkpoint.write import WrittenFile
from artifactsync.errors import DamagedError, DestinationError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch.distributed.checkpoint.metadata import Metadata, StorageMeta


class ShardWriter(StorageWriter):
    """Writes one rank's shards into a local folder, one file each rank.

    Args:
        folder: The checkpoint's folder.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.written: list[WrittenFile] = []
        """Files of this rank, whole on this disk."""

    def reset(self, checkpoint_id: Any = None) -> None:
        """Nothing is kept from one checkpoint to the next."""

    def set_up_storage_writer(self, is_coordinator: bool, *_: Any, **__: Any) -> None:  # noqa: ARG002  (as above)
        """Make the folder."""
        self.folder.mkdir(parents=True, exist_ok=True)

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """As it is."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Tell every rank the beginning of its files' names."""
        return [dataclasses.replace(plan, storage_data=_StoragePrefix(f"__{rank}_")) for rank, plan in enumerate(plans)]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this rank's file, if the plan has anything for it."""
        results: list[WriteResult] = []
        if plan.items:
            name = f"{plan.storage_data.prefix}0{DEFAULT_SUFFIX}"
            self.written.append(write_whole(self.folder / name, lambda file: _write(plan, planner, file, results)))
            results = [
                dataclasses.replace(each, storage_data=dataclasses.replace(each.storage_data, relative_path=name))
                for each in results
            ]
        future: Future[list[WriteResult]] = Future()
        future.set_result(results)
        return future

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Write ``.metadata``: where each tensor's pieces lie."""
        metadata.storage_data = {each.index: each.storage_data for rank in results for each in rank}
        metadata.version = CURRENT_DCP_VERSION
        self.written.append(write_whole(self.folder / NAME, lambda file: pickle.dump(metadata, file)))

    def storage_meta(self) -> StorageMeta | None:
        """Nothing that a reader would need."""
        return None

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        """Any local folder."""
        return bool(checkpoint_id) and "://" not in str(checkpoint_id)


class ShardReader(StorageReader):
    """Reads shards from a local folder.

    Args:
        folder: The checkpoint's folder.
        ensure: Called with the names of the files that are about to be read: brings them there.
        sizes: Length of each shard file by name, as committed; those in the folder if None.
    """

    def __init__(
        self, folder: Path, *, ensure: Callable[[set[str]], None] = lambda _: None, sizes: dict[str, int] | None = None
    ) -> None:
        super().__init__()
        self.folder = folder
        self._ensure, self._sizes = ensure, sizes
        self._places: dict[Any, Any] = {}

    def reset(self, checkpoint_id: Any = None) -> None:  # noqa: ARG002  (DCP's interface)
        """Nothing is kept from one checkpoint to the next."""
        self._places = {}

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        """What is in the shards.

        Raises:
            DamagedError: it is no metadata of these shards.
        """
        sizes = self._sizes
        if sizes is None:
            sizes = {file.name: file.stat().st_size for file in self.folder.glob("*" + DEFAULT_SUFFIX)}
        return read_metadata(self.folder / NAME, sizes)

    def set_up_storage_reader(self, metadata: Metadata, *_: Any, **__: Any) -> None:
        """Note where everything lies."""
        self._places = metadata.storage_data

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """As it is."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """As they are."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Read what the plan asks for, file by file, each forwards.

        Raises:
            DamagedError: a shard is not what the metadata says.
        """
        by_file: dict[str, list[Any]] = {}
        for item in plan.items:
            if item.storage_index not in self._places:
                raise DamagedError(f"no shard has {item.storage_index.fqn}", url=str(self.folder))
            by_file.setdefault(self._places[item.storage_index].relative_path, []).append(item)
        self._ensure(set(by_file))
        for name, items in by_file.items():
            with (self.folder / name).open("rb") as file:
                for item in sorted(items, key=lambda each: self._places[each.storage_index].offset):
                    self._read_item(file, item, planner)
        future: Future[None] = Future()
        future.set_result(None)
        return future

    def _read_item(self, file: Any, item: Any, planner: LoadPlanner) -> None:
        place = self._places[item.storage_index]
        file.seek(place.offset)
        data = io.BytesIO(file.read(place.length))
        if item.type is LoadItemType.BYTE_IO:
            planner.load_bytes(item, data)
            return
        try:
            tensor = torch.load(data, map_location="cpu", weights_only=True)
            for dimension, (start, length) in enumerate(zip(item.storage_offsets, item.lengths, strict=True)):
                tensor = tensor.narrow(dimension, start, length)
            target = planner.resolve_tensor(item).detach()
            if target.size() != tensor.size():
                raise ValueError(  # noqa: TRY301  (one kind of damage among others)
                    f"it has shape {tuple(tensor.size())} instead of {tuple(target.size())}"
                )
        except (RuntimeError, ValueError, EOFError, AttributeError, pickle.UnpicklingError) as error:
            raise DamagedError(
                f"the shard of {item.storage_index.fqn} cannot be read: {str(error)[:200]}",
                hint="use an older checkpoint",
                url=str(self.folder / place.relative_path),
            ) from error
        target.copy_(tensor)
        planner.commit_tensor(item, target)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        """Any local folder."""
        return bool(checkpoint_id) and "://" not in str(checkpoint_id)


def _write(plan: SavePlan, planner: SavePlanner, file: _HashedFile, results: list[WriteResult]) -> None:
    for item in plan.items:
        start, data = file.size_bytes, planner.resolve_data(item)
        if item.type is WriteItemType.BYTE_IO:
            file.write(data.getbuffer())  # type: ignore[union-attr]  # bytes of such an item, by DCP's rule
        else:
            tensor = data.detach().cpu()  # type: ignore[union-attr]  # a tensor, by DCP's rule
            is_part = tensor.untyped_storage().size() != tensor.nbytes
            torch.save(tensor.clone() if is_part else tensor, file)  # type: ignore[arg-type]  # write and flush are all it uses
        length = file.size_bytes - start
        results.append(
            WriteResult(index=item.index, size_in_bytes=length, storage_data=_StorageInfo("", start, length))
        )


class _HashedFile:
    """What ``torch.save`` and ``pickle.dump`` write to."""

    def __init__(self, fd: int) -> None:
        self._fd, self._hash, self.size_bytes = fd, hashlib.sha256(), 0

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self._hash.update(view)
        done = 0
        while done < len(view):
            done += os.write(self._fd, view[done:])
        self.size_bytes += done
        return done

    def flush(self) -> None:
        """Nothing is buffered here."""

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def write_whole(path: Path, write: Callable[[Any], None]) -> WrittenFile:
    """Write a file that is whole when it has its name.

    Raises:
        DestinationError: it cannot be written there, perhaps because the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            file = _HashedFile(fd)
            write(file)
            os.fsync(fd)
        finally:
            os.close(fd)
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # torch reports a failing writer as a RuntimeError
        temporary.unlink(missing_ok=True)
        raise DestinationError(
            f"cannot write the shard {path}: {error}", hint="see whether the disk is full, or choose another local_root"
        ) from error
    return WrittenFile(path, file.size_bytes, file.hexdigest())
