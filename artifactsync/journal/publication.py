"""Publication: files of a checkpoint become durable, are verified, and then visible, in that order.

Owns: the order of upload, verification and commit, the choice of keys, and which checkpoint goes first. Does not own:
what a caller hands over and waits for (``pending``), how bytes move (``transfer``), the commit itself (``attempt``).

Invariants: a commit record is appended only after the store has confirmed the size of every file that it names; no
key that any commit has named is ever written again. One checkpoint is published at a time, of those that wait that of
the greatest step; one of which nothing gets through gives way to a newer one. That an older one is committed after it
harms nobody: a reader takes the greatest (attempt, step), never the newest record.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from artifactsync.errors import (
    ArtifactSyncError,
    ConfigurationError,
    DamagedError,
    MissingBytesError,
    ObjectNotFoundError,
    UploadError,
    WaitTimeoutError,
)
from artifactsync.journal.advice import Advisor
from artifactsync.journal.attempt import KeysRetiredError
from artifactsync.journal.catalogue import Checkpoint, CheckpointFile
from artifactsync.journal.line import GaveWayError, Line
from artifactsync.journal.pending import (
    Label,
    LocalFile,
    PendingCheckpoint,
    SupersededError,
    check_unchanged,
    local_files,
)
from artifactsync.journal.retention import would_keep
from artifactsync.journal.reuse import KnownBytes, copy_within, reuse
from artifactsync.journal.timing import SaveTiming
from artifactsync.naming.layout import RunLayout, check_relative, sibling
from artifactsync.stores.retry import RetryStore
from artifactsync.transfer.failures import release_frames

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from artifactsync.journal.attempt import Attempt
    from artifactsync.journal.log import JournalLog
    from artifactsync.journal.retention import RetentionPolicy
    from artifactsync.stores.protocol import Store
    from artifactsync.transfer.queue import UploadQueue
    from artifactsync.transfer.upload import Upload, UploadedFile

__all__ = ["Label", "LocalFile", "PendingCheckpoint", "Publisher", "local_files"]

_log = logging.getLogger(__name__)

_LOOK_S = 0.5  # how often it is asked whether an upload that fails holds a newer checkpoint up
_CLOSING_S = 1.0  # what a run that closes waits for its advisory writes at most


@dataclass(kw_only=True)
class _SoFar:
    """How far a checkpoint had come when it gave way."""

    files: list[LocalFile] | None = None
    """Once they are prepared."""
    keys: dict[str, str] = field(default_factory=dict)
    """Where the file of each path goes that is sent: announced already."""
    uploads: dict[str, Upload] = field(default_factory=dict)
    """What went on, by path."""
    intents: list[str] = field(default_factory=list)


class Publisher:
    """Publishes checkpoints of one attempt, one at a time, on a thread of its own.

    Args:
        attempt: The right to commit.
        log: The run's journal, for what is written behind the commits: on a store that gives a request up soon.
        queue: Uploads to the remote's root.
        store: The remote. If it is a ``RetryStore``, its pauses end when a newer checkpoint waits.
        retention: What it would remove at once is not sent when a newer checkpoint is durable already; None sends all.
        after_commit: Called on the publication thread after each commit: retention. Its failures are logged, and are
            no failures of the checkpoint.
    """

    def __init__(
        self,
        attempt: Attempt,
        *,
        log: JournalLog,
        queue: UploadQueue,
        store: Store,
        retention: RetentionPolicy | None = None,
        after_commit: Callable[[], object] | None = None,
    ) -> None:
        self._attempt, self._queue, self._store = attempt, queue, store
        self._asking = store.pausing(self._pause) if isinstance(store, RetryStore) else store
        self._retention = retention
        self._after_commit = after_commit
        self._layout: RunLayout = log.layout
        self._line: Line[Checkpoint] = Line("artifactsync-publish")
        self._advisor = Advisor(log)
        self._has_stepped_aside = False
        self._lock = threading.Lock()
        self._pending: list[PendingCheckpoint] = []
        self._running: tuple[Label, _SoFar] | None = None
        self._intents = 0
        self._used: set[str] = set()
        self._known = KnownBytes()

    def submit(
        self,
        prepare: Callable[[], Sequence[LocalFile]],
        label: Label,
        *,
        gather: Callable[[], tuple[Sequence[LocalFile], Sequence[CheckpointFile]]] | None = None,
    ) -> PendingCheckpoint:
        """Enqueue a checkpoint; returns at once.

        Args:
            prepare: Called once, on the publication thread; writes what is not yet on disk, and says which files there
                are.
            label: What it is called.
            gather: Called there too, once these are durable, where other ranks contribute: more files of this rank,
                and files of others, which are durable already.

        Raises:
            RunFencedError: this attempt has lost the run.
        """
        self._attempt.check()
        timing, so_far = SaveTiming(), _SoFar()
        future = self._line.submit(
            lambda: self._publish_and_prune(prepare, label, timing, gather, so_far), rank=label.step
        )
        pending = PendingCheckpoint(label, future, timing)
        with self._lock:
            self._pending = [p for p in self._pending if not p.done() or _has_failed(p)]
            self._pending.append(pending)
        return pending

    def uses(self, key: str) -> bool:
        """Whether a checkpoint, committed or on its way, has its bytes at ``key``."""
        return self.is_sending(key) or key in self._attempt.catalogue.keys

    def is_sending(self, key: str) -> bool:
        """Whether a checkpoint of this process has its bytes at ``key``, or is about to; asks nobody."""
        return key in self._used

    def pending(self) -> list[PendingCheckpoint]:
        """Checkpoints that are on their way."""
        with self._lock:
            return [p for p in self._pending if not p.done()]

    def failures(self) -> list[BaseException]:
        """What made checkpoints fail that nobody has been told of yet by ``take_failures``."""
        with self._lock:
            return [e for p in self._pending if _has_failed(p) and (e := p.exception()) is not None]

    def take_failures(self) -> list[BaseException]:
        """``failures``, which are then regarded as told."""
        failures = self.failures()
        with self._lock:
            self._pending = [p for p in self._pending if not p.done()]
        return failures

    def make_way(self) -> None:
        """Give everything up that is on its way but the checkpoint of the greatest step, which has the line for itself.

        What is given up fails, and can be submitted again.
        """
        pending = self.pending()
        newest = max(pending, key=lambda p: p.label.step, default=None)
        for other in pending:
            if other is not newest:
                other.cancel()
        running = self._running
        is_newest = running is not None and newest is not None and running[0] is newest.label
        self._queue.give_up_all_but(list(running[1].uploads.values()) if running and is_newest else [])

    def close(self) -> None:
        """Accept no more; what has begun goes on in the background, what has not is cancelled."""
        self._line.close()
        self._advisor.close(_CLOSING_S)

    def advise(self) -> None:
        """Point readers to the journal's newest record, behind."""
        self._advisor.advise(self._attempt.catalogue.seq)

    def _publish(
        self,
        prepare: Callable[[], Sequence[LocalFile]],
        label: Label,
        timing: SaveTiming,
        gather: Callable[[], tuple[Sequence[LocalFile], Sequence[CheckpointFile]]] | None,
        so_far: _SoFar,
    ) -> Checkpoint:
        """Publish; called again where it gave way.

        Raises:
            GaveWayError: a newer checkpoint waits, and goes first.
        """
        self._attempt.check()
        if gather is None:  # else other ranks would take it for a failure of theirs
            self._refuse_superseded(label)
        if so_far.files is None:
            so_far.files = sorted(prepare(), key=lambda file: file.path)
            if not any(file.writing and not file.writing.digest for file in so_far.files):
                timing.written()  # else whoever writes them marks it
            if not so_far.files:
                raise ConfigurationError(f"checkpoint {label.name!r} has no files")
            self._step_aside()
        files = list(so_far.files)
        self._attempt.check()
        entries: dict[str, CheckpointFile] = {}
        while True:
            self._place([file for file in files if file.path not in entries], entries, so_far)
            if gather is not None:
                more, delivered = gather()
                gather = None
                entries |= {file.path: file for file in delivered}
                files += more
                self._place(more, entries, so_far)
            timing.durable()
            try:
                checkpoint = self._attempt.commit(
                    name=label.name,
                    step=label.step,
                    epoch=label.epoch,
                    batch=label.batch,
                    metrics=label.metrics,
                    files=[entries[path] for path in sorted(entries)],
                    timing=timing.to_json(),
                )
                break
            except KeysRetiredError as error:  # a prune gives up what we meant to reference: send it again
                entries = {path: entry for path, entry in entries.items() if entry.key not in error.keys}
        self._has_stepped_aside = False
        catalogue = self._attempt.catalogue
        is_latest = catalogue.latest() == checkpoint
        self._advisor.advise(catalogue.seq, latest=checkpoint if is_latest else None, intents=so_far.intents)
        return checkpoint

    def _place(self, files: Sequence[LocalFile], entries: dict[str, CheckpointFile], so_far: _SoFar) -> None:
        """Have the bytes of each file on the remote, sent now or committed before, and enter where they lie.

        What was committed before is looked for, and not verified once more: a prune may be deleting it, and then its
        record is met when this checkpoint is committed.
        """
        for file in files:
            if file.path not in so_far.uploads:
                check_unchanged(file)
        known = self._known.update(self._attempt.catalogue)
        plan = reuse([file for file in files if file.path not in so_far.keys], known, self._asking)
        entries.update({entry.path: entry for entry in plan.referenced})
        copied = {file.path: (file, origin) for file, origin in plan.copied}
        fresh = [
            (file, so_far.keys.get(file.path) or self._fresh_key(file)) for file in files if file.path not in entries
        ]
        if unannounced := {file.path: key for file, key in fresh if file.path not in so_far.keys}:
            so_far.intents.append(self._announce(list(unannounced.values())))
            so_far.keys.update(unannounced)
        self._send([(file, key) for file, key in fresh if file.path not in copied], entries, so_far)
        left = []
        for path, (file, origin) in copied.items():
            key, source = so_far.keys[path], entries[origin[1:]].key if origin.startswith("/") else origin
            if copy_within(self._asking, source, key):
                entries[path] = CheckpointFile(path=path, key=key, size=file.size_bytes, sha256=file.sha256 or "")
            else:
                left.append((file, key))
        self._send(left, entries, so_far)
        for file, _ in fresh:  # should they be sent again, then to fresh keys
            del so_far.keys[file.path]
        self._verify([entries[file.path] for file, _ in fresh])

    def _send(self, files: Sequence[tuple[LocalFile, str]], entries: dict[str, CheckpointFile], so_far: _SoFar) -> None:
        """Send files to their keys, and enter what was sent."""
        for file, key in files:
            if file.path not in so_far.uploads:
                check_unchanged(file)
                so_far.uploads[file.path] = self._queue.submit(
                    key, file.local, overwrite=True, is_urgent=True, writing=file.writing
                )
        for file, key in files:
            try:
                sent = self._await(file.path, so_far)
            except UploadError as error:
                if file.writing is not None and file.writing.error is not None:
                    raise file.writing.error from error  # the disk's fault, and not the remote's
                raise
            if file.sha256 not in (None, sent.sha256):
                raise DamagedError(
                    f"{file.local} changed between its writing and its upload",
                    hint="write checkpoints to a fresh name; never rewrite one in place",
                    url=f"{self._store.url}/{key}",
                )
            entries[file.path] = CheckpointFile(path=file.path, key=key, size=sent.size_bytes, sha256=sent.sha256)
        for file, _ in files:
            del so_far.uploads[file.path]

    def _await(self, path: str, so_far: _SoFar) -> UploadedFile:
        """Wait for an upload; but if nothing of the checkpoint gets through, let a newer one go first.

        Raises:
            GaveWayError: what had not begun is taken back.
        """
        uploads = so_far.uploads
        while True:
            with contextlib.suppress(WaitTimeoutError):
                return uploads[path].result(_LOOK_S)
            is_stuck = any(one.has_failed for one in uploads.values()) and not any(o.done() for o in uploads.values())
            if is_stuck and self._line.is_overtaken():
                for taken_back in [path for path, upload in uploads.items() if upload.cancel()]:
                    del uploads[taken_back]
                raise GaveWayError

    def _step_aside(self) -> None:
        """Once its files are prepared, which waits for logs and so perhaps for the end of an outage, look who waits.

        Once only before the next commit, or a loop that saves without a break would get nothing committed.

        Raises:
            GaveWayError: a newer one does.
        """
        if self._line.is_overtaken() and not self._has_stepped_aside:
            self._has_stepped_aside = True
            raise GaveWayError

    def _pause(self, seconds: float) -> None:
        """Wait before a request is sent again; but if a newer checkpoint waits, let it go first.

        Raises:
            GaveWayError: one does.
        """
        if self._line.pause(seconds):
            raise GaveWayError

    def _refuse_superseded(self, label: Label) -> None:
        """Do not send what would be removed at once.

        Raises:
            SupersededError: a newer checkpoint is durable, and the run's retention does not keep this one beside it.
        """
        catalogue = self._attempt.catalogue
        latest, number = catalogue.latest(), self._attempt.number
        if self._retention is None or latest is None or (latest.attempt, latest.step) <= (number, label.step):
            return
        as_if = Checkpoint(**label.__dict__, attempt=number, files=(), committed_at="", seq=catalogue.seq + 1)
        if not would_keep(catalogue, self._retention, as_if):
            raise SupersededError(
                f"checkpoint {label.name!r} was not sent: {latest.name!r} is newer and durable, and the retention of "
                "this run would remove it at once",
                url=self._store.url,
            )

    def _fresh_key(self, file: LocalFile) -> str:
        """A key that nobody wrote, and no earlier attempt may still be writing."""
        path, number = check_relative(file.path), 0
        candidate = path if self._attempt.number == 1 else sibling(path, self._attempt.number)
        while self.uses(self._layout.artifact(candidate)):
            number += 1
            candidate = sibling(path, self._attempt.number, number)
        key = self._layout.artifact(candidate)
        self._used.add(key)
        return key

    def _announce(self, keys: list[str]) -> str:
        """Say which keys are about to be written, so that readers do not take them for artifacts before the commit."""
        self._intents += 1
        intent = self._layout.intent(self._attempt.number, self._intents)
        self._asking.put(intent, json.dumps({"keys": [key.partition("/")[2] for key in keys]}).encode())
        return intent

    def _verify(self, entries: Sequence[CheckpointFile]) -> None:
        """Ask the store for the size of every file.

        Raises:
            MissingBytesError: a file is not there, or has another size.
        """

        def check(entry: CheckpointFile) -> None:
            url = f"{self._store.url}/{entry.key}"
            try:
                size = self._store.head(entry.key).size_bytes
            except ObjectNotFoundError as error:
                raise MissingBytesError(f"{entry.key} was uploaded, and is not there", url=url) from error
            if size != entry.size:
                raise MissingBytesError(f"{entry.key} has {size} bytes on the remote instead of {entry.size}", url=url)

        with ThreadPoolExecutor(max(1, min(16, len(entries))), thread_name_prefix="artifactsync-verify") as pool:
            list(pool.map(check, entries))

    def _publish_and_prune(
        self,
        prepare: Callable[[], Sequence[LocalFile]],
        label: Label,
        timing: SaveTiming,
        gather: Callable[[], tuple[Sequence[LocalFile], Sequence[CheckpointFile]]] | None,
        so_far: _SoFar,
    ) -> Checkpoint:
        self._running = (label, so_far)
        try:
            checkpoint = self._publish(prepare, label, timing, gather, so_far)
        except (GaveWayError, SupersededError):
            raise
        except BaseException as error:
            release_frames(error)  # they hold files, and the error may be kept as long as the run lives
            _log.error("checkpoint %r of run %r is not durable: %s", label.name, self._layout.run_name, error)
            raise
        finally:
            self._running = None
        if self._after_commit is not None:
            try:
                self._after_commit()
            except ArtifactSyncError as error:
                _log.warning("old checkpoints were not removed this time: %s", error)
        return checkpoint


def _has_failed(pending: PendingCheckpoint) -> bool:
    return pending.done() and not isinstance(pending.exception(), (type(None), SupersededError))
