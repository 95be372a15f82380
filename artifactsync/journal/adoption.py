"""A folder that another program filled becomes a run: its checkpoints get records, and its bytes stay as they are.

Owns: what is adopted, and when adopting is refused. Does not own: which names are checkpoints (``layouts``), records
(``attempt``).

Invariant: no object outside of the run's house folder is written, moved or deleted. A checkpoint gets its record only
after every byte of it was read, and if nothing of it changed meanwhile.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from artifactsync.errors import (
    ArtifactSyncError,
    CheckpointNotFoundError,
    ConfigurationError,
    MissingBytesError,
    RunNotFoundError,
)
from artifactsync.journal.catalogue import Catalogue, CheckpointFile
from artifactsync.journal.layouts import Found, find_checkpoints
from artifactsync.journal.opening import begin_attempt
from artifactsync.journal.record import Kind
from artifactsync.transfer.relay import read_ahead

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from artifactsync.journal.attempt import Attempt
    from artifactsync.journal.log import JournalLog
    from artifactsync.stores.protocol import ObjectInfo, Store

_FILES_AT_A_TIME = 4
_READ_BYTES = 8 * 2**20
_WORD = "adopt"  # marks the claims of adoptions: the only journals that a later one adds to


@dataclass(frozen=True, kw_only=True)
class AdoptReport:
    """What was adopted, or would be."""

    run_name: str
    """The run."""
    remote: str
    """Where."""
    adopted: tuple[str, ...]
    """Names of the checkpoints, by step."""
    already: int
    """Checkpoints that were adopted before."""
    left_out: Mapping[str, str]
    """Names of what is no whole checkpoint, and why."""
    other_files: int
    """Files that belong to no checkpoint: they are artifacts of the run."""
    files: int
    """Files of the adopted checkpoints."""
    bytes: int
    """Their length."""
    dry_run: bool
    """Whether nothing was written."""
    seconds: float = field(default=0.0)
    """How long it took."""

    def to_json(self) -> dict[str, Any]:
        """The JSON form of ``artifactsync adopt --json``."""
        return {
            **self.__dict__,
            "adopted": list(self.adopted),
            "left_out": dict(self.left_out),
            "seconds": round(self.seconds, 3),
        }


def adopt_run(
    store: Store,
    log: JournalLog,
    *,
    pattern: str | None = None,
    dry_run: bool = False,
    allow_unfenced: bool = False,
    on_plan: Callable[[int, int], None] | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> AdoptReport:
    """Give the checkpoints of a folder that another program filled their records.

    Called again, it adopts what has come since, and nothing twice.

    Args:
        store: The remote.
        log: The journal of the run that the folder becomes.
        pattern: See ``layouts.find_checkpoints``.
        dry_run: Only say what would be adopted: nothing is read but the listing.
        allow_unfenced: As for ``Run``.
        on_plan: Told the number of files and bytes.
        on_progress: Told of bytes as they are read; from any thread.

    Raises:
        RunNotFoundError: there is nothing in the folder.
        CheckpointNotFoundError: nothing in it looks like a checkpoint.
        ConfigurationError: artifactsync wrote this run; or the pattern cannot be used.
        RunIsLiveError: another process is at it.
        MissingBytesError: a file changed while it was read: somebody still writes there.
    """
    began = time.monotonic()
    layout = log.layout
    objects = {info.key: info for info in store.list(layout.root)}
    if not objects:
        raise RunNotFoundError(
            f"there is nothing at {store.url}/{layout.root}",
            hint="give the remote above the folder, and the folder's name as the run's",
            url=f"{store.url}/{layout.root}",
        )
    catalogue = _own_catalogue(log)
    keyed = {path: key for key in objects if (path := layout.path_of(key)) is not None}
    found = find_checkpoints(keyed, pattern)
    if not found:
        raise CheckpointNotFoundError(
            f"nothing at {store.url}/{layout.root} has a name that says which step it is of",
            hint=r"say how steps are named: --pattern 'model-(?P<step>\d+)\.pt'",
            url=f"{store.url}/{layout.root}",
        )
    whole = [each for each in found if not each.missing]
    fresh = [each for each in whole if not all(keyed[path] in catalogue.keys for path in each.paths)]
    grown = {e.name: "has more files than when it was adopted" for e in fresh if _is_known(e, keyed, catalogue)}
    fresh = [each for each in fresh if each.name not in grown]
    sizes = {path: objects[keyed[path]].size_bytes for each in fresh for path in each.paths}
    if fresh and not dry_run:
        if on_plan:
            on_plan(len(sizes), sum(sizes.values()))
        attempt = begin_attempt(store, log, takeover=False, allow_unfenced=allow_unfenced, launch=_WORD)
        try:
            for each in fresh:
                _commit(store, attempt, each, {path: objects[keyed[path]] for path in each.paths}, on_progress)
        except BaseException:
            with contextlib.suppress(ArtifactSyncError):
                attempt.finish("failed")
            raise
        attempt.finish("completed")
        log.advise(attempt.head.record.seq)
    taken = {path for each in found for path in each.paths}
    return AdoptReport(
        run_name=layout.run_name,
        remote=store.url,
        adopted=tuple(each.name for each in fresh),
        already=len(whole) - len(fresh) - len(grown),
        left_out={**{each.name: each.missing for each in found if each.missing}, **grown},
        other_files=len(keyed.keys() - taken),
        files=len(sizes),
        bytes=sum(sizes.values()),
        dry_run=dry_run,
        seconds=time.monotonic() - began,
    )


def _own_catalogue(log: JournalLog) -> Catalogue:
    """The journal, if there is none yet or adoptions alone wrote it.

    Raises:
        ConfigurationError: a training wrote it: what it does not name was never committed, and is half of something.
    """
    head = log.find_head()
    if head is None:
        return Catalogue()
    slots = list(log.read_all(up_to=head.record.seq))
    if any(slot.record.kind is Kind.CLAIM and slot.record.body.get("launch") != _WORD for slot in slots):
        raise ConfigurationError(
            f"run {log.layout.run_name!r} has a journal that artifactsync wrote while training: it is a run already",
            hint="what its journal does not name was never whole; see `artifactsync ls RUN`",
            url=log.store.url,
        )
    return log.fold(slots)


def _is_known(found: Found, keyed: Mapping[str, str], catalogue: Catalogue) -> bool:
    return any(keyed[path] in catalogue.keys for path in found.paths)


def _commit(
    store: Store,
    attempt: Attempt,
    found: Found,
    objects: Mapping[str, ObjectInfo],
    on_progress: Callable[[int], None] | None,
) -> None:
    with ThreadPoolExecutor(_FILES_AT_A_TIME, "artifactsync-adopt") as threads:
        hashes = dict(
            zip(objects, threads.map(lambda info: _read(store, info, on_progress), objects.values()), strict=True)
        )
    for info in objects.values():
        now = store.head(info.key)
        if (now.size_bytes, now.etag) != (info.size_bytes, info.etag):
            raise _changed(store, info.key)
    attempt.commit(
        name=found.name,
        step=found.step,
        epoch=found.epoch,
        batch=found.step,
        metrics=found.metrics,
        files=[
            CheckpointFile(path=path, key=info.key, size=info.size_bytes, sha256=hashes[path])
            for path, info in sorted(objects.items())
        ],
    )


def _read(store: Store, info: ObjectInfo, on_progress: Callable[[int], None] | None) -> str:
    digest = hashlib.sha256()
    try:
        for data in read_ahead(store, info.key, info.size_bytes, _READ_BYTES):
            digest.update(data)
            if on_progress:
                on_progress(len(data))
    except MissingBytesError as error:
        raise _changed(store, info.key) from error
    return digest.hexdigest()


def _changed(store: Store, key: str) -> MissingBytesError:
    return MissingBytesError(
        f"{key} changed while it was read: somebody still writes there",
        hint="adopt when the training that writes it has ended; what was adopted before stays",
        url=f"{store.url}/{key}",
    )
