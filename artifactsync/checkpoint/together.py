"""Saving and resuming by several ranks at once: each what is its own, as one checkpoint.

What all ranks have alike (a DDP model, its optimizer, the step) is in rank 0's file, which is the one that a single
process would write. What each has for itself (random state, position in its data) is in a file of each rank. What is
spread over the ranks (FSDP2's DTensors) is in DCP's shards beside them.

Owns: who writes and who reads which file. Does not own: the shards' form (``sharding``, ``shards``), parts and commit
(``journal.together``), how ranks agree (``group``).

Invariant: the caller's thread plans and copies; everything else is behind it. All ranks resume one checkpoint.
"""

from __future__ import annotations

import hashlib
import pickle
import re
import threading
import warnings
import weakref
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.storage import WriteResult

from artifactsync.checkpoint.frozen import is_frozen_name
from artifactsync.checkpoint.load import load_file, restore
from artifactsync.checkpoint.rng import RngState, seed_all
from artifactsync.checkpoint.shard_metadata import NAME
from artifactsync.checkpoint.sharding import (
    PlannedShards,
    Planner,
    are_bytes,
    is_sharded,
    load_shards,
    portable,
    put_back,
    split_sharded,
)
from artifactsync.checkpoint.shards import ShardReader, ShardWriter, write_whole
from artifactsync.checkpoint.snapshot import SnapshotBuffers, take_snapshot
from artifactsync.checkpoint.state_io import Resumed
from artifactsync.errors import CheckpointNotFoundError, ConfigurationError, DamagedError
from artifactsync.journal.together import Contribution
from artifactsync.naming import format_name
from artifactsync.run import LocalFile

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from pathlib import Path

    from artifactsync.checkpoint.write import WrittenFile
    from artifactsync.run import Checkpoint, PendingCheckpoint, Run

DEFAULT_FILE = "checkpoints/ep{epoch}-ba{batch}-rank{rank}.pt"

_RANK_FILE = re.compile(r"(.*?)-?rank([0-9]+)\.pt")
_READ_LIMIT_S = 3600.0


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


# -- the way back -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Loaded:
    """One checkpoint, as this rank takes it."""

    run_name: str
    checkpoint: Checkpoint
    state: Any
    """The plain part: rank 0's, with what this rank has for itself."""
    sharded: frozenset[str]
    """Names of the entries that were loaded into the live objects given."""
    saved_by: int
    """How many ranks saved it."""
    left_out: frozenset[str] = frozenset()
    """Names of entries that ranks had for themselves, and that fit nobody in another number of ranks."""
    place: tuple[int, int] = (0, 1)
    """This rank, and of how many."""

    def restore(self, state: Any, *, strict: bool) -> None:
        """Put the plain part into the live objects."""
        _restore(state, self, strict=strict)

    def resumed(self, passed_over: tuple[str, ...]) -> Resumed:
        """As the caller of a resume sees it."""
        return Resumed(
            checkpoint=self.checkpoint,
            state=self.state,
            saved_by=self.saved_by,
            loaded=self.sharded,
            passed_over=passed_over,
        )


def resume_together(
    run: Run,
    state: Any = None,
    *,
    map_location: Any = "cpu",
    strict: bool = True,
    live: Mapping[str, Any] | None = None,
    per_rank: Collection[str] = (),
) -> Resumed | None:
    """Load the newest whole checkpoint; every rank calls it, and all of them take the same one.

    Args:
        run: A run that this rank opened together with the others.
        state: Objects to load in place; None only reads.
        map_location: As ``torch.load`` takes it, for the plain part.
        strict: Whether everything in ``state`` must be in the checkpoint.
        live: The objects that shards are loaded into, by name; those of ``state`` if None.
        per_rank: As for ``save_together``.

    Raises:
        DamagedError: no checkpoint is whole.
        ConfigurationError: it does not fit ``state``.
    """
    channel = None if run.launch is None else run.launch.channel
    candidates = _candidates(run)
    passed_over: list[str] = []
    damage: DamagedError | None = None
    while True:
        choice = candidates[0].seq if candidates else 0
        if channel is not None:
            choice = channel.choose("resume", choice, timeout_s=_READ_LIMIT_S)
        checkpoint = next((each for each in candidates if each.seq == choice), None)
        if checkpoint is None:
            if damage is not None:
                raise damage
            return None
        trouble = ""
        try:
            loaded = load_checkpoint(
                run, checkpoint, state if live is None else live, map_location=map_location, strict=strict,
                per_rank=per_rank,
            )  # fmt: skip
        except DamagedError as error:
            damage, trouble = error, str(error)
        said = [trouble]
        if channel is not None:
            said = channel.collect("reading the checkpoint", trouble, timeout_s=_READ_LIMIT_S)
        if not any(said):
            break
        damage = damage or DamagedError(next(filter(None, said)), hint="another rank could not read it")
        warnings.warn(
            f"checkpoint {checkpoint.name!r} of run {run.name!r} is damaged and was passed over: "
            f"{next(filter(None, said))}",
            RuntimeWarning,
            stacklevel=3,
        )
        if channel is None:
            raise damage  # the other ranks cannot know of it
        passed_over.append(checkpoint.name)
        candidates = [each for each in candidates if each.seq != choice]
    if state is not None:
        loaded.restore(state, strict=strict)
    return loaded.resumed(tuple(passed_over))


