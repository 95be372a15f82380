"""Saving by several ranks at once: each what is its own, as one checkpoint.

What all ranks have alike (a DDP model, its optimizer, the step) is in rank 0's file, which is the one that a single
process would write. What each has for itself (random state, position in its data) is in a file of each rank. What is
spread over the ranks (FSDP2's DTensors) is in DCP's shards beside them.

Owns: who writes which file. Does not own: the shards' form (``sharding``, ``shards``), parts and commit
(``journal.together``), or the way back (``resume_together``).

Invariant: the caller's thread plans and copies; everything else is behind it.
"""

from __future__ import annotations

import pickle
import threading
import weakref
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.storage import WriteResult

from artifactsync.checkpoint.rng import RngState
from artifactsync.checkpoint.shard_metadata import NAME
from artifactsync.checkpoint.sharding import (
    PlannedShards,
    Planner,
    are_bytes,
    portable,
    split_sharded,
)
from artifactsync.checkpoint.shards import ShardWriter, write_whole
from artifactsync.checkpoint.snapshot import SnapshotBuffers, take_snapshot
from artifactsync.errors import ConfigurationError, DamagedError
from artifactsync.journal.together import Contribution
from artifactsync.naming import format_name
from artifactsync.run import LocalFile

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from pathlib import Path

    from artifactsync.checkpoint.write import WrittenFile
    from artifactsync.run import PendingCheckpoint, Run

DEFAULT_FILE = "checkpoints/ep{epoch}-ba{batch}-rank{rank}.pt"


def save_together(
    run: Run,
    state: Any,
    *,
    step: int,
    name: str | None = None,
    epoch: int | None = None,
    batch: int | None = None,
    metrics: Mapping[str, float] | None = None,
    path: str | None = None,
    barrier: Callable[[], None] | None = None,
    per_rank: Collection[str] = (),
) -> PendingCheckpoint:
    """Save what the ranks have as one checkpoint; every rank calls it, with a state of the same form.

    Args:
        run: A run that this rank opened together with the others.
        state: As for ``save_state``; a dict, if anything of it is sharded or per rank.
        step: As there; likewise the rest.
        name: ″
        epoch: ″
        batch: ″
        metrics: ″
        path: The file of this rank, below the run's folder; shards go to the folder of that name without ``-rank…``.
        barrier: ″
        per_rank: Names of the entries of ``state`` that each rank has for itself. A ``RngState`` is one unasked.

    Raises:
        ConfigurationError: the state cannot be saved.
        NotDurableError: the ranks could not plan their shards together.
        RunFencedError: a later attempt owns the run.
    """
    assert run.launch is not None
    rank = run.launch.place.rank
    epoch, batch = epoch or 0, step if batch is None else batch
    if path is None:
        path = format_name(DEFAULT_FILE, run_name=run.name, epoch=epoch, batch=batch, rank=rank)
    spread, rest = split_sharded(state)
    own = set(per_rank) | {key for key, value in _entries(rest) if isinstance(value, RngState)}
    if rank > 0:
        rest = {key: value for key, value in _entries(rest) if key in own}
    saver = _saver_of(run)
    work = saver.copy(rest, spread, _folder_of(run, path, rank))

    def prepare() -> Sequence[LocalFile]:
        files = [_described(path, work.file.result())]
        folder = path_of_shards(path, rank)
        files += [_described(f"{folder}/{file.path.name}", file) for file in work.shards.result()]
        if barrier is not None:
            barrier()
        return files

    def complete(details: Mapping[int, Any]) -> Sequence[LocalFile]:
        if work.metadata is None:
            return []
        writer = ShardWriter(work.folder)
        results = [work.results, *(_results_of(rank, details[rank]) for rank in sorted(details))]
        writer.finish(pickle.loads(work.metadata), results)  # noqa: S301  (made by this process, a moment ago)
        return [_described(f"{path_of_shards(path, rank)}/{NAME}", file) for file in writer.written]

    def detail() -> Any:
        return [
            [
                each.index.fqn,
                None if each.index.offset is None else list(each.index.offset),
                each.storage_data.relative_path,
                each.storage_data.offset,
                each.storage_data.length,
            ]
            for each in work.results
        ]

    try:
        pending = run.save_prepared(
            prepare,
            step=step,
            name=name,
            epoch=epoch,
            batch=batch,
            metrics=metrics,
            contribution=Contribution(detail=detail, complete=complete),
        )
    finally:
        saver.write(work, run.local_dir.joinpath(*path.split("/")))
    return pending


@dataclass
class _Work:
    """One save, from the copy to the files."""

    content: Any
    planned: PlannedShards | None
    metadata: bytes | None
    folder: Path
    file: Future[WrittenFile]
    shards: Future[list[WrittenFile]]
    results: list[WriteResult]


