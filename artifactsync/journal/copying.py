"""A whole run from one remote to another: its files, then its journal, byte for byte.

Owns: what is copied in which order, and when a target is refused. Does not own: the journal's meaning (``catalogue``),
or the commands (``cli``).

Invariant: nothing of the copied journal counts at the target before all of its records are there, and no record is
written before every file of every live checkpoint is there with its sha256. So a copy that was interrupted shows what
the target showed before, and is continued by copying again.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import deque
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from artifactsync.errors import (
    AlreadyExistsError,
    ConfigurationError,
    DamagedError,
    DestinationError,
    MissingBytesError,
    ObjectNotFoundError,
    RunNotFoundError,
)
from artifactsync.journal.catalogue import Catalogue
from artifactsync.journal.contents import announced_keys
from artifactsync.journal.index import in_parallel
from artifactsync.journal.log import JournalLog, is_removal
from artifactsync.journal.opening import check_store
from artifactsync.journal.untrusted_json import read_json
from artifactsync.naming.layout import RunLayout
from artifactsync.stores.create_once import create_once
from artifactsync.transfer.relay import RelayBody, remote_sha256

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from artifactsync.journal.record import Record
    from artifactsync.stores.protocol import ObjectInfo, Store

_FILES_AT_A_TIME = 4  # each has two parts in memory
_RECORDS_AT_A_TIME = 100
_ROUNDS = 3  # a file that came out wrong, or a plan that a prune overtook, is begun anew so often
_COPIED_HOUSE_FOLDERS = ("tails/",)  # of what lies in the house folder, all else speaks of processes, not of the run


@dataclass(frozen=True, kw_only=True)
class CopyReport:
    """What a copy came to."""

    run_name: str
    """The run."""
    source: str
    """Where it was copied from."""
    target: str
    """Where to."""
    checkpoints: int
    """Live checkpoints that are at the target now."""
    records: int
    """Journal records that are there now."""
    files: int
    """Files that are there now, the skipped ones included."""
    bytes: int
    """Their bytes."""
    skipped_files: int
    """How many were there already with the right bytes."""
    seconds: float
    """How long it took."""
    dry_run: bool = False
    """Whether nothing was written: then the figures are those of the copy that would be made."""

    def to_json(self) -> dict[str, Any]:
        """The JSON form of ``artifactsync cp --json``."""
        return {**self.__dict__, "seconds": round(self.seconds, 3), "verified": not self.dry_run}


@dataclass(frozen=True, kw_only=True)
class _Item:
    """One object to copy."""

    key: str
    size_bytes: int
    sha256: str | None
    """Known from the journal for files of checkpoints."""


@dataclass(frozen=True, kw_only=True)
class _Source:
    """The run as it was when its head was read."""

    catalogue: Catalogue
    hashes: Sequence[str]
    """sha256 of each record, in order."""
    items: Sequence[_Item]


@dataclass(kw_only=True)
class _Target:
    """What the target has of the run before the copy."""

    visible: int
    """Number of the newest record that counts."""
    present: int
    """Number of the newest record that lies there."""
    is_ours: bool
    """Whether it has a part of this run's journal, or an earlier copy of this run began here."""
    sizes: dict[str, int] = field(default_factory=dict)


class _OvertakenError(Exception):
    """A prune deleted a file after the journal was read; the copy begins anew with the journal as it is now."""


