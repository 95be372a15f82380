"""Bringing a run back: which files to pull, in what order checkpoints are tried, and what is reported.

Owns: the choice. Does not own: how a file gets here whole (``transfer.pull``).

Invariant: what is reported as verified had its sha256 compared with the journal's (checkpoints), or its length with the
store's (artifacts, of which the journal keeps no hash). A fallback to an older checkpoint is always reported.
"""

from __future__ import annotations

import fnmatch
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from artifactsync.errors import CheckpointNotFoundError, ConfigurationError, DamagedError
from artifactsync.naming.layout import is_safe
from artifactsync.transfer.pull import PullItem, pull_files

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from artifactsync.journal.catalogue import Catalogue, Checkpoint
    from artifactsync.journal.contents import Artifact
    from artifactsync.stores.protocol import Store

_log = logging.getLogger(__name__)

Only = Literal["checkpoints", "logs", "all"]


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which files of a run to bring."""

    checkpoint: str = "latest"
    """``latest``, ``best``, ``none`` or a checkpoint's name."""
    metric: str | None = None
    """The metric that decides ``best``."""
    mode: Literal["min", "max"] = "min"
    """Whether the smallest or the greatest value is best."""
    only: Only = "all"
    """``checkpoints``: no artifacts. ``logs``: artifacts alone. ``all``: both."""
    include: tuple[str, ...] = ()
    """Shell patterns on paths; none given means all. ``*`` matches ``/`` too."""
    exclude: tuple[str, ...] = ()
    """Shell patterns on paths that stay away."""

    def takes(self, path: str) -> bool:
        """Whether the patterns let ``path`` through."""
        is_in = not self.include or any(fnmatch.fnmatchcase(path, pattern) for pattern in self.include)
        return is_in and not any(fnmatch.fnmatchcase(path, pattern) for pattern in self.exclude)


@dataclass(frozen=True, kw_only=True)
class PullReport:
    """What ``pull`` brought."""

    run_name: str
    """The run."""
    checkpoint: str | None
    """Name of the checkpoint that came; None if none did."""
    destination: Path
    """Where everything lies now."""
    files: int
    """Files now in place, the skipped ones included."""
    bytes: int
    """Their bytes."""
    seconds: float
    """How long it took."""
    skipped_files: int
    """How many were there already with the right bytes."""
    fallback_from: str | None
    """The damaged newer checkpoint in whose place an older one came."""
    paths: tuple[str, ...]
    """What came, below the destination."""
    refused: tuple[str, ...] = ()
    """Keys of artifacts that cannot be files here, or would land outside the destination: left where they are."""
    dry_run: bool = False
    """Whether nothing was done."""

    def to_json(self) -> dict[str, Any]:
        """The JSON form of ``artifactsync pull --json``."""
        return {
            "run_name": self.run_name,
            "checkpoint": self.checkpoint,
            "destination": str(self.destination),
            "files": self.files,
            "bytes": self.bytes,
            "seconds": round(self.seconds, 3),
            "verified": not self.dry_run,
            "skipped_files": self.skipped_files,
            "fallback_from": self.fallback_from,
            "dry_run": self.dry_run,
            "paths": list(self.paths),
            "refused": list(self.refused),
        }


