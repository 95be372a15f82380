"""The checkpoint file of ``load_path``: a local one, or one that lies anywhere.

Owns: bringing it here, once for all processes of a machine, and of a ``.pt`` file only what is asked for. Does not own:
what is done with it (``loading``).

Invariant: nothing is known of such a file beforehand, as no journal speaks of it: of a part, each tensor has the
checksum that ``torch.save`` wrote; of a whole file, the length that the store says.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from artifactsync.batch import placement
from artifactsync.checkpoint.load import load_file
from artifactsync.checkpoint.load_part import load_parts
from artifactsync.checkpoint.node_files import forget_others, leave
from artifactsync.checkpoint.pt_part import PtPart
from artifactsync.checkpoint.selecting import select
from artifactsync.checkpoint.zip_layout import IndivisibleError
from artifactsync.errors import ConfigurationError
from artifactsync.naming import format_name
from artifactsync.run.folder_lock import folder_lock
from artifactsync.stores import open_store
from artifactsync.transfer.download import download_file
from artifactsync.transfer.ranges import RangeReader

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from artifactsync.stores.protocol import Store


def read_checkpoint(
    path: str,
    *,
    run_name: str,
    storage_options: Mapping[str, Any] | None,
    map_location: Any,
    folder: Path,
    only: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Load the checkpoint file of ``load_path``.

    Args:
        path: Template of a local path or a URL (``s3://bucket/run/checkpoints/ep1-ba10-rank0.pt``).
        run_name: For the template.
        storage_options: For the URL's file system.
        map_location: As ``torch.load`` takes it.
        folder: Where a remote file lies while it is read: local, and the same for all processes of this machine.
        only: What is loaded, as for ``Run.resume``; None is everything.

    Raises:
        ObjectNotFoundError: there is no such file.
        DamagedError, ConfigurationError: it is no checkpoint of a trainer.
    """
    where = format_name(path, run_name=run_name, **placement().__dict__)
    if "://" not in where:
        saved = load_file(where, map_location=map_location)
    else:
        root, _, name = where.rpartition("/")
        store = open_store(root, storage_options)
        try:
            saved = _read_remote(store, name, folder, only, map_location)
        finally:
            store.close()
    if where.endswith(".safetensors"):
        saved = {"model": saved}
    if not isinstance(saved, dict) or "model" not in saved:
        raise ConfigurationError(
            f"{where} is no checkpoint of a Trainer", hint="load it yourself with torch.load, into the model", url=where
        )
    return saved if only is None else select(saved, only, strict=False)


def _read_remote(store: Store, name: str, folder: Path, only: Sequence[str] | None, map_location: Any) -> Any:
    """What is in a remote file; with ``only``, at least that much of it."""
    with folder_lock(folder.parent):
        info = store.head(name)
        version = f"{store.url}/{name} {info.size_bytes} {info.etag} {info.modified_at}"
        own = folder / _short(version)
        forget_others(folder, {own.name})

        def fetch(each: str) -> Path:
            local = own / (_short(each) + PurePosixPath(each).suffix)
            if not local.is_file():  # else another process of this machine has fetched it
                download_file(store, each, local)
            return local

        def part_of(beside: str) -> PtPart:
            return PtPart(RangeReader(store, beside or name), own / f"{_short(beside or name)}.part")

        try:
            if only is not None and name.endswith(".pt"):
                with suppress(IndivisibleError):
                    return load_parts(part_of, only, map_location=map_location, strict=False)
            return load_file(fetch(name), map_location=map_location, beside=fetch)
        finally:
            leave(own, readers=placement().local_world_size)  # it stays mapped after its name is gone


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]