def copy_run(
    source: Store,
    target: Store,
    run_name: str,
    *,
    dry_run: bool = False,
    on_plan: Callable[[int, int], None] | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> CopyReport:
    """Copy a run to another remote, verified; called again after an interruption, it goes on where it stopped.

    A run that is live is copied up to the record that was its newest when the copy began.

    Args:
        source: Remote of the run.
        target: Remote to copy to.
        run_name: The run.
        dry_run: Read both sides, refuse what would be refused, and write nothing. Files that are there already are
            then told by their sizes, not by their bytes.
        on_plan: Told the number of files and bytes.
        on_progress: Told of bytes as they move, negative where some have to be sent again; from any thread.

    Raises:
        RunNotFoundError: there is no such run.
        DestinationError: the target has another run of that name, or this run went on there.
        ConfigurationError: both remotes are the same.
        UnfencedStoreError: the target has no put-if-absent.
        DamagedError: bytes of the source differ from its journal; nothing of the journal was copied.
    """
    if source.url.rstrip("/") == target.url.rstrip("/"):
        raise ConfigurationError("both remotes are the same", hint="name another remote to copy to", url=target.url)
    began = time.monotonic()
    for rounds_left in reversed(range(_ROUNDS)):
        copy = _Copy(source, target, run_name, on_progress or (lambda _: None))
        try:
            skipped = copy.run(on_plan) if not dry_run else copy.count_there()
        except _OvertakenError as error:
            if not rounds_left:
                raise DamagedError(
                    f"run {run_name!r} was pruned again and again while it was copied",
                    hint="copy it when less is pruned",
                    url=source.url,
                ) from error
            continue
        return CopyReport(
            run_name=run_name,
            source=source.url,
            target=target.url,
            checkpoints=len(copy.plan.catalogue.checkpoints),
            records=len(copy.plan.hashes),
            files=len(copy.plan.items),
            bytes=sum(item.size_bytes for item in copy.plan.items),
            skipped_files=skipped,
            seconds=time.monotonic() - began,
            dry_run=dry_run,
        )
    raise AssertionError  # the last round returns or raises


class _Copy:
    """One round of a copy."""

    def __init__(self, source: Store, target: Store, run_name: str, on_progress: Callable[[int], None]) -> None:
        self._source, self._target, self._on_progress = source, target, on_progress
        self._layout = RunLayout(run_name)
        self._from, self._to = JournalLog(source, run_name), JournalLog(target, run_name)
        self._marker = self._layout.copy_marker
        self.plan = _read_source(source, self._from)

    def run(self, on_plan: Callable[[int, int], None] | None) -> int:
        """Copy; return how many files were there already."""
        check_store(self._target, self._to, allow_unfenced=False)
        there = self._look_at_target()
        if on_plan:
            on_plan(len(self.plan.items), sum(item.size_bytes for item in self.plan.items))
        self._announce()
        skipped = self._copy_files(there)
        self._check_files()
        self._copy_records(there)
        self._target.delete([self._marker])
        return skipped

    def count_there(self) -> int:
        """How many files are there already, by their sizes.

        Raises:
            DestinationError: the target has something that is not a part of this run.
        """
        there = self._look_at_target()
        return sum(there.sizes.get(item.key) == item.size_bytes for item in self.plan.items)

    # -- what is there ------------------------------------------------------------------------------------------

    def _look_at_target(self) -> _Target:
        """Look what the target has of the run.

        Raises:
            DestinationError: something that is not a part of this run.
        """
        present = self._to.newest_seq()
        head = self._to.find_head()
        last = next(iter(deque(self._to.read_all(up_to=present), maxlen=1)), None)
        if last and is_removal(last.record):
            raise self._refused("it is being removed there", hint="finish with `artifactsync rm RUN --yes` first")
        if present > len(self.plan.hashes) or (last and last.sha256 != self.plan.hashes[present - 1]):
            raise self._refused("another run of that name is there, or this one went on there")
        sizes = {info.key: info.size_bytes for info in self._target.list(self._layout.root)}
        is_ours = bool(present) or (self._marker in sizes and self._is_our_marker())
        if not is_ours:
            self._refuse_strangers(sizes)
        return _Target(visible=head.record.seq if head else 0, present=present, is_ours=is_ours, sizes=sizes)

    def _refuse_strangers(self, sizes: dict[str, int]) -> None:
        planned = {item.key: item.size_bytes for item in self.plan.items}
        for key, size_bytes in sizes.items():
            if not key.startswith(self._layout.house) and planned.get(key) != size_bytes:
                raise self._refused(f"{key} is there already, and is no part of this run")

    def _refused(self, why: str, *, hint: str = "copy to another remote, or remove what is there") -> DestinationError:
        return DestinationError(
            f"cannot copy run {self._layout.run_name!r} to {self._target.url}: {why}", hint=hint, url=self._target.url
        )

    # -- the copy -----------------------------------------------------------------------------------------------

    def _announce(self) -> None:
        """Say which keys are about to be written, so that nobody takes them for artifacts, and whose they are."""
        keys = [item.key[len(self._layout.root) :] for item in self.plan.items if item.sha256]
        self._target.put(self._marker, json.dumps({"keys": keys, "copy_of": self._lineage}).encode())

    @property
    def _lineage(self) -> str | None:
        return self.plan.hashes[0] if self.plan.hashes else None

    def _is_our_marker(self) -> bool:
        try:
            return bool(read_json(self._target.get(self._marker))["copy_of"] == self._lineage)
        except (ObjectNotFoundError, ValueError, KeyError, TypeError):
            return False

    def _copy_files(self, there: _Target) -> int:
        """Copy every file that is not there already; return how many are."""
        with ThreadPoolExecutor(_FILES_AT_A_TIME, "artifactsync-copy") as threads:
            futures = [threads.submit(self._copy_file, item, there) for item in self.plan.items]
            try:
                done, _ = wait(futures, return_when=FIRST_EXCEPTION)
                return sum([future.result() for future in done])
            except BaseException:
                for future in futures:
                    future.cancel()
                raise

    def _copy_file(self, item: _Item, there: _Target) -> bool:
        """Bring one file to the target; return whether it was there already."""
        for rounds_left in reversed(range(_ROUNDS)):
            try:
                if self._is_there(item, there):
                    self._on_progress(item.size_bytes)
                    return True
                body = RelayBody(
                    self._source, item.key, item.size_bytes, sha256=item.sha256, on_progress=self._on_progress
                )
                self._target.put(item.key, body)
            except ObjectNotFoundError as error:  # noqa: PERF203 (three rounds at most)
                self._explain_missing(item, error)
            except DamagedError as error:
                if item.sha256 is None and isinstance(error, MissingBytesError):
                    raise _OvertakenError from error  # an artifact that was replaced by a shorter one
                if not rounds_left:
                    raise
            else:
                return False
        raise AssertionError  # the last round returns or raises

    def _is_there(self, item: _Item, there: _Target) -> bool:
        if there.sizes.get(item.key) != item.size_bytes:
            return False
        wanted = item.sha256 or remote_sha256(self._source, item.key, item.size_bytes)
        if remote_sha256(self._target, item.key, item.size_bytes) == wanted:
            return True
        if not there.is_ours:
            raise self._refused(f"{item.key} is there already, with other bytes")
        return False

    def _explain_missing(self, item: _Item, error: ObjectNotFoundError) -> None:
        """Say why a file of the source is not there any more.

        Raises:
            _OvertakenError: it was pruned, or it is an artifact that somebody deleted.
            MissingBytesError: a live checkpoint lacks it.
        """
        now = _read_source(self._source, self._from)
        if item.key in {other.key for other in now.items if other.sha256}:
            raise MissingBytesError(
                f"{item.key} is missing at the source",
                hint="see `artifactsync verify RUN`; retire the damaged checkpoint with `artifactsync prune`",
                url=f"{self._source.url}/{item.key}",
            ) from error
        raise _OvertakenError from error

    def _check_files(self) -> None:
        """Ask the target for every file of a checkpoint: something may have deleted one meanwhile.

        Raises:
            MissingBytesError: one is not there.
        """
        sizes = {info.key: info.size_bytes for info in self._target.list(self._layout.root)}
        for item in self.plan.items:
            if item.sha256 and sizes.get(item.key) != item.size_bytes:
                raise MissingBytesError(
                    f"{item.key} was copied, and is not there", url=f"{self._target.url}/{item.key}"
                )

    def _copy_records(self, there: _Target) -> None:
        """Copy the records that are not there yet, in order, unchanged."""
        newest = len(self.plan.hashes)
        if there.present < newest:
            self._to.announce_copy(there.visible, newest)
        for seq, key, data in self._records(there.present + 1, newest):
            if hashlib.sha256(data).hexdigest() != self.plan.hashes[seq - 1]:
                raise DamagedError(f"journal record {seq} changed while it was copied", url=f"{self._source.url}/{key}")
            try:
                create_once(self._target, key, data)
            except AlreadyExistsError as error:
                self._to.advise(seq, with_index=False)  # somebody else's: it counts, and nothing of ours is after it
                raise self._refused("somebody claimed the run there in the meantime") from error
        if newest:
            self._to.index.take_along(self._from.index, self.plan.hashes)
            self._to.advise(newest)

    def _records(self, first: int, last: int) -> Iterator[tuple[int, str, bytes]]:
        """Records as they lie at the source, in order; read several at a time, as each is an answer to wait for."""
        for begin in range(first, last + 1, _RECORDS_AT_A_TIME):
            seqs = range(begin, min(begin + _RECORDS_AT_A_TIME, last + 1))
            keys = [self._layout.record(seq) for seq in seqs]
            yield from zip(seqs, keys, in_parallel(self._source.get, keys), strict=True)


def _read_source(source: Store, log: JournalLog) -> _Source:
    """Read the journal, and list what belongs to the run.

    Raises:
        RunNotFoundError: there is no such run.
    """
    layout, hashes = log.layout, list[str]()
    head = log.find_head()
    if head and is_removal(head.record):
        raise _no_such_run(source, layout)

    def records() -> Iterator[Record]:
        for slot in log.read_all(up_to=head.record.seq) if head else ():
            hashes.append(slot.sha256)
            yield slot.record

    catalogue = Catalogue.from_records(records(), run_name=layout.run_name, url=f"{source.url}/{layout.journal}")
    objects = list(source.list(layout.root))
    if not objects:
        raise _no_such_run(source, layout)
    files = {file.key: file for checkpoint in catalogue.checkpoints for file in checkpoint.files}
    hidden = catalogue.keys | announced_keys(source, layout, objects)
    items = [_Item(key=f.key, size_bytes=f.size, sha256=f.sha256) for f in files.values()]
    items += [
        _Item(key=info.key, size_bytes=info.size_bytes, sha256=None)
        for info in objects
        if info.key not in hidden and _is_copied(info, layout)
    ]
    return _Source(catalogue=catalogue, hashes=hashes, items=items)


def _is_copied(info: ObjectInfo, layout: RunLayout) -> bool:
    """Whether an object that no commit names belongs to the run's copy."""
    if not info.key.startswith(layout.house):
        return not info.key.endswith("/")  # the marker of a folder, made by some consoles
    return info.key[len(layout.house) :].startswith(_COPIED_HOUSE_FOLDERS)


def _no_such_run(source: Store, layout: RunLayout) -> RunNotFoundError:
    return RunNotFoundError(
        f"there is no run {layout.run_name!r} at {source.url}",
        hint="see `artifactsync ls` for the runs there",
        url=f"{source.url}/{layout.run_name}",
    )
