"""``Run.save`` and ``Run.resume``: training state to a committed checkpoint, and back.

Owns: when a snapshot is taken, who writes it, and which checkpoint a resume takes. Does not own: uploading and the
commit (``run``), the copy (``snapshot``), the file (``write``).

Invariant: the caller's thread only copies. A snapshot is written on a thread of its own, apart from publication, so
an outage of the remote delays commits and never the next save; its memory is used again once its file is on disk.
"""

from __future__ import annotations

import threading
import warnings
import weakref
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from artifactsync.batch import rank, world_size
from artifactsync.checkpoint.load import load_file, restore
from artifactsync.checkpoint.snapshot import Snapshot, SnapshotBuffers, take_snapshot
from artifactsync.checkpoint.write import WrittenFile, point_latest, write_snapshot
from artifactsync.errors import CheckpointNotFoundError, DamagedError
from artifactsync.naming import format_name
from artifactsync.run import LocalFile

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from artifactsync.checkpoint.local_run import LocalRun
    from artifactsync.run import Checkpoint, PendingCheckpoint, Run

DEFAULT_FILE = "checkpoints/ep{epoch}-ba{batch}-rank{rank}.pt"
"""Template of a checkpoint's file below the run's folder."""
LATEST_FILE = "latest-rank{rank}.pt"
"""Template of the advisory symlink beside the newest checkpoint file."""


@dataclass(frozen=True, kw_only=True)
class Resumed:
    """What a resume found."""

    checkpoint: Checkpoint
    """The checkpoint."""
    state: Any
    """What was saved in it, as plain containers and tensors. The objects given to ``resume`` are loaded already."""
    publishing: PendingCheckpoint | None = None
    """Set if it came from this disk, newer than every commit: it is being published now, and ``checkpoint`` has no
    ``committed_at`` yet."""
    passed_over: tuple[str, ...] = ()
    """Names of newer checkpoints that were not taken, newest first: damaged, or without a state. Each was warned of."""

    @property
    def step(self) -> int:
        """Optimizer steps done when it was saved."""
        return self.checkpoint.step


def save_state(
    run: Run | LocalRun,
    state: Any,
    *,
    step: int,
    name: str | None = None,
    epoch: int | None = None,
    batch: int | None = None,
    metrics: Mapping[str, float] | None = None,
    path: str | None = None,
    barrier: Callable[[], None] | None = None,
) -> PendingCheckpoint:
    """Save training state as a checkpoint of ``run``; returns when it is copied.

    One snapshot is in flight: while the file of the last one is still being written, this call waits for that.

    Args:
        run: An open, writable run.
        state: Nested dicts, lists and tuples of tensors, numbers, strings, or objects with ``state_dict()``.
        step: Optimizer steps done.
        name: Name of the checkpoint; ``ep{epoch}-ba{batch}`` if None.
        epoch: Epochs done; 0 if None.
        batch: Batches done; ``step`` if None.
        metrics: Numbers by which ``Run.best`` can choose.
        path: The file, below the run's folder; :data:`DEFAULT_FILE` if None.
        barrier: Called on the publication thread before the commit; what it waits for is durable earlier.

    Raises:
        ConfigurationError: the state holds something that cannot be loaded again with ``weights_only=True``.
        RunFencedError: a later attempt owns the run.
    """
    epoch = 0 if epoch is None else epoch
    batch = step if batch is None else batch
    if path is None:
        path = format_name(DEFAULT_FILE, run_name=run.name, epoch=epoch, batch=batch, rank=rank())
    local = run.local_dir.joinpath(*path.split("/"))
    link = local.with_name(format_name(LATEST_FILE, run_name=run.name, rank=rank()))
    saver = _saver_of(run)

    def record(file: WrittenFile) -> None:
        run.record_local(
            [LocalFile(path=path, local=file.path, size_bytes=file.size_bytes, sha256=file.sha256)],
            step=step,
            name=name or f"ep{epoch}-ba{batch}",
            epoch=epoch,
            batch=batch,
            metrics=metrics or {},
        )

    def submit(written: Future[WrittenFile]) -> PendingCheckpoint:
        def prepare() -> Sequence[LocalFile]:
            file = written.result()
            if barrier is not None:
                barrier()
            return [LocalFile(path=path, local=file.path, size_bytes=file.size_bytes, sha256=file.sha256)]

        return run.save_prepared(prepare, step=step, name=name, epoch=epoch, batch=batch, metrics=metrics)

    return saver.save(state, local, link, submit, record)


