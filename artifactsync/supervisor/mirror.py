"""Files that are no checkpoints: mirrored when they are finished, logs as they grow.

Owns: when a file is sent again. Does not own: how only the new part of a log is sent (``transfer.tail``).

Invariant: what a file costs is bounded by what it has to say. Of a log each byte is sent once; a file that is rewritten
again and again waits twice as long each time, so that a thousand versions are ten uploads. The last one is always sent.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from artifactsync.errors import AlreadyExistsError, ArtifactSyncError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from artifactsync.run import Pushed, Run
    from artifactsync.supervisor.tree import Seen, Tree

_LOG_SUFFIXES = (".log", ".txt", ".jsonl", ".ndjson", ".csv", ".tsv", ".out", ".err")
_EVENTS = "tfevents"
_MAX_IN_FLIGHT = 256  # uploads that wait in the queue; the rest waits here, at a fraction of the memory
_MIN_S, _MAX_S = 5.0, 60.0  # between two pushes of a log
_REWRITTEN_MAX_S = 600.0
_MAX_FAILURES = 3  # of one version for good; the queue has tried each for hours
_COST_SHARE = 20.0  # a file that took one second to send is not sent again for so many
_SENT_SHARE = 20.0  # a log of an hour is sent every so-manyth part of its age: three minutes, bounded by _MAX_S

_log = logging.getLogger(__name__)


def is_log(path: str) -> bool:
    """Whether a file is taken for one that is only appended to."""
    return path.endswith(_LOG_SUFFIXES) or _EVENTS in path.rpartition("/")[2]


@dataclass(eq=False)
class _Copy:
    """What is known of a mirrored file."""

    first_at: float
    seen: Seen | None = None
    """As it was when it was sent last."""
    next_at: float = 0.0
    sent_at: float = 0.0
    rewritten: int = 0
    failures: int = 0
    upload: Pushed | None = None
    is_growing: bool = False


class Mirror:
    """Sends what a command writes beside its checkpoints.

    Args:
        run: Open for writing, or for reading where another process owns it.
        tree: Where the files are.
        settle_s: How long a file that is no log must have been left alone.
        is_owner: Whether the run is open for writing: only then a log is sent piece by piece.
    """

    def __init__(self, run: Run, tree: Tree, *, settle_s: float, is_owner: bool = True) -> None:
        self._run, self._tree, self._settle_s, self._is_owner = run, tree, settle_s, is_owner
        self._copies: dict[str, _Copy] = {}
        self._waiting: dict[str, Seen] = {}
        self._in_flight: dict[str, _Copy] = {}
        self._refused: set[str] = set()
        self._failed: set[str] = set()
        self.durable_files = 0
        """Files of which some version is on the remote."""
        self.last_error: str | None = None

    def changed(self, path: str, seen: Seen) -> None:
        """A file is new, or was written to."""
        if path not in self._refused:
            self._failed.discard(path)
            self._waiting[path] = seen

    def adopt(self, seen: Mapping[str, Seen], now: float) -> None:
        """Take files for what is on the remote already."""
        for path, found in seen.items():
            self._copies[path] = _Copy(first_at=now, seen=found, is_growing=is_log(path))

    def gone(self, paths: Collection[str]) -> None:
        """Files were removed: what is on the remote stays there."""
        for path in paths:
            self._waiting.pop(path, None)

    def look(self, changed_at: Mapping[str, float], now: float, *, is_dead: bool = False) -> None:
        """Send what is due; everything if the command has ended."""
        self._settle(now)
        for path in list(self._waiting):
            if len(self._in_flight) >= _MAX_IN_FLIGHT:
                return
            copy = self._copies.setdefault(path, _Copy(first_at=now))
            if path in self._in_flight or (now < copy.next_at and not is_dead):
                continue
            seen = self._waiting[path]
            is_same = copy.seen is not None and copy.seen.inode == seen.inode
            has_grown = is_same and copy.seen is not None and (copy.is_growing or copy.seen.size < seen.size)
            copy.is_growing = self._is_owner and (is_log(path) or has_grown)
            quiet_s = now - changed_at.get(path, 0.0)
            if not (copy.is_growing or is_dead or quiet_s >= self._settle_s):
                continue
            self._push(path, copy, seen, now)

    @property
    def pending_files(self) -> int:
        """Files of which the newest version is not durable."""
        return len(self._waiting.keys() | self._in_flight.keys() | self._failed)

    @property
    def is_idle(self) -> bool:
        """Whether all that was seen is durable, or failed for good."""
        return not self._waiting and not self._in_flight

    def give_up(self) -> None:
        """What was on its way was taken back: it is to be sent again."""
        for path, copy in self._in_flight.items():
            if copy.seen is not None:
                self._waiting.setdefault(path, copy.seen)
        self._in_flight.clear()

    def settle(self, now: float) -> None:
        """Take note of what became durable."""
        self._settle(now)

    def _push(self, path: str, copy: _Copy, seen: Seen, now: float) -> None:
        del self._waiting[path]
        try:
            copy.upload = self._run.push(self._tree.local(path), path, growing=copy.is_growing)
        except NotFoundError:  # removed meanwhile
            return
        except AlreadyExistsError as error:  # a checkpoint has its bytes there
            self._refused.add(path)
            _log.debug("%s", error)
            return
        is_rewritten = copy.seen is not None and not copy.is_growing
        copy.rewritten += is_rewritten
        copy.seen, copy.sent_at = seen, now
        self._in_flight[path] = copy

    def _settle(self, now: float) -> None:
        for path, copy in list(self._in_flight.items()):
            assert copy.upload is not None, "it is in flight"
            if not copy.upload.done():
                continue
            del self._in_flight[path]
            try:
                copy.upload.result(0)
            except ArtifactSyncError as error:
                self.last_error = str(error)
                copy.failures += 1
                copy.next_at = now + _MAX_S
                if copy.failures < _MAX_FAILURES and copy.seen is not None:
                    self._waiting.setdefault(path, copy.seen)
                elif path not in self._waiting:
                    self._failed.add(path)
                    _log.warning("%s is not mirrored: %s", path, error)
                continue
            copy.failures = 0
            tail = copy.upload.uploads[0].tail
            if tail is not None:
                copy.rewritten = max(copy.rewritten, tail.generation[1] - 1)
            self.durable_files += copy.next_at == 0.0
            took_s = now - copy.sent_at
            if copy.is_growing and not copy.rewritten:
                pause_s = min(_MAX_S, max(_MIN_S, (now - copy.first_at) / _SENT_SHARE))
            else:
                pause_s = min(_REWRITTEN_MAX_S, self._settle_s * 2 ** min(copy.rewritten, 20))
            copy.next_at = now + max(pause_s, _COST_SHARE * took_s if copy.rewritten else 0.0)
