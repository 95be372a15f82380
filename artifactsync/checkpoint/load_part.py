"""Loading only what is asked for of a checkpoint's file, and moving only its bytes.

Owns: which files a part is in, and when the whole file is taken instead. Does not own: the ranges (``pt_part``), the
choice (``selecting``).

Invariant: what comes back has the tensors that the whole file would have given.
"""

from __future__ import annotations

from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

from artifactsync.checkpoint.frozen import is_frozen_name, join
from artifactsync.checkpoint.load import load_file, names_beside
from artifactsync.checkpoint.local_run import LocalRun
from artifactsync.checkpoint.node_files import forget_others, leave
from artifactsync.checkpoint.pt_part import PtPart, storage_addresses
from artifactsync.checkpoint.selecting import select
from artifactsync.checkpoint.zip_layout import IndivisibleError
from artifactsync.errors import MissingBytesError
from artifactsync.naming.layout import HOUSE_FOLDER, safe_local_path
from artifactsync.transfer.ranges import RangeReader

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from artifactsync.run import Checkpoint, CheckpointFile, Run

_FOLDER = "parts"  # below the run's own folder, which is never mirrored


def load_only(
    run: Run | LocalRun,
    checkpoint: Checkpoint,
    path: str,
    patterns: Sequence[str],
    *,
    map_location: Any = "cpu",
    strict: bool = True,
    readers: int = 1,
) -> dict[Any, Any]:
    """What the patterns take of one file of a checkpoint.

    A file that is on this disk is used as it is, verified by its sha256. Of one that is not, only the ranges come that
    hold what is taken; each storage is verified by the CRC-32 that ``torch.save`` wrote for it. The processes of one
    machine go one after the other, and each range comes once. A file that is not divisible (not written by
    ``torch.save``, or without checksums) comes whole.

    Args:
        run: The run.
        checkpoint: One of its checkpoints.
        path: One of its files.
        patterns: As for ``selecting.select``.
        map_location: As ``torch.load`` takes it.
        strict: Whether each pattern must match something.
        readers: Processes of this machine that load this file.

    Raises:
        DamagedError: bytes are not those that were committed.
        ConfigurationError: a pattern matches nothing.
    """
    if isinstance(run, LocalRun):
        return select(load_file(run.ensure_local(checkpoint)[path], map_location=map_location), patterns, strict=strict)
    beside = [file.path for file in checkpoint.files if is_frozen_name(file.path.rpartition("/")[2])]
    files = {file.path: file for file in checkpoint.files if file.path in {path, *beside}}
    if path.endswith(".pt") and not all(_is_here(run, file) for file in files.values()):
        folder = run.local_dir / HOUSE_FOLDER / _FOLDER / files[path].sha256
        with suppress(IndivisibleError), run.reading(checkpoint) as store:
            forget_others(folder.parent, {file.sha256 for file in checkpoint.files})

            def part_of(name: str) -> PtPart:
                wanted = path.rpartition("/")[0] + f"/{name}" if name else path
                file = files.get(wanted.lstrip("/"))
                if file is None:
                    raise MissingBytesError(f"{wanted} is not in the checkpoint", hint="use an older checkpoint")
                return PtPart(RangeReader(store, file.key, size_bytes=file.size), folder / f"{file.sha256}.pt")

            try:
                return load_parts(part_of, patterns, map_location=map_location, strict=strict)
            finally:
                leave(folder, readers=readers)  # what was loaded stays mapped
    saved = load_file(run.ensure_local(checkpoint, paths=files)[path], map_location=map_location)
    return select(saved, patterns, strict=strict)


def load_parts(
    part_of: Callable[[str], PtPart], patterns: Sequence[str], *, map_location: Any = "cpu", strict: bool = True
) -> dict[Any, Any]:
    """What the patterns take of a file, and of those beside it that hold its unchanged weights.

    Args:
        part_of: Gives the file (for an empty name), and those beside it by name.
        patterns: As for ``selecting.select``.
        map_location: As ``torch.load`` takes it.
        strict: Whether each pattern must match something.

    Raises:
        IndivisibleError: the files must be taken as a whole.
        DamagedError: they are not as they were written.
        ConfigurationError: a pattern matches nothing.
    """
    with ExitStack() as stack:

        def open_part(name: str) -> PtPart:
            part = part_of(name)
            stack.callback(part.close)
            return part

        main = open_part("")
        outline = main.outline()
        beside = [open_part(name) for name in names_beside(outline, main.url)]
        if beside:
            outline = join(outline, [part.outline() for part in beside])
        chosen = select(outline, patterns, strict=strict)
        brought = sum(part.bring(chosen) for part in (main, *beside))
        if brought != len(set(storage_addresses(chosen))):
            raise IndivisibleError("some of its tensors are in none of its entries")
        state = main.load(map_location)
        if beside:
            state = join(state, [part.load(map_location) for part in beside])
        return select(state, patterns, strict=strict)


def _is_here(run: Run, file: CheckpointFile) -> bool:
    """Whether a file of the run is on this disk, as far as its length tells."""
    with suppress(OSError):
        return safe_local_path(run.local_dir, file.path).stat().st_size == file.size
    return False