def resume_state(
    run: Run | LocalRun, state: Any = None, *, map_location: Any = "cpu", strict: bool = True
) -> Resumed | None:
    """Load the newest checkpoint of ``run``: the newest commit, or what an attempt left on this disk after it.

    A checkpoint whose bytes are damaged is passed over with a warning, and the one before it is taken; likewise one
    of ``save_files`` without any ``.pt`` file, as it can hold no state. One with ``.pt`` files of which none is this
    rank's is an error: it may be the newest state, in a form that only its author can load. One that is on this disk
    alone is taken only if it continues what is committed (``journal.local_checkpoints``), and is published.

    Args:
        run: The run.
        state: Objects to load in place, in the form that was saved; None only reads.
        map_location: As ``torch.load`` takes it.
        strict: Whether everything in ``state`` must be in the checkpoint.

    Returns:
        What was resumed; None if the run has no checkpoint yet.

    Raises:
        DamagedError: no checkpoint of the run is whole.
        CheckpointNotFoundError: the run's checkpoints hold no state, or the newest one none of this rank.
        ConfigurationError: the checkpoint does not fit ``state``.
    """
    if (resumed := _resume_local(run, state, map_location=map_location, strict=strict)) is not None:
        return resumed
    candidates = sorted(run.checkpoints(), key=_order, reverse=True)
    damage: DamagedError | None = None
    stateless = [checkpoint for checkpoint in candidates if not _may_hold_state(checkpoint)]
    passed_over: list[str] = []
    for checkpoint in candidates:
        if checkpoint in stateless:
            passed_over.append(checkpoint.name)
            continue
        try:
            saved = load_file(_state_file(run.ensure_local(checkpoint), checkpoint), map_location=map_location)
        except DamagedError as error:
            damage = error
            warnings.warn(
                f"checkpoint {checkpoint.name!r} of run {run.name!r} is damaged and was passed over: {error}",
                RuntimeWarning,
                stacklevel=2,
            )
            passed_over.append(checkpoint.name)
            continue
        newer = [c for c in stateless if _order(c) > _order(checkpoint)]
        if newer:
            warnings.warn(
                f"checkpoint {newer[0].name!r} (step {newer[0].step}) of run {run.name!r} was saved with save_files and "
                f"holds no state that a resume can load: going on from {checkpoint.name!r} (step {checkpoint.step}). "
                "If the newest state is in those files, stop, and load them yourself with Run.pull",
                RuntimeWarning,
                stacklevel=3,
            )
        if state is not None:
            restore(state, saved, strict=strict)
        return Resumed(checkpoint=checkpoint, state=saved, passed_over=tuple(passed_over))
    if damage is not None:
        raise DamagedError(
            f"none of the {len(candidates) - len(stateless)} checkpoints of run {run.name!r} is whole; the oldest one: "
            f"{damage}",
            hint="run `artifactsync verify --deep`, and restore the files or start a new run",
            url=damage.url,
        ) from damage
    if stateless:
        raise CheckpointNotFoundError(
            f"no checkpoint of run {run.name!r} holds a state; the newest, {stateless[0].name!r}, was saved with "
            f"save_files and has no .pt file among its {len(stateless[0].files)} files",
            hint="use Run.pull (or `artifactsync pull`) and load them yourself",
        )
    return None


def _order(checkpoint: Checkpoint) -> tuple[int, int, int]:
    return checkpoint.attempt, checkpoint.step, checkpoint.seq


def _may_hold_state(checkpoint: Checkpoint) -> bool:
    return any(file.path.endswith(".pt") for file in checkpoint.files)


