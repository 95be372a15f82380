"""Pins: a reader asks that nobody delete the checkpoint that it is reading.

Owns: the pin object, the thread that keeps it fresh, and how a prune judges it. Does not own: what is deleted
(``retire``), what is read (``restore``).

Invariant: a reader pins first and reads the journal after; a prune writes the journal first and looks for pins after.
So at least one of the two sees the other. Whether a pin lives is watched on the observer's own monotonic clock.

One request needs no pin: what is answered comes whole, and until it is answered the reader is no worse off than until a
pin is written. ``pin_unless_over`` writes it once that request takes long, as it may have to be sent again.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from artifactsync.errors import ArtifactSyncError, ObjectNotFoundError
from artifactsync.journal.heartbeat import INTERVAL_S
from artifactsync.journal.untrusted_json import read_json
from artifactsync.journal.writer import WriterIdentity

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from artifactsync.naming.layout import RunLayout
    from artifactsync.stores.protocol import Store

_log = logging.getLogger(__name__)

PATIENCE_INTERVALS = 2.5  # one lost refresh is no death
_SOON_S = 1.0  # a request that takes longer may be one that has to be sent again
_MAX_INTERVAL_S = 60.0  # a hostile pin must not make a prune wait for longer


@dataclass(frozen=True, kw_only=True)
class Pin:
    """One pin as read from the remote."""

    key: str
    """Where it lies."""
    commit: int
    """Number of the commit record of the pinned checkpoint."""
    count: int
    """Grows with every refresh."""
    interval_s: float
    """Seconds after which the reader means to refresh it."""
    writer: WriterIdentity
    """Who reads."""


class PinKeeper:
    """One reader's pin: moved from checkpoint to checkpoint, kept fresh, taken away at the end.

    A role that may read and not write must be able to pull: a pin that cannot be written is left out.

    Args:
        store: The remote.
        layout: The run's keys.
        writer: Who reads; this process unless given.
        interval_s: Seconds between two refreshes.
    """

    def __init__(
        self,
        store: Store,
        layout: RunLayout,
        *,
        writer: WriterIdentity | None = None,
        interval_s: float = INTERVAL_S,
    ) -> None:
        self._store, self._interval_s = store, interval_s
        self._writer = writer or WriterIdentity.of_this_process()
        self._key = layout.pin(uuid.uuid4().hex)
        self._commit: int | None = None
        self._count = 0
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def pin(self, commit: int) -> bool:
        """Pin a checkpoint in the place of the one before; says whether that could be written.

        Args:
            commit: Number of its commit record.
        """
        with self._lock:
            self._commit = commit
            is_written = self._write()
        if is_written:
            self._keep_fresh(self._interval_s)
        return is_written

    def pin_unless_over(self, commit: int, *, after_s: float = _SOON_S) -> None:
        """Pin a checkpoint if it is still being read then: for what is read with one request.

        Args:
            commit: Number of its commit record.
            after_s: Seconds from now.
        """
        with self._lock:
            self._commit = commit
        self._keep_fresh(after_s)

    def refresh(self) -> None:
        """Write the pin once more, so that observers see it move. Failing is harmless."""
        with self._lock:
            if self._commit is not None and not self._stopped.is_set():
                self._write()

    def release(self) -> None:
        """Take the pin away. Failing is harmless: a pin that does not move is not heeded for long."""
        self._stopped.set()
        with self._lock:
            was_written, self._commit = self._count > 0, None
            if was_written:
                try:
                    self._store.delete([self._key])
                except ArtifactSyncError as error:
                    _log.debug("the pin %s was not removed: %s", self._key, error)

    def _write(self) -> bool:
        pin = {
            "commit": self._commit,
            "count": self._count + 1,
            "interval_s": self._interval_s,
            "writer": self._writer.to_json(),
        }
        try:
            self._store.put(self._key, json.dumps(pin).encode())
        except ArtifactSyncError as error:
            _log.debug("the pin %s was not written: %s", self._key, error)
            return False
        self._count += 1
        return True

    def _keep_fresh(self, after_s: float) -> None:
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._refresh_until_stopped, args=(after_s,), name="artifactsync-pin", daemon=True
            )
            self._thread.start()

    def _refresh_until_stopped(self, wait_s: float) -> None:
        while not self._stopped.wait(wait_s):
            self.refresh()
            wait_s = self._interval_s


@contextlib.contextmanager
def keeping_pin(store: Store, layout: RunLayout) -> Iterator[PinKeeper]:
    """A :class:`PinKeeper` that is released at the end."""
    keeper = PinKeeper(store, layout)
    try:
        yield keeper
    finally:
        keeper.release()


def read_pins(store: Store, layout: RunLayout) -> list[Pin]:
    """The pins that lie there, dead ones included. What is no pin is not heeded."""
    found = (_read_pin(store, info.key) for info in store.list(layout.pins))
    return [pin for pin in found if pin is not None]


def living_pins(
    store: Store,
    layout: RunLayout,
    commits: Collection[int],
    *,
    is_patient: bool = True,
    monotonic_s: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> list[Pin]:
    """The pins of these commits whose readers live, as far as can be known from here.

    A neighbour (same machine, same pid namespace) is looked up at once. Anybody else is watched until the pin moves,
    for two and a half of its intervals at most; all of them at the same time.

    Args:
        store: The remote.
        layout: The run's keys.
        commits: Numbers of the commit records that matter.
        is_patient: Watch. Else every pin that is not surely dead is taken for living.
        monotonic_s: Seconds; a test passes its own.
        sleep: Waits that many seconds; a test passes its own.
    """
    pins = [pin for pin in read_pins(store, layout) if pin.commit in commits and not pin.writer.is_surely_dead()]
    if not is_patient:
        return pins
    living = [pin for pin in pins if pin.writer.is_surely_alive()]
    doubtful = [pin for pin in pins if pin not in living]
    began = monotonic_s()
    while doubtful:
        passed_s = monotonic_s() - began
        doubtful = [pin for pin in doubtful if passed_s < PATIENCE_INTERVALS * pin.interval_s]
        if not doubtful:
            break
        sleep(min(1.0, *(pin.interval_s / 2 for pin in doubtful)))
        moved, gone = _watched(store, doubtful)
        living += moved
        doubtful = [pin for pin in doubtful if pin not in moved and pin not in gone]
    return living


def _watched(store: Store, pins: Sequence[Pin]) -> tuple[list[Pin], list[Pin]]:
    """Which of the pins moved, and which were taken away."""
    moved, gone = [], []
    for pin in pins:
        now = _read_pin(store, pin.key)
        if now is None:
            gone.append(pin)
        elif now.count != pin.count:
            moved.append(pin)
    return moved, gone


def _read_pin(store: Store, key: str) -> Pin | None:
    try:
        fields: Any = read_json(store.get(key))
        return Pin(
            key=key,
            commit=int(fields["commit"]),
            count=int(fields["count"]),
            interval_s=min(max(float(fields["interval_s"]), 0.0), _MAX_INTERVAL_S),
            writer=WriterIdentity.from_json(fields["writer"]),
        )
    except (ObjectNotFoundError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return None
