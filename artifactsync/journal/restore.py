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

from artifactsync.errors import CheckpointNotFoundError, ConfigurationError, DamagedError, MissingBytesError
from artifactsync.journal.contents import read_contents
from artifactsync.journal.pins import PinKeeper
from artifactsync.journal.tails import LogStore
from artifactsync.naming.layout import is_safe
from artifactsync.transfer.pull import PullItem, pull_files

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from typing_extensions import Self

    from artifactsync.journal.catalogue import Catalogue, Checkpoint
    from artifactsync.journal.contents import Artifact, Contents
    from artifactsync.journal.log import JournalLog
    from artifactsync.naming.layout import RunLayout
    from artifactsync.stores.protocol import Store
    from artifactsync.transfer.tail import Segment

_log = logging.getLogger(__name__)

_LOG_ROUNDS = 8  # each is progress: a log that became whole, or a damaged segment that is now known

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


class _Chooser:
    """Chooses the checkpoint to bring, and keeps a prune from deleting it meanwhile; a context manager.

    Invariant: a checkpoint is pinned first, and the journal is read again after; so either the prune's record is seen
    here, or the pin is seen there.

    Args:
        catalogue: The run's journal as it was read.
        selection: What is wanted.
        run_name: The run.
        log: Where to pin and to read again; None does neither.
        is_partial: The catalogue has the newest checkpoint alone: the rest is read when that one is damaged.
    """

    def __init__(
        self, catalogue: Catalogue, selection: Selection, *, run_name: str, log: JournalLog | None, is_partial: bool
    ) -> None:
        self.fallback_from: str | None = None
        """The first checkpoint that was found damaged."""
        self._catalogue, self._selection, self._run_name, self._log = catalogue, selection, run_name, log
        self._is_partial = is_partial
        self._keeper = PinKeeper(log.store, log.layout) if log else None
        self._damaged: dict[int, DamagedError] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._keeper:
            self._keeper.release()

    def choose(self) -> Checkpoint | None:
        """The best checkpoint left, pinned; None if none is wanted.

        Raises:
            DamagedError: all are damaged.
            CheckpointNotFoundError, ConfigurationError: see :func:`candidates`.
        """
        while True:
            tried = candidates(self._catalogue, self._selection, run_name=self._run_name)
            left = [candidate for candidate in tried if candidate.seq not in self._damaged]
            if tried and not left:
                raise self._damaged[tried[-1].seq]
            if not left or self._keeper is None:
                return left[0] if left else None
            self._keeper.pin(left[0].seq)
            if not self._is_retired(left[0]):
                return left[0]

    def can_choose_again(self, checkpoint: Checkpoint | None, error: DamagedError) -> tuple[bool, bool]:
        """After a file of it was not what it should be: whether to choose anew, and whether it is really damaged.

        It is not if it was retired meanwhile, and our pin could not be written or was not heeded.
        """
        if checkpoint is None:
            return False, True
        if self._is_retired(checkpoint):
            return True, False
        self._damaged[checkpoint.seq] = error
        if self._is_partial and self._log is not None:
            self._catalogue, self._is_partial = self._log.read_catalogue(), False
        tried = candidates(self._catalogue, self._selection, run_name=self._run_name)
        if all(candidate.seq in self._damaged for candidate in tried):
            return False, True
        self.fallback_from = self.fallback_from or checkpoint.name
        return True, True

    def _is_retired(self, checkpoint: Checkpoint) -> bool:
        """Read the journal again, and say whether it gives the checkpoint up."""
        if self._log is not None:
            head = self._log.find_head()
            if head is not None and head.record.seq > self._catalogue.seq:
                self._catalogue = self._log.fold(self._log.read_all(up_to=head.record.seq))
                self._is_partial = False
        return all(live.seq != checkpoint.seq for live in self._catalogue.checkpoints)


def pull(
    store: Store,
    run_name: str,
    destination: Path,
    *,
    selection: Selection,
    catalogue: Catalogue,
    artifacts: Sequence[Artifact],
    log: JournalLog | None = None,
    is_partial: bool = False,
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
        log: Where to pin the checkpoint while it is being read, and to see whether it was retired; None does neither.
        is_partial: The catalogue has the newest checkpoint alone; needs ``log``.
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
    skipped_files = 0
    pinning = None if dry_run else log
    with _Chooser(catalogue, selection, run_name=run_name, log=pinning, is_partial=is_partial) as chooser:
        while True:
            checkpoint = chooser.choose()
            files = [file for file in checkpoint.files if selection.takes(file.path)] if checkpoint else []
            own = [PullItem(key=f.key, path=f.path, size_bytes=f.size, sha256=f.sha256) for f in files]
            taken = {item.path for item in own}
            items = own + [item for item in rest if item.path not in taken]
            if on_plan:
                on_plan(items)
            if dry_run:
                break
            try:
                skipped_files = pull_files(store, own, destination, on_progress=on_progress).skipped_files
                break
            except DamagedError as error:
                is_another, is_damaged = chooser.can_choose_again(checkpoint, error)
                if not is_another:
                    raise
                if checkpoint and is_damaged and on_fallback:
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
        fallback_from=chooser.fallback_from,
        paths=tuple(item.path for item in items),
        dry_run=dry_run,
        refused=tuple(refused),
    )


def pull_run(
    store: Store,
    layout: RunLayout,
    destination: Path,
    *,
    selection: Selection,
    catalogue: Catalogue,
    contents: Contents,
    **options: Any,
) -> PullReport:
    """Bring a run, its growing logs as whole files; arguments and errors as for :func:`pull`.

    A log whose segments have given way to the whole file meanwhile is looked for again; one with a damaged segment
    comes as far as it is good, loudly.
    """
    damaged: set[Segment] = set()
    for is_last in (False,) * _LOG_ROUNDS + (True,):
        logs = LogStore(store, layout, contents.logs)
        try:
            return pull(
                logs,
                layout.run_name,
                destination,
                selection=selection,
                catalogue=catalogue,
                artifacts=contents.artifacts,
                **options,
            )
        except DamagedError as error:
            segment = logs.bad.get(error.url)
            if is_last or segment is None:
                raise
            if not isinstance(error, MissingBytesError):
                damaged.add(segment)
                _log.warning("%s; the log comes without what is behind it", error)
            contents = read_contents(store, layout, catalogue, damaged=damaged)
    raise AssertionError("the last round returns or raises")
