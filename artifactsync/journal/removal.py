"""Removing a whole run, so that nobody sees half of one on the way.

Owns: the order. Does not own: asking whether it is meant (``cli``), the claim (``attempt``).

Invariant: nothing is deleted before the run is claimed, so that no other process can commit to it, and before a record
says that the whole run is removed, from which on every reader sees a run without checkpoints. The journal goes last,
that record as its very last object, so that a removal which was interrupted is known as one and can be finished.
"""

from __future__ import annotations

import contextlib
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from artifactsync.errors import (
    DamagedError,
    PermissionDeniedError,
    RunFencedError,
    RunIsLiveError,
    RunNotFoundError,
    TransientStoreError,
)
from artifactsync.journal.attempt import claim
from artifactsync.journal.heartbeat import is_alive, read_heartbeat
from artifactsync.journal.log import JournalLog, Slot, SlotTakenError, fenced, is_removal
from artifactsync.journal.record import Kind, Record
from artifactsync.journal.writer import WriterIdentity
from artifactsync.stores.unfinished import abort_unfinished, list_unfinished

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from artifactsync.journal.catalogue import Catalogue
    from artifactsync.naming.layout import RunLayout
    from artifactsync.stores.protocol import Store

_BATCH = 1000  # keys deleted between two reports
_MAX_RACES = 100
_HIGHER_THAN_ANY = 10**9  # attempt of a record that cannot be read, when nothing else says who writes


@dataclass(frozen=True, kw_only=True)
class RemovalReport:
    """What a removal took away, or would."""

    run_name: str
    """The run."""
    checkpoints: int
    """Live checkpoints that it had."""
    deleted_keys: int
    """Objects, those of the journal among them."""
    freed_bytes: int
    """Their bytes."""
    removed: bool
    """False: nothing was done, this is what would go."""

    def to_json(self) -> dict[str, Any]:
        """The JSON form of ``artifactsync rm --json``."""
        return dict(self.__dict__)


def plan_removal(store: Store, log: JournalLog) -> RemovalReport:
    """What a removal would take away.

    Raises:
        RunNotFoundError: there is no such run.
    """
    sizes = _list(store, log.layout)
    try:
        head = log.find_head()
        checkpoints = int(head.record.totals.get("checkpoints") or 0) if head else 0
    except DamagedError:
        checkpoints = 0
    return RemovalReport(
        run_name=log.layout.run_name,
        checkpoints=checkpoints,
        deleted_keys=len(sizes),
        freed_bytes=sum(sizes.values()),
        removed=False,
    )


