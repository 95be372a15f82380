"""Which checkpoint a resume takes, and its way into live objects.

Owns: the order in which checkpoints are tried, and what is passed over. Does not own: reading a file (``load``,
``load_part``), or several ranks (``resume_together``).

Invariant: a checkpoint that is not whole is never loaded, and what is passed over is told.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from artifactsync.batch import rank, world_size
from artifactsync.checkpoint.frozen import is_frozen_name
from artifactsync.checkpoint.load import load_file, restore
from artifactsync.checkpoint.load_part import load_only
from artifactsync.checkpoint.savers import wait_copied
from artifactsync.checkpoint.selecting import patterns_of, select
from artifactsync.errors import CheckpointNotFoundError, DamagedError, MissingBytesError
from artifactsync.run import LocalFile, PendingCheckpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from artifactsync.checkpoint.local_run import LocalRun
    from artifactsync.run import Checkpoint, Run

_SAFETENSORS = re.compile(r"rank[0-9]+\.safetensors$")
"""What ``save`` calls such a file; others, as exports among the files of ``save_files``, are no states."""


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


def resume_state(
    run: Run | LocalRun,
    state: Any = None,
    *,
    map_location: Any = "cpu",
    strict: bool = True,
    live: Mapping[str, Any] | None = None,
    per_rank: Collection[str] = (),
    only: str | Sequence[str] | None = None,
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
        only: What of the checkpoint is loaded, as for ``selecting.select``; only its bytes are fetched (``load_part``).

    Returns:
        What was resumed; None if the run has no checkpoint yet.

    Raises:
        DamagedError: no checkpoint of the run is whole.
        CheckpointNotFoundError: the run's checkpoints hold no state, or the newest one none of this rank.
        ConfigurationError: the checkpoint does not fit ``state``, or holds nothing of ``only``.
    """
    patterns = patterns_of(only)
    if getattr(run, "launch", None) is not None:
        from artifactsync.checkpoint.resume_together import resume_together  # noqa: PLC0415  (as above)

        return resume_together(
            cast("Run", run), state, map_location=map_location, strict=strict, live=live, per_rank=per_rank,
            patterns=patterns,
        )  # fmt: skip
    wait_copied(run)
    resumed = _resume_local(run, state, map_location=map_location, strict=strict, patterns=patterns)
    if resumed is not None:
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
                per_rank=per_rank, patterns=patterns,
            )  # fmt: skip
        except DamagedError as error:
            damage = _passed_over(run, checkpoint, error, passed_over) or damage
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


def _passed_over(
    run: Run | LocalRun, checkpoint: Checkpoint, error: DamagedError, names: list[str]
) -> DamagedError | None:
    """Tell that a checkpoint is damaged; not if a prune gave it up while it was read, as then there is a newer one."""
    if isinstance(error, MissingBytesError) and all(live.seq != checkpoint.seq for live in run.checkpoints()):
        return None
    warnings.warn(
        f"checkpoint {checkpoint.name!r} of run {run.name!r} is damaged and was passed over: {error}",
        RuntimeWarning,
        stacklevel=3,
    )
    names.append(checkpoint.name)
    return error


def _read(
    run: Run | LocalRun,
    checkpoint: Checkpoint,
    live: Any,
    *,
    map_location: Any,
    strict: bool,
    per_rank: Collection[str],
    patterns: Sequence[str] | None,
) -> tuple[Resumed, Callable[[Any], object]]:
    """Read a checkpoint; also what puts it into live objects, but for shards, which are in ``live`` already."""
    if _is_of_many(checkpoint):
        from artifactsync.checkpoint.resume_together import load_checkpoint  # noqa: PLC0415  (torch.distributed takes long)

        loaded = load_checkpoint(
            cast("Run", run), checkpoint, live, map_location=map_location, strict=strict, per_rank=per_rank,
            patterns=patterns,
        )  # fmt: skip
        return loaded.resumed(()), partial(loaded.restore, strict=strict)
    path = _state_path(checkpoint)
    if patterns is None:
        saved = load_file(run.ensure_local(checkpoint)[path], map_location=map_location)
    else:
        saved = load_only(run, checkpoint, path, patterns, map_location=map_location)
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
    return any(file.path.endswith(".pt") or _SAFETENSORS.search(file.path) for file in checkpoint.files)


def _resume_local(
    run: Run | LocalRun, state: Any, *, map_location: Any, strict: bool, patterns: Sequence[str] | None
) -> Resumed | None:
    """Resume from a checkpoint on this disk that is newer than every commit; None if there is none."""
    if world_size() > 1:  # each rank would choose by itself
        return None
    for local in run.local_checkpoints():
        checkpoint = local.checkpoint
        try:
            files = local.verified_files(run.local_dir)
            saved = load_file(files[_state_path(checkpoint)], map_location=map_location)
        except DamagedError as error:
            warnings.warn(
                f"local checkpoint {checkpoint.name!r} of run {run.name!r} is damaged and was passed over: {error}",
                RuntimeWarning,
                stacklevel=3,
            )
            continue
        if patterns is not None:
            saved = select(saved, patterns)
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


def _state_path(checkpoint: Checkpoint) -> str:
    """The file of this rank's state among the files of a checkpoint."""
    paths = [file.path for file in checkpoint.files]
    states = [path for path in paths if path.endswith(".pt") and not is_frozen_name(path.rpartition("/")[2])]
    states = states or [path for path in paths if _SAFETENSORS.search(path)]
    if len(states) == 1:
        return states[0]
    own = [path for path in states if path.endswith((f"rank{rank()}.pt", f"rank{rank()}.safetensors"))]
    if len(own) == 1:
        return own[0]
    raise CheckpointNotFoundError(
        f"checkpoint {checkpoint.name!r} (step {checkpoint.step}) has no state of rank {rank()} among its "
        f"{len(paths)} files",
        hint="it was saved with save_files or by another number of processes: use Run.pull and load it yourself",
    )
