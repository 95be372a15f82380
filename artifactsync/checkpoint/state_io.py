"""``Run.save`` and ``Run.resume``: training state to a committed checkpoint, and back.

Owns: when a snapshot is taken, and who writes it. Does not own: the way back (``resume``), uploading and the commit
(``run``), the copy (``snapshot``), the file (``write``).

Invariant: the caller's thread only copies. A snapshot is written on a thread of its own, apart from publication, so
an outage of the remote delays commits and never the next save; its memory is used again once its file is on disk.
"""

from __future__ import annotations

from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Literal, cast

from artifactsync.batch import rank
from artifactsync.checkpoint.resume import Resumed, resume_state
from artifactsync.checkpoint.safetensors_file import SUFFIX
from artifactsync.checkpoint.savers import prepare_state, saver_of, wait_copied, wait_written
from artifactsync.checkpoint.saving import Flight, SkippedError
from artifactsync.errors import ConfigurationError
from artifactsync.journal.pending import Label
from artifactsync.naming import format_name
from artifactsync.run import LocalFile, PendingCheckpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from torch.optim import Optimizer

    from artifactsync.checkpoint.local_run import LocalRun
    from artifactsync.checkpoint.saving import BackPressure
    from artifactsync.run import Checkpoint, Run

__all__ = ["Resumed", "prepare_state", "resume_state", "save_state", "wait_copied", "wait_written"]

FileFormat = Literal["pt", "safetensors"]
FORMATS: tuple[FileFormat, ...] = ("pt", "safetensors")
DEFAULT_FILE = "checkpoints/ep{epoch}-ba{batch}-rank{rank}.pt"
"""Template of a checkpoint's file below the run's folder."""
LATEST_FILE = "latest-rank{rank}.pt"
"""Template of the advisory symlink beside the newest checkpoint file."""


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
    format: FileFormat = "pt",  # noqa: A002  (the word that users look for)
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
        format: ``pt``, or ``safetensors`` for a flat dict of tensors, or an object whose ``state_dict()`` is one.

    Raises:
        ConfigurationError: the state holds something that cannot be loaded again with ``weights_only=True``, or that
            the format cannot hold.
        RunFencedError: a later attempt owns the run.
    """
    if format not in FORMATS:
        raise ConfigurationError(f"there is no format {format!r}", hint=f"one of {', '.join(FORMATS)}")
    is_safetensors = format == "safetensors"
    if getattr(run, "launch", None) is not None:
        if is_safetensors:
            raise ConfigurationError(
                "several processes save together, which a safetensors file cannot hold",
                hint="leave format out, or save by one process: Run(…, ranks='one')",
            )
        from artifactsync.checkpoint.together import save_together  # noqa: PLC0415  (torch.distributed takes long)

        return save_together(
            cast("Run", run), state, step=step, name=name, epoch=epoch, batch=batch, metrics=metrics, path=path,
            barrier=barrier, per_rank=per_rank,
        )  # fmt: skip
    epoch = 0 if epoch is None else epoch
    batch = step if batch is None else batch
    suffix = SUFFIX if is_safetensors else ".pt"
    if path is None:
        path = format_name(
            DEFAULT_FILE.removesuffix(".pt") + suffix, run_name=run.name, epoch=epoch, batch=batch, rank=rank()
        )
    local = run.local_dir.joinpath(*path.split("/"))
    link = local.with_name(format_name(LATEST_FILE.removesuffix(".pt") + suffix, run_name=run.name, rank=rank()))
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
    flight = Flight(local=local, path=path, name=label, record=record, splits=splits, is_safetensors=is_safetensors)
    policy: Any = backpressure or getattr(run, "backpressure", "wait")
    optimizers = tuple(overlap) if isinstance(overlap, (list, tuple)) else (overlap,)
    pending = saver_of(run).save(state, flight, link, submit, policy=policy, overlap=optimizers)
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
