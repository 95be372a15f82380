"""One checkpoint from several ranks: what each rank's publication does, between its files and the one commit.

Rank 0 publishes as ever (``publication``), and before its commit gathers the parts of the others. A rank above 0
uploads its files, delivers its part, and waits for the word of the journal.

Owns: ``Membership``, the other ranks' view of the attempt that rank 0 claimed; ``Gatherings``, which rank 0 publishes
with. Does not own: what the others publish with (``part_publisher``), part records (``parts``), the commit
(``attempt``).

Invariant: rank 0 alone writes the journal. Nobody waits for a rank without a limit, and nobody waits in a collective.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from artifactsync.errors import RunFencedError, WaitTimeoutError
from artifactsync.journal.catalogue import after
from artifactsync.journal.log import JournalLog, fenced, is_removal
from artifactsync.journal.parts import (
    Gathering,
    clean_up,
    confirm,
    gather,
    merged,
    tell_outcome,
)
from artifactsync.journal.writer import WriterIdentity

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from artifactsync.journal.attempt import Attempt
    from artifactsync.journal.catalogue import Catalogue, Checkpoint, CheckpointFile
    from artifactsync.journal.publication import Label, LocalFile, PendingCheckpoint
    from artifactsync.journal.record import Record
    from artifactsync.stores.protocol import Store

_FIRST_LOOK_S = 0.05
_SLOWEST_LOOK_S = 2.0
TELL_S = 5.0
"""Seconds that a word to the other ranks may take which they can do without."""


@dataclass(frozen=True, kw_only=True)
class Contribution:
    """What a save says and does besides its files, where several ranks save together."""

    detail: Callable[[], Any] = lambda: None
    """Ranks above 0: more for rank 0, as JSON; asked once the rank's files are written."""
    complete: Callable[[Mapping[int, Any]], Sequence[LocalFile]] = lambda _: ()
    """Rank 0: writes the files that need every rank's detail, by rank."""


class Membership:
    """The attempt that rank 0 claimed, as another rank of the same launch follows it. Thread-safe.

    Args:
        log: The run's journal.
        number: Number of the attempt.
        claim_id: ``write_id`` of its claim.
        claim_seq: Number of the claim record.
    """

    is_finished = True  # nothing of the end is left to this rank: rank 0 writes it down

    def __init__(self, log: JournalLog, *, number: int, claim_id: str, claim_seq: int) -> None:
        self._log, self._seq = log, claim_seq
        self._lock = threading.Lock()
        self._changing = threading.Lock()  # held for moments: where this is and the catalogue go together
        self._fenced: RunFencedError | None = None
        self._catalogue: Catalogue | None = None
        self.number, self.claim_id, self.claim_seq = number, claim_id, claim_seq
        self.writer = WriterIdentity.of_this_process()

    @property
    def catalogue(self) -> Catalogue:
        """What the journal says; read when it is first asked for, and kept up by ``follow`` from then on."""
        while (known := self._catalogue) is None:
            read = self._log.read_catalogue()
            with self._changing:
                if read.seq >= self._seq:  # else it was overtaken while it was read
                    self._catalogue = read
        return known

    @property
    def known_catalogue(self) -> Catalogue | None:
        """The same if it was read by now; asks nobody."""
        return self._catalogue

    def read_catalogue(self, log: JournalLog) -> Catalogue:  # noqa: ARG002 - as of an Attempt
        """The same."""
        return self.catalogue

    def latest(self) -> Checkpoint | None:
        """The checkpoint that a resume takes."""
        return self.catalogue.latest()

    @property
    def durable_step(self) -> int | None:
        """Step of that checkpoint."""
        latest = self.latest()
        return latest.step if latest else None

    def use(self, log: JournalLog) -> None:
        """Read through another view of the same journal from now on."""
        self._log = log

    def check(self) -> None:
        """Do nothing while the attempt owns the run, as far as is known here.

        Raises:
            RunFencedError: a later attempt was met.
        """
        if self._fenced:
            raise self._fenced

    def follow(self) -> list[Record]:
        """Records that were appended since the last call.

        Raises:
            RunFencedError: a later attempt owns the run.
        """
        found: list[Record] = []
        with self._lock:
            while (slot := self._log.read(self._seq + 1)) is not None:
                if slot.record.attempt != self.number or is_removal(slot.record):
                    self._fenced = fenced(self._log.layout.run_name, slot.record, url=self._log.store.url)
                    break
                self._take_in(slot.record)
                found.append(slot.record)
        if not found:
            self.check()
        return found

    def _take_in(self, record: Record) -> None:
        with self._changing:
            known, self._seq = self._catalogue, record.seq
            if known is not None and known.seq < record.seq:  # else it was read later than this is followed
                run_name, url = self._log.layout.run_name, self._log.store.url
                self._catalogue = after(known, record, run_name=run_name, url=url)

    def finish(self, state: str) -> None:
        """Rank 0 does it."""


