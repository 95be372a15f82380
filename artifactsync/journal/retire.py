"""Giving checkpoints up: the record first, then the bytes.

Owns: the order of a prune, and its report. Does not own: the choice (``retention``), pins (``pins``), what crashes
left (``orphans``).

Invariant: a key is deleted only if a retire record named it, no live checkpoint references it, and no living pin
holds it. After the record no commit can reference it (``attempt``), so this cannot change any more. What a crash or
a pin left is deleted by the next prune.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from artifactsync.journal.catalogue import Catalogue, Retirement
from artifactsync.journal.log import SlotTakenError
from artifactsync.journal.orphans import MIN_AGE_S, Leftovers, find_leftovers, remove_leftovers
from artifactsync.journal.pins import living_pins
from artifactsync.journal.record import Kind
from artifactsync.journal.retention import RetentionPlan, RetentionPolicy, plan_retention
from artifactsync.journal.writer import WriterIdentity

if TYPE_CHECKING:
    from collections.abc import Mapping

    from artifactsync.journal.attempt import Attempt
    from artifactsync.journal.log import JournalLog
    from artifactsync.naming.layout import RunLayout
    from artifactsync.stores.protocol import Store

_DELETE_BATCH = 1000  # as many keys as S3 takes in one request; a crash between two leaves the rest to the next prune


@dataclass(frozen=True, kw_only=True)
class PruneReport:
    """What ``prune`` did, or with ``dry_run`` would do."""

    run_name: str
    """The run."""
    kept: tuple[str, ...]
    """Names of the checkpoints that stay, oldest first."""
    retired: tuple[str, ...]
    """Names of the checkpoints that were given up now, oldest first."""
    deleted_keys: int
    """Objects that were deleted: of these and of formerly retired checkpoints, and what crashes had left."""
    freed_bytes: int
    """Their bytes."""
    pinned_keys: int
    """Objects that somebody is reading: the next prune deletes them."""
    orphans: tuple[str, ...]
    """Keys among the deleted that never belonged to a checkpoint."""
    aborted_uploads: int
    """Uploads that were begun long ago and never ended: given up. Their bytes are not known."""
    dry_run: bool
    """Whether nothing was done."""

    def to_json(self) -> dict[str, Any]:
        """The JSON form of ``artifactsync prune --json``."""
        return {
            "run_name": self.run_name,
            "kept": list(self.kept),
            "retired": list(self.retired),
            "deleted_keys": self.deleted_keys,
            "freed_bytes": self.freed_bytes,
            "pinned_keys": self.pinned_keys,
            "orphans": list(self.orphans),
            "aborted_uploads": self.aborted_uploads,
            "dry_run": self.dry_run,
        }


def prune(
    store: Store,
    log: JournalLog,
    policy: RetentionPolicy,
    *,
    attempt: Attempt | None = None,
    dry_run: bool = False,
    is_patient: bool = True,
    orphans_age_s: float | None = MIN_AGE_S,
) -> PruneReport:
    """Retire what the policy does not keep, and delete what nobody needs.

    Args:
        store: The remote.
        log: The run's journal.
        policy: What to keep.
        attempt: The running attempt, if this process is the run's writer. Else the record is written beside it, and
            it goes on with that in mind.
        dry_run: Say what would be done, and do nothing.
        is_patient: Watch pins of which it is not known whether their readers live; else leave their files for later.
        orphans_age_s: Age in seconds from which leftovers of crashes are removed too; None leaves them.

    Raises:
        ConfigurationError: the policy names a metric that no checkpoint has.
        RunFencedError: ``attempt`` has lost the run.
    """
    if dry_run:
        catalogue, plan = _planned(log, policy, attempt)
        catalogue = catalogue.with_retirement(
            Retirement(commits=frozenset(c.seq for c in plan.retired), keys=plan.keys, seq=catalogue.seq)
        )
        is_patient = False
    elif attempt is not None:
        catalogue, plan = _retire_within(attempt, policy)
    else:
        catalogue, plan = _retire_beside(log, policy)
    if plan.retired and not dry_run:
        log.advise(catalogue.seq)
    sizes, pinned = _deletable(store, log.layout, catalogue, is_patient=is_patient)
    if not dry_run:
        _delete(store, sorted(sizes))
    leftovers = Leftovers()
    if orphans_age_s is not None:
        leftovers = find_leftovers(store, log.layout, catalogue, min_age_s=orphans_age_s)
        if not dry_run:
            remove_leftovers(store, leftovers)
            log.index.remove_superseded(log.bad_packs())
    return PruneReport(
        run_name=log.layout.run_name,
        kept=tuple(checkpoint.name for checkpoint in plan.kept),
        retired=tuple(checkpoint.name for checkpoint in plan.retired),
        deleted_keys=len(sizes) + len(leftovers.objects),
        freed_bytes=sum(sizes.values()) + sum(info.size_bytes for info in leftovers.objects),
        pinned_keys=pinned,
        orphans=tuple(info.key for info in leftovers.objects),
        aborted_uploads=len(leftovers.uploads),
        dry_run=dry_run,
    )


def _planned(log: JournalLog, policy: RetentionPolicy, attempt: Attempt | None) -> tuple[Catalogue, RetentionPlan]:
    catalogue = attempt.catalogue if attempt else log.read_catalogue()
    return catalogue, plan_retention(catalogue, policy)


def _retire_within(attempt: Attempt, policy: RetentionPolicy) -> tuple[Catalogue, RetentionPlan]:
    """Append the record as the run's writer."""
    chosen: list[RetentionPlan] = []

    def plan(catalogue: Catalogue) -> dict[str, Any] | None:
        chosen[:] = [plan_retention(catalogue, policy)]
        return _body(chosen[0], catalogue, owner=attempt.writer.to_json())

    attempt.retire(plan)
    return attempt.catalogue, chosen[0]


