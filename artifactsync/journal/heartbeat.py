"""The advisory sign of life of a run's writer, and how an observer judges it.

Owns: the heartbeat object, and the thread that writes it. Does not own: ownership of the run, which is a claim record
alone; a wrong judgement here costs politeness, never a committed byte.

Invariant: whether a heartbeat moves is watched on the observer's own monotonic clock; wall clocks are never compared.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from artifactsync.errors import ArtifactSyncError, ObjectNotFoundError
from artifactsync.journal.untrusted_json import read_json
from artifactsync.journal.writer import WriterIdentity

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from artifactsync.naming.layout import RunLayout
    from artifactsync.stores.protocol import Store

INTERVAL_S = 10.0
"""Seconds between heartbeats: 720 small requests an hour, and an observer elsewhere knows after 25 s."""

_PATIENCE_INTERVALS = 2.5  # one lost heartbeat is no death


@dataclass(frozen=True, kw_only=True)
class Heartbeat:
    """One heartbeat as read from the remote."""

    attempt: int
    """The attempt that wrote it."""
    count: int
    """Grows with every heartbeat of the attempt."""
    interval_s: float
    """Seconds after which the writer means to write the next one."""
    writer: WriterIdentity
    """Who wrote it."""
    gauge: Mapping[str, Any] = field(default_factory=dict)
    """What the writer said of its backlog: the fields of ``RunStatus``."""


class Heart:
    """Writes heartbeats in the background until stopped.

    Args:
        store: The remote.
        layout: The run's keys.
        attempt: The attempt that lives.
        writer: Who it is.
        gauge: Called for each heartbeat; says how the backlog stands.
        interval_s: Seconds between two.
    """

    def __init__(
        self,
        store: Store,
        layout: RunLayout,
        *,
        attempt: int,
        writer: WriterIdentity,
        gauge: Callable[[], dict[str, Any]],
        interval_s: float = INTERVAL_S,
    ) -> None:
        self._store, self._layout = store, layout
        self._attempt, self._writer, self._gauge, self._interval_s = attempt, writer, gauge, interval_s
        self._count = 0
        self._stopped = threading.Event()
        self._on_later: Callable[[], None] = lambda: None
        self._thread = threading.Thread(target=self._beat_until_stopped, name="artifactsync-heart", daemon=True)

    def start(self, on_later: Callable[[], None] = lambda: None) -> None:
        """Write the first heartbeat soon, and more until ``stop``, or until one of a later attempt is there.

        Args:
            on_later: Called then, once, on the heart's thread: this attempt is not to be taken for the living one.
        """
        self._on_later = on_later
        self._thread.start()

    def stop(self) -> None:
        """Write no more, and wait for the one that is on its way."""
        self._stopped.set()
        self._thread.join(timeout=2.0)  # one request that hangs must not hold up the end

    def beat(self) -> None:
        """Write one heartbeat now. Failing is harmless: it is advisory."""
        self._count += 1
        data = {
            "attempt": self._attempt,
            "count": self._count,
            "interval_s": self._interval_s,
            "writer": self._writer.to_json(),
            "gauge": self._gauge(),
        }
        try:
            self._store.put(self._layout.heartbeat, json.dumps(data).encode())
        except ArtifactSyncError:
            return

    def _beat_until_stopped(self) -> None:
        self.beat()
        while not self._stopped.wait(self._interval_s):
            if self._is_later_alive():
                with contextlib.suppress(ArtifactSyncError):  # whoever asks the journal may not reach it
                    self._on_later()
                return
            self.beat()

    def _is_later_alive(self) -> bool:
        try:
            found = read_heartbeat(self._store, self._layout)
        except ArtifactSyncError:
            return False
        return found is not None and found.attempt > self._attempt


def read_heartbeat(store: Store, layout: RunLayout) -> Heartbeat | None:
    """Return the newest heartbeat, or None if there is none that can be read."""
    try:
        fields = read_json(store.get(layout.heartbeat))
        return Heartbeat(
            attempt=int(fields["attempt"]),
            count=int(fields["count"]),
            interval_s=min(float(fields["interval_s"]), 60.0),
            writer=WriterIdentity.from_json(fields["writer"]),
            gauge=dict(fields.get("gauge") or {}),
        )
    except (ObjectNotFoundError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return None


def is_alive(
    store: Store,
    layout: RunLayout,
    *,
    attempt: int,
    writer: WriterIdentity,
    monotonic_s: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> bool:
    """Whether the writer of ``attempt`` still lives, as far as can be known from here.

    A neighbour (same machine, same pid namespace) is looked up at once. Anybody else is watched until the heartbeat
    moves, or for two and a half of its intervals.
    """
    if writer.is_surely_alive():
        return True
    if writer.is_surely_dead():
        return False
    first = read_heartbeat(store, layout)
    if first is None or first.attempt != attempt:
        return False
    give_up_at = monotonic_s() + _PATIENCE_INTERVALS * first.interval_s
    while monotonic_s() < give_up_at:
        sleep(min(1.0, first.interval_s / 2))
        now = read_heartbeat(store, layout)
        if now is not None and now.attempt == attempt and now.count != first.count:
            return True
    return False