def _candidates(run: Run) -> list[Checkpoint]:
    """Newest first; without a channel only what was committed before the claim, which all ranks see alike."""
    found = run.checkpoints()
    launch, attempt = run.launch, run._attempt  # noqa: SLF001  (the claim is the ranks' common ground)
    if launch is not None and launch.channel is None and attempt is not None:
        found = [each for each in found if each.seq < attempt.claim_seq]
    return sorted(found, key=lambda c: (c.attempt, c.step, c.seq), reverse=True)


def load_checkpoint(
    run: Run,
    checkpoint: Checkpoint,
    live: Mapping[str, Any] | None = None,
    *,
    map_location: Any = "cpu",
    strict: bool = True,
    per_rank: Collection[str] = (),
) -> Loaded:
    """Load what is this rank's of a checkpoint, whoever saved it.

    Raises:
        DamagedError: bytes are not those that were committed.
        CheckpointNotFoundError: it is no checkpoint of a training state.
    """
    place = None if run.launch is None else run.launch.place
    rank, size = (0, 1) if place is None else (place.rank, place.world_size)
    ranks = {int(found[2]): f.path for f in checkpoint.files if (found := _RANK_FILE.fullmatch(f.path))}
    if 0 not in ranks:
        raise CheckpointNotFoundError(
            f"checkpoint {checkpoint.name!r} has no file of rank 0", hint="use Run.pull, and load it yourself"
        )
    wanted = [ranks[0]] + ([ranks[rank]] if rank and rank in ranks else [])
    beside = [file.path for file in checkpoint.files if is_frozen_name(file.path.rpartition("/")[2])]
    local = run.ensure_local(checkpoint, paths=wanted + beside)
    saved = load_file(local[ranks[0]], map_location=map_location)
    own = load_file(local[ranks[rank]], map_location=map_location) if rank and rank in ranks else {}
    left_out: frozenset[str] = frozenset()
    if isinstance(saved, dict):
        saved = {**saved, **own}
        if len(ranks) != size:  # what ranks had for themselves fits nobody now
            left_out = frozenset(per_rank) | {key for key, value in _entries(live) if isinstance(value, RngState)}
            saved = {key: value for key, value in saved.items() if key not in left_out}
    sharded = _load_shards(run, checkpoint, saved, live, strict=strict)
    return Loaded(run.name, checkpoint, saved, sharded, len(ranks), left_out, (rank, size))


def _load_shards(
    run: Run, checkpoint: Checkpoint, saved: Any, live: Mapping[str, Any] | None, *, strict: bool
) -> frozenset[str]:
    metadata = next((file.path for file in checkpoint.files if file.path.endswith(f"/{NAME}")), None)
    if metadata is None:
        return frozenset()
    folder = metadata.removesuffix(f"/{NAME}")
    run.ensure_local(checkpoint, paths=[metadata])
    shards = {file.path.removeprefix(f"{folder}/"): file for file in checkpoint.files if file.path.endswith(".distcp")}

    def ensure(names: set[str]) -> None:
        run.ensure_local(checkpoint, paths=[shards[name].path for name in names])

    reader = ShardReader(
        run.local_dir.joinpath(*folder.split("/")),
        ensure=ensure,
        sizes={name: file.size for name, file in shards.items()},
    )
    names = {str(path[0]) for path in (reader.read_metadata().planner_data or {}).values()}
    if live is None:
        saved.update(load_shards(reader, None))
        return frozenset()
    objects = {name: live[name] for name in names if name in live}
    if strict and (missing := names - objects.keys()):
        raise ConfigurationError(
            f"the checkpoint has shards of {min(missing)!r}, and nothing of that name to load them into",
            hint="give the same objects that were saved, or pass strict=False",
        )
    put_back(objects, load_shards(reader, portable(objects, is_for_saving=False), strict=strict))
    return frozenset(objects)


def _restore(state: Any, loaded: Loaded, *, strict: bool) -> None:
    if not isinstance(state, dict):
        restore(state, loaded.state, strict=strict)
        return
    plain = {key: value for key, value in state.items() if key not in loaded.sharded}
    if any(is_sharded(value) for value in plain.values()):
        raise ConfigurationError(
            "the checkpoint was saved whole, and this state is sharded",
            hint="load it into the model before it is sharded, or into an unsharded one",
        )
    rest = {key: value for key, value in plain.items() if key not in loaded.left_out}
    restore(rest, loaded.state, strict=strict)
    state.update(rest)
    if any(isinstance(plain.get(key), RngState) for key in loaded.left_out):
        reseed(loaded.run_name, loaded.checkpoint.step, *loaded.place)


def reseed(run_name: str, step: int, rank: int, world_size: int) -> None:
    """Random state for a rank of another number of ranks than saved: reproducible, and different on every rank."""
    seed_all(int(hashlib.sha256(f"{run_name}/{step}/{rank}/{world_size}".encode()).hexdigest()[:8], 16))
