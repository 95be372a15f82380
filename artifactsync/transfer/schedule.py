"""Which upload runs next.

Owns: order per key, replacement, back-off times, the shares of big and small files, and the precedence of urgent ones
(of checkpoints). Does not own: threads or locks (``queue`` holds its lock around every call), nor what a failure means
(``patience``).

Invariants: at most one upload of a key runs at a time, and uploads of a key run in the order of their submission; a
key keeps its place in the line when its waiting upload is replaced, so that a file submitted at every step does get
its turn. No other upload begins while an urgent one could.
"""

from __future__ import annotations

import heapq
from collections import deque
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from artifactsync.transfer.upload import Upload

BIG_BYTES = 32 * 1024 * 1024
"""From this length on a file counts as big: one that keeps a worker busy for a second or so at 32 MiB/s."""

_State = Literal["ready", "delayed", "running"]


class _Line:
    """Keys that could run now, the big ones apart, so that neither kind starves the other."""

    def __init__(self) -> None:
        self.small: deque[str] = deque()
        self.big: deque[str] = deque()
        self._was_big = False

    def __len__(self) -> int:
        return len(self.small) + len(self.big)

    def take(self, *, may_big: bool, is_first_big: bool) -> str | None:
        """The next key: of both kinds a big one first if none is running, else turn by turn."""
        may_big = may_big and bool(self.big)
        if may_big and self.small:
            self._was_big = is_first_big or not self._was_big
            may_big = self._was_big
        if may_big:
            return self.big.popleft()
        return self.small.popleft() if self.small else None


class Schedule:
    """The uploads that are not settled, by key.

    Args:
        max_running: How many uploads run at a time.
        keeps_room: Whether some of them, at least one where there are several, are for urgent uploads alone: what
            runs is not interrupted, and a checkpoint must not wait until a large file is through.
    """

    def __init__(self, max_running: int, *, keeps_room: bool = False) -> None:
        self._is_alone = max_running == 1
        self._big_limit = max_running if max_running == 1 else max_running - max(1, max_running // 4)
        self._plain_limit = self._big_limit if keeps_room else max_running
        self._lanes: dict[str, deque[Upload]] = {}
        self._states: dict[str, _State] = {}
        self._urgent, self._plain = _Line(), _Line()
        self._delayed: list[tuple[float, int, str]] = []
        self._running_big: set[str] = set()
        self._running_small: set[str] = set()
        self._running_plain: set[str] = set()
        self._order = 0

    def add(self, upload: Upload) -> list[Upload]:
        """Put an upload in line and return the waiting ones that it replaces.

        A create-only upload (``overwrite=False``) replaces none: its outcome depends on the ones before it.
        """
        lane = self._lanes.setdefault(upload.key, deque())
        replaced: list[Upload] = []
        if upload.overwrite:
            first_waiting = 1 if self._states.get(upload.key) == "running" else 0
            while len(lane) > first_waiting:
                replaced.append(lane.pop())
        lane.append(upload)
        if upload.key not in self._states:
            self._make_ready(upload.key)
        return replaced

    def take(self) -> Upload | None:
        """Return an upload to run now, None if there is none. It runs until ``finish`` or ``postpone``."""
        while (key := self._next_key()) is not None:
            lane = self._lanes.get(key)
            if not lane:
                self._forget(key)
                continue
            self._states[key] = "running"
            (self._running_big if _is_big(lane[0]) else self._running_small).add(key)
            if not lane[0].is_urgent:
                self._running_plain.add(key)
            return lane[0]
        return None

    def take_quick(self) -> Upload | None:
        """Return the next upload if it is a quick one, to run beside others of the same worker, in its share."""
        line = self._urgent if len(self._urgent) else self._plain
        while line.small:
            lane = self._lanes.get(line.small[0])
            if lane and not lane[0].is_quick:
                return None
            key = line.small.popleft()
            if lane:
                self._states[key] = "running"
                self._running_small.add(key)
                return lane[0]
            self._forget(key)
        return None

    def finish(self, upload: Upload) -> None:
        """The running upload is settled: the next one of its key may run."""
        self._stop(upload)
        self._lanes[upload.key].popleft()
        if self._lanes[upload.key]:
            self._make_ready(upload.key)
        else:
            self._forget(upload.key)

    def postpone(self, upload: Upload, until_s: float) -> None:
        """The running upload is tried again at ``until_s``, or its replacement is, if there is one by now."""
        self._stop(upload)
        self._states[upload.key] = "delayed"
        self._order += 1
        heapq.heappush(self._delayed, (until_s, self._order, upload.key))

    def replacement(self, upload: Upload) -> Upload | None:
        """Drop the running upload for a newer one of its key, if one waits that may take its place."""
        lane = self._lanes[upload.key]
        if len(lane) > 1 and lane[1].overwrite:
            lane.popleft()
            return lane[0]
        return None

    def wake(self, now_s: float) -> float | None:
        """Make ready what is due, and return when the next one is, None if nothing is delayed."""
        while self._delayed and self._delayed[0][0] <= now_s:
            _, _, key = heapq.heappop(self._delayed)
            if self._states.get(key) == "delayed":
                self._make_ready(key)
        return self._delayed[0][0] if self._delayed else None

    def hurry(self) -> None:
        """Make everything that is delayed due at once."""
        self._delayed = [(float("-inf"), order, key) for _, order, key in self._delayed]
        heapq.heapify(self._delayed)

    def remove(self, upload: Upload) -> bool:
        """Take a waiting upload out of the line; False if it is running or gone."""
        lane = self._lanes.get(upload.key)
        if not lane or (lane[0] is upload and self._states[upload.key] == "running"):
            return False
        if upload not in lane:
            return False
        lane.remove(upload)
        return True

    def pending(self) -> list[Upload]:
        """All uploads that are not settled."""
        return [upload for lane in self._lanes.values() for upload in lane]

    @property
    def running_count(self) -> int:
        """How many are running."""
        return len(self._running_big) + len(self._running_small)

    def running(self) -> list[Upload]:
        """Those that are running."""
        return [self._lanes[key][0] for key in (*self._running_big, *self._running_small)]

    def __len__(self) -> int:
        return sum(len(lane) for lane in self._lanes.values())

    @property
    def ready(self) -> int:
        """About how many keys could run at once if there were workers."""
        return len(self._urgent) + len(self._plain)

    def _next_key(self) -> str | None:
        """An urgent one if there is any, else one of the others."""
        may_big = len(self._running_big) < self._big_limit
        is_first = not self._running_big and not self._is_alone
        key = self._urgent.take(may_big=may_big, is_first_big=is_first)
        if key is None and len(self._running_plain) < self._plain_limit:
            key = self._plain.take(may_big=may_big, is_first_big=is_first)
        return key

    def _make_ready(self, key: str) -> None:
        self._states[key] = "ready"
        lane = self._lanes[key]
        line = self._urgent if lane and lane[0].is_urgent else self._plain
        (line.big if lane and _is_big(lane[0]) else line.small).append(key)

    def _stop(self, upload: Upload) -> None:
        self._running_big.discard(upload.key)
        self._running_small.discard(upload.key)
        self._running_plain.discard(upload.key)

    def _forget(self, key: str) -> None:
        self._states.pop(key, None)
        self._lanes.pop(key, None)


def _is_big(upload: Upload) -> bool:
    return upload.size_bytes >= BIG_BYTES