def candidates(catalogue: Catalogue, selection: Selection, *, run_name: str) -> Sequence[Checkpoint]:
    """The checkpoints to try, in order; empty if none is wanted, or ``latest`` is wanted of a run that has none.

    Raises:
        CheckpointNotFoundError: the run has no such checkpoint.
        ConfigurationError: ``best`` without a metric.
    """
    wanted = selection.checkpoint
    if wanted == "none" or selection.only == "logs":
        return ()
    if wanted == "latest":
        return catalogue.newest_first()
    if wanted == "best":
        if not selection.metric:
            raise ConfigurationError("'best' needs a metric to compare", hint="name it: --metric loss")
        found = catalogue.best(selection.metric, selection.mode)
        known = sorted({name for checkpoint in catalogue.checkpoints for name in checkpoint.metrics})
        what, hint = f"a checkpoint with metric {selection.metric!r}", f"known metrics: {', '.join(known) or 'none'}"
    else:
        found = catalogue.named(wanted)
        names = [checkpoint.name for checkpoint in catalogue.newest_first()]
        what, hint = f"checkpoint {wanted!r}", f"the newest ones are: {', '.join(names[:5]) or 'none'}"
    if found is None:
        raise CheckpointNotFoundError(f"run {run_name!r} has no {what.removeprefix('a ')}", hint=hint)
    return (found,)


def pull(
    store: Store,
    run_name: str,
    destination: Path,
    *,
    selection: Selection,
    catalogue: Catalogue,
    artifacts: Sequence[Artifact],
    dry_run: bool = False,
    on_plan: Callable[[Sequence[PullItem]], None] | None = None,
    on_progress: Callable[[int], None] | None = None,
    on_fallback: Callable[[Checkpoint, DamagedError], None] | None = None,
) -> PullReport:
    """Bring files of a run to ``destination``.

    Args:
        store: The remote.
        run_name: The run.
        destination: A folder, made if it is not there.
        selection: Which files.
        catalogue: The run's journal.
        artifacts: The run's artifacts.
        dry_run: Say what would come, and do nothing.
        on_plan: Told what is about to come.
        on_progress: Told of bytes as they come.
        on_fallback: Told of a checkpoint that is damaged, before the one before it is tried.

    Raises:
        DamagedError: the wanted checkpoint is damaged (for ``latest``: every checkpoint is).
        CheckpointNotFoundError, ConfigurationError: see :func:`candidates`.
        DestinationError, DiskFullError: the destination cannot be used; nothing half-written has a visible name.
    """
    began = time.monotonic()
    wanted = [artifact for artifact in artifacts if selection.only != "checkpoints" and selection.takes(artifact.path)]
    refused = [artifact.key for artifact in wanted if not is_safe(artifact.path)]
    wanted = [artifact for artifact in wanted if is_safe(artifact.path)]
    if refused:
        _log.warning(
            "%d artifact(s) have keys that cannot be files here, and were left: %s",
            len(refused),
            ", ".join(repr(key) for key in refused[:3]),
        )
    rest = [PullItem(key=a.key, path=a.path, size_bytes=a.size, sha256=None) for a in wanted]
    tried = candidates(catalogue, selection, run_name=run_name)
    fallback_from: str | None = None
    skipped_files = 0
    for number, checkpoint in enumerate(tried or (None,)):
        files = [file for file in checkpoint.files if selection.takes(file.path)] if checkpoint else []
        own = [PullItem(key=f.key, path=f.path, size_bytes=f.size, sha256=f.sha256) for f in files]
        taken = {item.path for item in own}
        items = own + [item for item in rest if item.path not in taken]
        if on_plan:
            on_plan(items)
        try:
            if not dry_run:
                skipped_files = pull_files(store, own, destination, on_progress=on_progress).skipped_files
            break
        except DamagedError as error:
            if checkpoint is None or number + 1 == len(tried):
                raise
            fallback_from = fallback_from or checkpoint.name
            if on_fallback:
                on_fallback(checkpoint, error)
    if not dry_run:
        skipped_files += pull_files(store, items[len(own) :], destination, on_progress=on_progress).skipped_files
    return PullReport(
        run_name=run_name,
        checkpoint=checkpoint.name if checkpoint else None,
        destination=destination,
        files=len(items),
        bytes=sum(item.size_bytes or 0 for item in items),
        seconds=time.monotonic() - began,
        skipped_files=skipped_files,
        fallback_from=fallback_from,
        paths=tuple(item.path for item in items),
        dry_run=dry_run,
        refused=tuple(refused),
    )