def remove_run(
    store: Store,
    log: JournalLog,
    *,
    on_plan: Callable[[int, int], None] | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> RemovalReport:
    """Remove a run; called again after an interruption, it finishes the work.

    Args:
        store: The remote.
        log: The run's journal.
        on_plan: Told the number of objects and bytes.
        on_progress: Told of bytes that are gone.

    Raises:
        RunNotFoundError: there is no such run.
        RunIsLiveError: its writer is alive; nothing was changed.
        PermissionDeniedError: these credentials may not delete; nothing of the run was changed.
        RunFencedError: somebody claimed the run while it was being removed; nothing of theirs was deleted.
    """
    planned = plan_removal(store, log)
    _check_permission(store, log.layout)
    last = _close_journal(store, log)
    sizes = _list(store, log.layout)
    if on_plan:
        on_plan(len(sizes), sum(sizes.values()))
    keys = _in_order(sizes, log.layout)
    journal = [key for key in keys if key.startswith(log.layout.journal)]
    data = [key for key in keys if not key.startswith(log.layout.journal)]
    _delete(store, data, sizes, on_progress)
    if last is not None:
        _check_still_last(log, last)
    for key in journal[:-1]:
        _delete(store, [key], sizes, on_progress)
    _delete(store, journal[-1:], sizes, on_progress)
    with contextlib.suppress(PermissionDeniedError, TransientStoreError):  # invisible, and prune or a rule finds them
        for upload in list_unfinished(store, log.layout.root):
            abort_unfinished(store, upload)
    return RemovalReport(
        run_name=planned.run_name,
        checkpoints=planned.checkpoints,
        deleted_keys=len(keys),
        freed_bytes=sum(sizes.values()),
        removed=True,
    )


def _list(store: Store, layout: RunLayout) -> dict[str, int]:
    sizes = {info.key: info.size_bytes for info in store.list(layout.root)}
    if not sizes:
        raise RunNotFoundError(
            f"there is no run {layout.run_name!r} at {store.url}",
            hint="see `artifactsync ls` for the runs there",
            url=f"{store.url}/{layout.run_name}",
        )
    return sizes


def _check_permission(store: Store, layout: RunLayout) -> None:
    """Try a deletion on a scratch object, so that a role without the right to delete changes nothing of the run."""
    key = layout.probe(f"rm-{uuid.uuid4().hex}")
    store.put(key, b"artifactsync rm\n")
    try:
        store.delete([key])
    except PermissionDeniedError as error:
        raise PermissionDeniedError(
            f"these credentials may not delete at {store.url}; nothing was removed",
            hint="use credentials that may delete objects (s3:DeleteObject, storage.objects.delete)",
            url=error.url,
        ) from error


def _close_journal(store: Store, log: JournalLog) -> Slot | None:
    """Fence off every writer, and write the record after which the run has no checkpoints and takes no claim.

    Returns:
        That record; None for a folder that never had a journal.
    """
    if not log.newest_seq():
        return None
    try:
        last = _close_damaged(store, log) if log.is_copy_arriving() else _close_whole(log)
    except DamagedError:
        last = _close_damaged(store, log)
    log.advise(last.record.seq, with_index=False)
    return last


def _close_whole(log: JournalLog) -> Slot:
    head = log.find_head()
    if head and is_removal(head.record):
        return head  # an earlier removal came so far
    attempt = claim(log, writer=WriterIdentity.of_this_process(), is_removal_planned=True)
    attempt.retire(lambda catalogue: _removal_body(catalogue, log.layout))
    head = log.find_head()
    assert head is not None, "just written"
    return head


def _removal_body(catalogue: Catalogue | None, layout: RunLayout) -> dict[str, Any]:
    live = catalogue.checkpoints if catalogue else ()
    return {
        "removes_run": True,
        "commits": [checkpoint.seq for checkpoint in live],
        "names": [checkpoint.name for checkpoint in live],
        "keys": sorted({file.key[len(layout.root) :] for checkpoint in live for file in checkpoint.files}),
    }


def _close_damaged(store: Store, log: JournalLog) -> Slot:
    """As ``_close_whole``, for a journal of which records are missing or damaged: only its end is looked at."""
    me = WriterIdentity.of_this_process()
    for _ in range(_MAX_RACES):
        head = _end_of(log)
        if is_removal(head.record):
            return head
        owner = WriterIdentity.from_json(head.record.writer)
        is_over = head.record.kind is Kind.FINISH
        if not is_over and is_alive(store, log.layout, attempt=head.record.attempt, writer=owner):
            raise RunIsLiveError(
                f"run {log.layout.run_name!r} is in use by attempt {head.record.attempt} "
                f"({owner.describe()}, since {head.record.time})",
                hint="stop that process first",
                url=store.url,
            )
        try:
            return log.append(
                head,
                kind=Kind.RETIRE,
                attempt=head.record.attempt + 1,  # higher than any writer's: whoever meets it is fenced
                writer=me,
                body=_removal_body(None, log.layout),
                totals={"checkpoints": 0, "bytes": 0, "latest": None, "last_step": None},
            )
        except SlotTakenError:
            continue  # a record of somebody else: look again
    raise RunIsLiveError(
        f"run {log.layout.run_name!r} is being written again and again", hint="stop its writers first", url=store.url
    )


def _end_of(log: JournalLog) -> Slot:
    """The newest record; one that cannot be read is taken for the claim of the heartbeat's attempt."""
    newest = log.newest_seq()
    try:
        slot = log.read(newest)
        if slot is not None:
            return slot
    except DamagedError:
        pass
    beat = read_heartbeat(log.store, log.layout)
    unreadable = Record(
        seq=newest,
        attempt=beat.attempt if beat else _HIGHER_THAN_ANY,
        kind=Kind.CLAIM,
        write_id="",
        writer=beat.writer.to_json() if beat else {},
        prev_sha256=None,
        previous_commit=None,
        totals={},
        time="?",
    )
    return Slot(unreadable, "")


def _in_order(sizes: Iterable[str], layout: RunLayout) -> list[str]:
    """Artifacts and checkpoints, then the house, then the journal, its oldest record first."""

    def rank(key: str) -> tuple[int, str]:
        if not key.startswith(layout.house):
            return 0, key
        return (2 if key.startswith(layout.journal) else 1), key

    return sorted(sizes, key=rank)


def _check_still_last(log: JournalLog, last: Slot) -> None:
    """Look once more before the journal goes.

    Raises:
        RunFencedError: there is a record after the removal's.
    """
    newest = log.newest_seq()
    slot = log.read(newest) if newest > last.record.seq else None
    if slot is not None:
        error: RunFencedError = fenced(log.layout.run_name, slot.record, url=log.store.url)
        raise error


def _delete(store: Store, keys: list[str], sizes: dict[str, int], on_progress: Callable[[int], None] | None) -> None:
    for start in range(0, len(keys), _BATCH):
        batch = keys[start : start + _BATCH]
        store.delete(batch)
        if on_progress:
            on_progress(sum(sizes[key] for key in batch))
