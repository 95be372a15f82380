"""``Run.save`` and ``Run.resume``: training state to a committed checkpoint, and back.

Owns: when a snapshot is taken, who writes it, and which checkpoint a resume takes. Does not own: uploading and the
commit (``run``), the copy (``snapshot``), the file (``write``).

Invariant: the caller's thread only copies. A snapshot is written on a thread of its own, apart from publication, so
an outage of the remote delays commits and never the next save; its memory is used again once its file is on disk.
"""

from __future__ import annotations

import re
import threading
import warnings
import weakref
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from artifactsync.batch import rank, world_size
from artifactsync.checkpoint.frozen import is_frozen_name
from artifactsync.checkpoint.load import load_file, restore
from artifactsync.checkpoint.saving import Flight, SkippedError, StateSaver
from artifactsync.errors import CheckpointNotFoundError, DamagedError
from artifactsync.journal.pending import Label
from artifactsync.naming import format_name
from artifactsync.run import LocalFile, PendingCheckpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
    from pathlib import Path

    from torch.optim import Optimizer

    from artifactsync.checkpoint.local_run import LocalRun
    from artifactsync.checkpoint.saving import BackPressure
    from artifactsync.run import Checkpoint, Run

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
    saved_by: int = 1
    """How many ranks saved it."""
    loaded: frozenset[str] = frozenset()
    """Names of sharded entries, which are not in ``state``: the objects given have them already."""
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
    backpressure: BackPressure | None = None,
    overlap: Optimizer | Sequence[Optimizer] = (),
    per_rank: Collection[str] = (),
) -> PendingCheckpoint:
    """Save training state as a checkpoint of ``run``; returns when it is copied.

    One snapshot is in flight; what happens if it still is, ``backpressure`` says.

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
        backpressure: ``wait``, ``skip`` or ``newest`` (``saving.BackPressure``); the run's if None. Where
            several ranks save together, they wait: a rank that skips by itself would be missed by the others.
        overlap: Optimizers. Their parameters and their state are copied during the next forward and backward, and
            their ``step`` waits for what is left; everything else is copied before this returns. Where several ranks
            save together, everything is.
        per_rank: Where several ranks save together, names of the entries of ``state`` that each has for itself.

    Raises:
        ConfigurationError: the state holds something that cannot be loaded again with ``weights_only=True``.
        RunFencedError: a later attempt owns the run.
    """
    if getattr(run, "launch", None) is not None:
        from artifactsync.checkpoint.together import save_together  # noqa: PLC0415  (torch.distributed takes long)

        return save_together(
            cast("Run", run), state, step=step, name=name, epoch=epoch, batch=batch, metrics=metrics, path=path,
            barrier=barrier, per_rank=per_rank,
        )  # fmt: skip
    epoch = 0 if epoch is None else epoch
    batch = step if batch is None else batch
    if path is None:
        path = format_name(DEFAULT_FILE, run_name=run.name, epoch=epoch, batch=batch, rank=rank())
    local = run.local_dir.joinpath(*path.split("/"))
    link = local.with_name(format_name(LATEST_FILE, run_name=run.name, rank=rank()))
    label = name or f"ep{epoch}-ba{batch}"

    def record(files: Sequence[LocalFile]) -> None:
        run.record_local(files, step=step, name=label, epoch=epoch, batch=batch, metrics=metrics or {})

    def submit(flight: Flight) -> PendingCheckpoint:
        def prepare() -> Sequence[LocalFile]:
            files = flight.files.result()
            if barrier is not None:
                barrier()
            return files

        return run.save_prepared(prepare, step=step, name=name, epoch=epoch, batch=batch, metrics=metrics)

    splits = getattr(run, "split_frozen", True)
    flight = Flight(local=local, path=path, name=label, record=record, splits=splits)
    policy: Any = backpressure or getattr(run, "backpressure", "wait")
    optimizers = tuple(overlap) if isinstance(overlap, (list, tuple)) else (overlap,)
    pending = _saver_of(run).save(state, flight, link, submit, policy=policy, overlap=optimizers)
    if pending is not None:
        return pending
    reason: Future[Checkpoint] = Future()
    reason.set_exception(
        SkippedError(
            f"checkpoint {label!r} was skipped: the one before it was still being written",
            hint='save less often, or with backpressure="wait" or "newest"',
        )
    )
    return PendingCheckpoint(
        Label(name=label, step=step, epoch=epoch, batch=batch, metrics=dict(metrics or {})), reason
    )


