"""What readers may use and nobody needs, written behind the commits.

Owns: ``head.json``, the ``latest`` link, the deletion of intents, and the thread that does it. Does not own: the truth,
which is the journal (``log``).

Invariant: no commit, and no end of a run, waits for any of it: it is tried with the store's ordinary patience, on a
thread of its own, the newest only, and given up with the process.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING

from artifactsync.errors import ArtifactSyncError
from artifactsync.journal.worker import SerialWorker

if TYPE_CHECKING:
    from collections.abc import Iterable

    from artifactsync.journal.catalogue import Checkpoint
    from artifactsync.journal.log import JournalLog

_log = logging.getLogger(__name__)


class Advisor:
    """Writes advice of one run, one piece after the other. Thread-safe.

    Args:
        log: The run's journal, on a store that gives a request up soon.
    """

    def __init__(self, log: JournalLog) -> None:
        self._journal = log
        self._worker: SerialWorker[None] = SerialWorker("artifactsync-advise")
        self._lock = threading.Lock()
        self._seq = 0
        self._latest: Checkpoint | None = None
        self._intents: list[str] = []
        self._last: Future[None] | None = None

    def advise(self, seq: int, *, latest: Checkpoint | None = None, intents: Iterable[str] = ()) -> None:
        """Have it written behind; returns at once.

        Args:
            seq: Number of the newest record.
            latest: The checkpoint that a resume takes now, if that is another one than before.
            intents: Keys of intents that are not needed any more.
        """
        with self._lock:
            self._seq = max(seq, self._seq)
            self._latest = latest or self._latest
            self._intents += intents
        with contextlib.suppress(RuntimeError):  # closed meanwhile
            self._last = self._worker.submit(self._write)

    def close(self, timeout_s: float) -> None:
        """Take no more, and wait a moment for what is under way; it ends with the process at the latest."""
        self._worker.close()
        if self._last is not None:
            wait([self._last], timeout_s)

    def _write(self) -> None:
        """Write what came since the last time; nothing if a call before this one has done so."""
        with self._lock:
            seq, self._seq = self._seq, 0
            latest, self._latest = self._latest, None
            intents, self._intents = self._intents, []
        if seq:
            self._journal.advise(seq)
        store, layout = self._journal.store, self._journal.layout
        try:
            for file in latest.files if latest else ():
                folder, _, name = file.path.rpartition("/")
                stem, _, suffix = name.rpartition(".")
                if stem.endswith("-rank0") and suffix in {"pt", "safetensors"}:
                    link = f"latest-rank0.{suffix}.symlink"
                    link = f"{folder}/{link}" if folder else link
                    store.put(layout.artifact(link), file.key.encode())
            if intents:
                store.delete(intents)
        except ArtifactSyncError as error:
            _log.debug("advisory objects of %s were not written: %s", layout.run_name, error)