class _Saver:
    """The buffers of one run, and the snapshot in flight."""

    def __init__(self) -> None:
        self._buffers, self._shard_buffers = SnapshotBuffers(), SnapshotBuffers()
        self._planner = Planner()
        self._last: _Work | None = None

    def copy(self, rest: Any, spread: dict[str, Any], folder: Path) -> _Work:
        if self._last is not None:
            self.wait()  # what failed of it is told by its own pending checkpoint
        planned = metadata = None
        snapshots = []
        if spread:
            state = portable(spread, is_for_saving=True)
            plan, metadata, data = self._planner.plan(state, ShardWriter(folder))
            blobs = {place: value for place, value in data.items() if are_bytes(plan, place)}
            _check_loadable(plan, blobs)
            tensors = {place: value.detach() for place, value in data.items() if place not in blobs}
            copied = take_snapshot(tensors, self._shard_buffers)
            planned = PlannedShards(plan, copied.state, blobs)
            snapshots.append(copied)
        content = take_snapshot(rest, self._buffers)
        snapshots.append(content)
        self._last = work = _Work(content.state, planned, metadata or None, folder, Future(), Future(), [])
        self._snapshots = snapshots
        return work

    def write(self, work: _Work, local: Path) -> None:
        """Write the files on a thread of its own; not a daemon: an interpreter that ends waits until they are whole."""
        snapshots = self._snapshots

        def run() -> None:
            try:
                for snapshot in snapshots:
                    snapshot.wait()
                file = write_whole(local, lambda file: torch.save(work.content, file))
                shards: list[WrittenFile] = []
                if work.planned is not None:
                    writer = ShardWriter(work.folder)
                    writer.set_up_storage_writer(False)
                    written = writer.write_data(work.planned.plan, work.planned)  # type: ignore[arg-type]  # resolve_data is all it asks for
                    work.results += written.value()
                    shards = writer.written
            except BaseException as error:  # noqa: BLE001  (the pending checkpoint carries it)
                for future in (work.file, work.shards):
                    if not future.done():
                        future.set_exception(error)
            else:
                work.file.set_result(file)
                work.shards.set_result(shards)

        thread = threading.Thread(target=run, name="artifactsync-write")
        try:
            thread.start()
        except RuntimeError:  # the interpreter is ending, or the system has no thread left
            run()

    def wait(self) -> None:
        if self._last is not None:
            wait([self._last.file])
            wait([self._last.shards])


_savers: weakref.WeakKeyDictionary[Run, _Saver] = weakref.WeakKeyDictionary()


def _saver_of(run: Run) -> _Saver:
    return _savers.setdefault(run, _Saver())


def wait_written_together(run: Run) -> None:
    """Wait until what this rank saved so far is on its disk, or failed to be."""
    _saver_of(run).wait()


def path_of_shards(path: str, rank: int) -> str:
    """The folder of the shards that belong to a rank's file: ``…/ep1-ba2-rank0.pt`` → ``…/ep1-ba2``."""
    stem = path.removesuffix(".pt")
    return stem.removesuffix(f"rank{rank}").rstrip("-_.") or stem


def _folder_of(run: Run, path: str, rank: int) -> Path:
    return run.local_dir.joinpath(*path_of_shards(path, rank).split("/"))


def _described(path: str, file: WrittenFile) -> LocalFile:
    return LocalFile(path=path, local=file.path, size_bytes=file.size_bytes, sha256=file.sha256)


def _entries(state: Any) -> list[tuple[Any, Any]]:
    return list(state.items()) if isinstance(state, dict) else []


def _check_loadable(plan: Any, blobs: Mapping[str, Any]) -> None:
    for place, blob in blobs.items():
        try:
            blob.seek(0)
            torch.load(blob, weights_only=True)
        except (pickle.UnpicklingError, RuntimeError) as error:  # noqa: PERF203  (each may be the one)
            raise ConfigurationError(
                f"{plan.items[int(place)].index.fqn} cannot be saved: torch.load(weights_only=True) would refuse it",
                hint="save its numbers, strings and tensors",
            ) from error


def _results_of(rank: int, detail: Any) -> list[WriteResult]:
    """What another rank says of its shards, read with care: it came over the remote."""
    results = []
    try:
        for name, offset, file, start, length in detail:
            place = _StorageInfo(str(file), int(start), int(length))
            index = MetadataIndex(str(name), None if offset is None else torch.Size(int(n) for n in offset))
            results.append(WriteResult(index=index, size_in_bytes=int(length), storage_data=place))
    except (TypeError, ValueError) as error:
        raise DamagedError(f"rank {rank} does not say where its shards lie ({error})") from error
    return results