class Gatherings:
    """Rank 0: counts the saves, and gathers for each.

    Args:
        attempt: The attempt that this process holds.
        log: The run's journal.
        store: The remote.
        world_size: How many ranks save together.
        timeout_s: Seconds to wait for the other ranks once rank 0's own files are durable.
    """

    def __init__(self, attempt: Attempt, *, log: JournalLog, store: Store, world_size: int, timeout_s: float) -> None:
        self._attempt, self._layout, self._store = attempt, log.layout, store
        self._world_size, self._timeout_s = world_size, timeout_s
        self._number = 0

    def begin(self, label: Label) -> Gathering:
        """The next gathering; every rank calls it once for each save, in the same order."""
        self._number += 1
        return Gathering(
            attempt=self._attempt.number,
            claim_id=self._attempt.claim_id,
            number=self._number,
            name=label.name,
            step=label.step,
            world_size=self._world_size,
        )

    def gather(
        self, gathering: Gathering, contribution: Contribution
    ) -> tuple[Sequence[LocalFile], Sequence[CheckpointFile]]:
        """Wait for the others: files that rank 0 still has to send, and theirs, which are there.

        Raises:
            WaitTimeoutError, NotDurableError: a rank did not deliver; it is named.
            MissingBytesError, DamagedError: what it delivered is not so.
        """
        parts = gather(self._store, self._layout, gathering, timeout_s=self._timeout_s, attempt=self._attempt)
        files = merged({rank: part.files for rank, part in parts.items()}, self._store.url)
        confirm(self._store, files)
        return contribution.complete({rank: part.detail for rank, part in parts.items()}), files

    def watch(self, gathering: Gathering, pending: PendingCheckpoint) -> None:
        """Once it is committed, delete the part records; if not, tell the others."""
        pending._future.add_done_callback(lambda _: self._settle(gathering, pending))  # noqa: SLF001  (of this room)

    def _settle(self, gathering: Gathering, pending: PendingCheckpoint) -> None:
        error = pending.exception(0)
        if error is None:
            within(TELL_S, lambda: clean_up(self._store, self._layout, gathering))
        elif not isinstance(error, RunFencedError):  # then they see it in the journal
            within(TELL_S, lambda: tell_outcome(self._store, self._layout, gathering, reason=str(error)))


def within(limit_s: float, call: Callable[[], object], *, what: str = "") -> None:
    """Call on a thread of its own, and wait no longer than so many seconds: the store behind it is patient.

    Raises:
        WaitTimeoutError: it takes longer; silent, as are its errors, where ``what`` is not given.
    """
    failed: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:  # noqa: BLE001 - raised below
            failed.append(error)

    thread = threading.Thread(target=run, name="artifactsync-limit", daemon=True)
    thread.start()
    thread.join(limit_s)
    if not what:
        return
    if failed:
        raise failed[0]
    if thread.is_alive():
        raise WaitTimeoutError(f"{what} could not be written within {limit_s:g} s", hint="see whether the remote is up")