def resume_state(
    run: Run | LocalRun,
    state: Any = None,
    *,
    map_location: Any = "cpu",
    strict: bool = True,
    live: Mapping[str, Any] | None = None,
    per_rank: Collection[str] = (),
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
        live: Where the shards of a sharded checkpoint go, by name; the objects of ``state`` if None.
        per_rank: As for ``save_state``; left out where another number of ranks saved.

    Returns:
        What was resumed; None if the run has no checkpoint yet.

    Raises:
        DamagedError: no checkpoint of the run is whole.
        CheckpointNotFoundError: the run's checkpoints hold no state, or the newest one none of this rank.
        ConfigurationError: the checkpoint does not fit ``state``.
    """
    if getattr(run, "launch", None) is not None:
        from artifactsync.checkpoint.resume_together import resume_together  # noqa: PLC0415  (as above)

        return resume_together(
            cast("Run", run), state, map_location=map_location, strict=strict, live=live, per_rank=per_rank
        )
    wait_copied(run)
    if (resumed := _resume_local(run, state, map_location=map_location, strict=strict)) is not None:
        return resumed
    damage: DamagedError | None = None
    stateless: list[Checkpoint] = []
    passed_over: list[str] = []
    for checkpoint in _newest_first(run):
        if not _may_hold_state(checkpoint):
            stateless.append(checkpoint)
            passed_over.append(checkpoint.name)
            continue
        try:
            resumed, put_back = _read(
                run, checkpoint, state if live is None else live, map_location=map_location, strict=strict,
                per_rank=per_rank,
            )  # fmt: skip
        except DamagedError as error:
            damage = error
            warnings.warn(
                f"checkpoint {checkpoint.name!r} of run {run.name!r} is damaged and was passed over: {error}",
                RuntimeWarning,
                stacklevel=2,
            )
            passed_over.append(checkpoint.name)
            continue
        if stateless:
            warnings.warn(
                f"checkpoint {stateless[0].name!r} (step {stateless[0].step}) of run {run.name!r} was saved with "
                f"save_files and holds no state that a resume can load: going on from {checkpoint.name!r} (step "
                f"{checkpoint.step}). "
                "If the newest state is in those files, stop, and load them yourself with Run.pull",
                RuntimeWarning,
                stacklevel=3,
            )
        if state is not None:
            put_back(state)
        return replace(resumed, passed_over=tuple(passed_over))
    if damage is not None:
        raise DamagedError(
            f"none of the {len(passed_over) - len(stateless)} checkpoints of run {run.name!r} is whole; "
            f"the oldest one: {damage}",
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


def _read(
    run: Run | LocalRun,
    checkpoint: Checkpoint,
    live: Any,
    *,
    map_location: Any,
    strict: bool,
    per_rank: Collection[str],
) -> tuple[Resumed, Callable[[Any], object]]:
    """Read a checkpoint; also what puts it into live objects, but for shards, which are in ``live`` already."""
    if _is_of_many(checkpoint):
        from artifactsync.checkpoint.resume_together import load_checkpoint  # noqa: PLC0415  (torch.distributed takes long)

        loaded = load_checkpoint(
            cast("Run", run), checkpoint, live, map_location=map_location, strict=strict, per_rank=per_rank
        )
        return loaded.resumed(()), partial(loaded.restore, strict=strict)
    saved = load_file(_state_file(run.ensure_local(checkpoint), checkpoint), map_location=map_location)
    return Resumed(checkpoint=checkpoint, state=saved), lambda state: restore(state, saved, strict=strict)


def _is_of_many(checkpoint: Checkpoint) -> bool:
    """Whether several ranks saved it, or one that was sharded."""
    names = [file.path for file in checkpoint.files]
    return any(name.endswith("/.metadata") or re.search(r"rank[1-9][0-9]*\.pt$", name) for name in names)


def _newest_first(run: Run | LocalRun) -> Iterator[Checkpoint]:
    """The checkpoints in the order in which a resume tries them; the others are looked for if the newest is refused."""
    newest = run.latest()
    if newest is not None:
        yield newest
        yield from (c for c in sorted(run.checkpoints(), key=_order, reverse=True) if c.seq != newest.seq)


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


_savers: weakref.WeakKeyDictionary[Run | LocalRun, StateSaver] = weakref.WeakKeyDictionary()
_savers_lock = threading.Lock()


def _saver_of(run: Run | LocalRun) -> StateSaver:
    with _savers_lock:
        saver = _savers.get(run)
        if saver is None:
            saver = _savers[run] = StateSaver()
        return saver


def prepare_state(run: Run | LocalRun, state: Any) -> None:
    """Have the memory for snapshots of ``state``, or of a part of it, before the first save needs it.

    Raises:
        ConfigurationError: the state holds something that cannot be loaded again with ``weights_only=True``.
    """
    _saver_of(run).prepare(state)


def wait_copied(run: Run | LocalRun) -> None:
    """Hold the caller until the last state saved is copied; then it may change anything, however it was saved."""
    _saver_of(run).settle()


def wait_written(run: Run | LocalRun) -> None:
    """Wait until every state saved so far has its local file, or failed to."""
    _saver_of(run).wait()


def _state_file(files: Mapping[str, Path], checkpoint: Checkpoint) -> Path:
    """The file of this rank's state among the files of a checkpoint."""
    names = [path for path in files if path.endswith(".pt") and not is_frozen_name(path.rpartition("/")[2])]
    states = {path: files[path] for path in names}
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