def _retire_beside(log: JournalLog, policy: RetentionPolicy) -> tuple[Catalogue, RetentionPlan]:
    """Append the record as anybody who may delete. It carries the present attempt's number and fences nobody."""
    head = log.find_head()
    slots = list(log.read_all(up_to=head.record.seq)) if head else []
    while True:
        catalogue = log.fold(slots)
        plan = plan_retention(catalogue, policy)
        owner = next((slot.record.writer for slot in reversed(slots) if slot.record.kind is Kind.CLAIM), {})
        body = _body(plan, catalogue, owner=owner)
        if body is None:
            return catalogue, plan
        after = catalogue.with_retirement(
            Retirement(commits=frozenset(body["commits"]), keys=plan.keys, seq=catalogue.seq + 1)
        )
        try:
            log.append(
                slots[-1],
                kind=Kind.RETIRE,
                attempt=catalogue.attempt,
                writer=WriterIdentity.of_this_process(),
                body=body,
                totals=after.totals(),
            )
        except SlotTakenError as error:
            slots.append(error.slot)  # a commit, a claim, or another prune: choose anew with it
            continue
        return after, plan


def _body(plan: RetentionPlan, catalogue: Catalogue, *, owner: Mapping[str, Any]) -> dict[str, Any] | None:
    """The body of a retire record; None if nothing is to be retired."""
    if not plan.retired:
        return None
    return {
        "commits": [checkpoint.seq for checkpoint in plan.retired],
        "names": [checkpoint.name for checkpoint in plan.retired],
        "keys": sorted(key.partition("/")[2] for key in plan.keys),
        "owner": dict(owner),
        "finished": catalogue.finished,
    }


def _deletable(
    store: Store, layout: RunLayout, catalogue: Catalogue, *, is_patient: bool
) -> tuple[dict[str, int], int]:
    """Retired keys that are still there and may go, with their sizes; and how many a pin holds."""
    live = {file.key for checkpoint in catalogue.checkpoints for file in checkpoint.files}
    doomed = catalogue.retired_keys - live
    if not doomed:
        return {}, 0
    there = {info.key: info.size_bytes for info in store.list(layout.root) if info.key in doomed}
    keys_of = {c.seq: {file.key for file in c.files} & there.keys() for c in catalogue.retired}
    in_question = {seq for seq, keys in keys_of.items() if keys}
    if not in_question:
        return there, 0
    pins = living_pins(store, layout, in_question, is_patient=is_patient)
    held = {key for pin in pins for key in keys_of[pin.commit]}
    return {key: size for key, size in there.items() if key not in held}, len(held)


def _delete(store: Store, keys: list[str], batch: int = _DELETE_BATCH) -> None:
    for start in range(0, len(keys), batch):
        store.delete(keys[start : start + batch])