def _resume_local(run: Run | LocalRun, state: Any, *, map_location: Any, strict: bool) -> Resumed | None:
    """Resume from a checkpoint on this disk that is newer than every commit; None if there is none."""
    if world_size() > 1:  # each rank would choose by itself
        return None
    for local in run.local_checkpoints():
        checkpoint = local.checkpoint
        try:
            files = local.verified_files(run.local_dir)
            saved = load_file(_state_file(files, checkpoint), map_location=map_location)
        except DamagedError as error:
            warnings.warn(
                f"local checkpoint {checkpoint.name!r} of run {run.name!r} is damaged and was passed over: {error}",
                RuntimeWarning,
                stacklevel=3,
            )
            continue
        if state is not None:
            restore(state, saved, strict=strict)
        described = [
            LocalFile(path=f.path, local=files[f.path], size_bytes=f.size, sha256=f.sha256) for f in checkpoint.files
        ]
        pending = run.save_prepared(
            lambda described=described: described,  # type: ignore[misc]  # bound now, called later
            step=checkpoint.step,
            name=checkpoint.name,
            epoch=checkpoint.epoch,
            batch=checkpoint.batch,
            metrics=checkpoint.metrics,
        )
        return Resumed(checkpoint=checkpoint, state=saved, publishing=pending)
    return None


class _StateSaver:
    """The buffers of one run, and the snapshot in flight."""

    def __init__(self) -> None:
        self._buffers = SnapshotBuffers()
        self._lock = threading.Lock()
        self._writing: Future[WrittenFile] | None = None

    def save(
        self,
        state: Any,
        local: Path,
        link: Path,
        submit: Callable[[Future[WrittenFile]], PendingCheckpoint],
        record: Callable[[WrittenFile], None],
    ) -> PendingCheckpoint:
        with self._lock:
            if self._writing is not None:
                wait([self._writing])  # its error, if any, is in its own pending checkpoint
            self._writing = None
            snapshot = take_snapshot(state, self._buffers)
            written: Future[WrittenFile] = Future()
            try:
                pending = submit(written)
            except BaseException as error:
                written.set_exception(error)  # should publication have taken it already, it must not wait for a file
                raise
            self._writing = written
        # Not a daemon: an interpreter that ends waits until the file is whole.
        arguments = (snapshot, local, link, written, record)
        thread = threading.Thread(target=_write, args=arguments, name="artifactsync-write")
        try:
            thread.start()
        except RuntimeError:  # the interpreter is ending, or the system has no thread left
            _write(*arguments)
        return pending

    def wait(self) -> None:
        writing = self._writing
        if writing is not None:
            wait([writing])


def _write(
    snapshot: Snapshot,
    local: Path,
    link: Path,
    written: Future[WrittenFile],
    record: Callable[[WrittenFile], None],
) -> None:
    try:
        file = write_snapshot(snapshot, local)
        record(file)
        point_latest(link, local)
    except BaseException as error:  # noqa: BLE001  (the pending checkpoint carries it)
        written.set_exception(error)
    else:
        written.set_result(file)


_savers: weakref.WeakKeyDictionary[Run | LocalRun, _StateSaver] = weakref.WeakKeyDictionary()
_savers_lock = threading.Lock()


def _saver_of(run: Run | LocalRun) -> _StateSaver:
    with _savers_lock:
        saver = _savers.get(run)
        if saver is None:
            saver = _savers[run] = _StateSaver()
        return saver


def wait_written(run: Run | LocalRun) -> None:
    """Wait until every state saved so far has its local file, or failed to."""
    _saver_of(run).wait()


def _state_file(files: Mapping[str, Path], checkpoint: Checkpoint) -> Path:
    """The file of this rank's state among the files of a checkpoint."""
    states = {path: local for path, local in files.items() if path.endswith(".pt")}
    if len(states) == 1:
        return next(iter(states.values()))
    own = [local for path, local in states.items() if path.endswith(f"rank{rank()}.pt")]
    if len(own) == 1:
        return own[0]
    raise CheckpointNotFoundError(
        f"checkpoint {checkpoint.name!r} (step {checkpoint.step}) has no state of rank {rank()} among its "
        f"{len(files)} files",
        hint="it was saved with save_files or by another number of processes: use Run.pull and load it yourself",
    )
