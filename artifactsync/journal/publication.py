"""Publication: files of a checkpoint become durable, are verified, and then visible, in that order.

Owns: the order of upload, verification and commit, the choice of keys, and the pending checkpoint a caller waits for.
Does not own: how bytes move (``transfer``), the commit itself (``attempt``).

Invariant: a commit record is appended only after the store has confirmed the size of every file that it names; no
key that any commit has named is ever written again.
"""

from __future__ import annotations

import json
import logging
import operator
import threading
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from artifactsync.errors import (
    ArtifactSyncError,
    ConfigurationError,
    DamagedError,
    MissingBytesError,
    NotDurableError,
    ObjectNotFoundError,
    WaitTimeoutError,
)
from artifactsync.journal.attempt import KeysRetiredError
from artifactsync.journal.catalogue import Checkpoint, CheckpointFile
from artifactsync.journal.timing import SaveTiming
from artifactsync.journal.worker import SerialWorker
from artifactsync.naming.layout import RunLayout, check_relative, sibling
from artifactsync.transfer.hashing import hash_file

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from artifactsync.journal.attempt import Attempt
    from artifactsync.journal.log import JournalLog
    from artifactsync.stores.protocol import Store
    from artifactsync.transfer.queue import UploadQueue

_log = logging.getLogger(__name__)

_SELECTING_WORDS = frozenset({"latest", "best", "none"})
_MAX_NAME_CHARS = 255
_MAX_COUNT = 2**53 - 1  # what every JSON reader keeps exact


@dataclass(frozen=True, kw_only=True)
class LocalFile:
    """A whole local file that belongs to a checkpoint."""

    path: str
    """Where it shall be below the run's folder."""
    local: Path
    """Where it lies now. Must not change until the checkpoint is committed."""
    size_bytes: int
    """Its length."""
    sha256: str | None = None
    """Its hash, if the writer computed it while writing; else it is computed during the upload."""


@dataclass(frozen=True, kw_only=True)
class Label:
    """What a checkpoint is called and where in training it was taken."""

    name: str
    """Name within the run."""
    step: int
    """Optimizer steps done."""
    epoch: int
    """Epochs done."""
    batch: int
    """Batches done."""
    metrics: Mapping[str, float]
    """Metrics for ``best``: anything that is one number, a tensor of one element too."""

    def __post_init__(self) -> None:
        """Turn numbers of any library into plain ones, here in the caller: behind, a commit would fail or not match.

        Raises:
            ConfigurationError: something is not what a record can hold.
        """
        for field in ("step", "epoch", "batch"):
            object.__setattr__(self, field, _counted(field, getattr(self, field)))
        metrics = {_metric_name(name): _number(name, value) for name, value in self.metrics.items()}
        object.__setattr__(self, "metrics", metrics)
        if self.name in _SELECTING_WORDS or not self.name.isprintable() or not 0 < len(self.name) <= _MAX_NAME_CHARS:
            raise ConfigurationError(
                f"a checkpoint cannot be called {self.name[:_MAX_NAME_CHARS]!r}",
                hint=f"any printable text of 1 to {_MAX_NAME_CHARS} characters but latest, best and none, "
                "which choose one when pulling",
            )


class PendingCheckpoint:
    """A checkpoint on its way. It is committed, or it does not exist: there is nothing in between."""

    def __init__(self, label: Label, future: Future[Checkpoint], timing: SaveTiming | None = None) -> None:
        self.label = label
        """What was asked for."""
        self.timing = timing or SaveTiming()
        """What its commit record says of how long it took; whoever saves may add marks."""
        self._future = future

    def result(self, timeout: float | None = None) -> Checkpoint:
        """Wait until it is durable and committed, and return it.

        Args:
            timeout: Seconds to wait at most; None waits as long as it takes.

        Raises:
            WaitTimeoutError: it is still on its way.
            NotDurableError: it was cancelled.
            ArtifactSyncError: what made it fail.
        """
        error = self.exception(timeout)
        if error is not None:
            raise error
        return self._future.result()

    def done(self) -> bool:
        """Whether it is committed, failed or cancelled."""
        return self._future.done()

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait, and return what made it fail; None if it is committed.

        Raises:
            WaitTimeoutError: it is still on its way.
        """
        try:
            return self._future.exception(timeout)
        except CancelledError:
            return NotDurableError(f"checkpoint {self.label.name!r} was cancelled before its commit")
        except FutureTimeoutError:
            raise WaitTimeoutError(
                f"checkpoint {self.label.name!r} is not durable after {timeout:g} s",
                hint="wait longer, or see status()",
            ) from None

    def cancel(self) -> bool:
        """Take it back if its publication has not begun; says whether that was so."""
        return self._future.cancel()


class Publisher:
    """Publishes checkpoints of one attempt, one after the other, on a thread of its own.

    Args:
        attempt: The right to commit.
        log: The run's journal.
        queue: Uploads to the remote's root.
        store: The remote.
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
        after_commit: Callable[[], object] | None = None,
    ) -> None:
        self._attempt, self._log, self._queue, self._store = attempt, log, queue, store
        self._after_commit = after_commit
        self._layout: RunLayout = log.layout
        self._worker: SerialWorker[Checkpoint] = SerialWorker("artifactsync-publish")
        self._lock = threading.Lock()
        self._pending: list[PendingCheckpoint] = []
        self._intents = 0
        self._used = set(attempt.catalogue.keys)

    def submit(
        self,
        prepare: Callable[[], Sequence[LocalFile]],
        label: Label,
        *,
        gather: Callable[[], tuple[Sequence[LocalFile], Sequence[CheckpointFile]]] | None = None,
    ) -> PendingCheckpoint:
        """Enqueue a checkpoint; returns at once.

        Args:
            prepare: Called on the publication thread; writes what is not yet on disk and says which files there are.
            label: What it is called.
            gather: Called there too, once these are durable, where other ranks contribute: more files of this rank,
                and files of others, which are durable already.

        Raises:
            RunFencedError: this attempt has lost the run.
        """
        self._attempt.check()
        timing = SaveTiming()
        future = self._worker.submit(lambda: self._publish_and_prune(prepare, label, timing, gather))
        pending = PendingCheckpoint(label, future, timing)
        with self._lock:
            self._pending = [p for p in self._pending if not p.done() or p.exception() is not None]
            self._pending.append(pending)
        return pending

    def uses(self, key: str) -> bool:
        """Whether a checkpoint, committed or on its way, has its bytes at ``key``."""
        return key in self._used

    def pending(self) -> list[PendingCheckpoint]:
        """Checkpoints that are on their way."""
        with self._lock:
            return [p for p in self._pending if not p.done()]

    def failures(self) -> list[BaseException]:
        """What made checkpoints fail that nobody has been told of yet by ``take_failures``."""
        with self._lock:
            return [e for p in self._pending if p.done() and (e := p.exception()) is not None]

    def take_failures(self) -> list[BaseException]:
        """``failures``, which are then regarded as told."""
        failures = self.failures()
        with self._lock:
            self._pending = [p for p in self._pending if not p.done()]
        return failures

    def close(self) -> None:
        """Accept no more; what has begun goes on in the background, what has not is cancelled."""
        self._worker.cancel_waiting()
        self._worker.close()

    def _publish(
        self,
        prepare: Callable[[], Sequence[LocalFile]],
        label: Label,
        timing: SaveTiming,
        gather: Callable[[], tuple[Sequence[LocalFile], Sequence[CheckpointFile]]] | None,
    ) -> Checkpoint:
        files = sorted(prepare(), key=lambda file: file.path)
        timing.written()
        if not files:
            raise ConfigurationError(f"checkpoint {label.name!r} has no files")
        self._attempt.check()
        entries: dict[str, CheckpointFile] = {}
        intents: list[str] = []
        while True:
            self._place([file for file in files if file.path not in entries], entries, intents)
            if gather is not None:
                more, delivered = gather()
                gather = None
                entries |= {file.path: file for file in delivered}
                files += more
                self._place(more, entries, intents)
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
        self._advise(checkpoint, intents)
        return checkpoint

    def _place(self, files: Sequence[LocalFile], entries: dict[str, CheckpointFile], intents: list[str]) -> None:
        """Have the bytes of each file on the remote, sent now or committed before, and enter where they lie.

        What was committed before is looked for, and not verified once more: a prune may be deleting it, and then its
        record is met when this checkpoint is committed.
        """
        catalogue = self._attempt.catalogue
        published = {
            (file.path, file.sha256, file.size): file.key
            for checkpoint in catalogue.checkpoints
            for file in checkpoint.files
            if file.key not in catalogue.retired_keys
        }
        fresh: list[tuple[LocalFile, str]] = []
        for file in files:
            found = self._find_published(file, published)
            if found is None:
                fresh.append((file, self._fresh_key(file)))
            else:
                entries[file.path] = found
        if fresh:
            intents.append(self._announce([key for _, key in fresh]))
        uploads = [self._queue.submit(key, file.local, overwrite=True) for file, key in fresh]
        for (file, key), upload in zip(fresh, uploads, strict=True):
            sent = upload.result()
            if file.sha256 not in (None, sent.sha256):
                raise DamagedError(
                    f"{file.local} changed between its writing and its upload",
                    hint="write checkpoints to a fresh name; never rewrite one in place",
                    url=f"{self._store.url}/{key}",
                )
            entries[file.path] = CheckpointFile(path=file.path, key=key, size=sent.size_bytes, sha256=sent.sha256)
        self._verify([entries[file.path] for file, _ in fresh])

    def _find_published(self, file: LocalFile, published: Mapping[tuple[str, str, int], str]) -> CheckpointFile | None:
        """Where the very bytes of a file lie already, committed; None if nowhere.

        Equal bytes at another path are sent again: whoever looks with another tool finds every path.
        """
        same_size = any((path, size) == (file.path, file.size_bytes) for path, _, size in published)
        sha256 = file.sha256 or (hash_file(file.local).sha256 if same_size else "")
        key = published.get((file.path, sha256, file.size_bytes))
        if key is None or not self._is_there(key, file.size_bytes):
            return None
        return CheckpointFile(path=file.path, key=key, size=file.size_bytes, sha256=sha256)

    def _fresh_key(self, file: LocalFile) -> str:
        """A key that nobody wrote, and no earlier attempt may still be writing."""
        path, number = check_relative(file.path), 0
        candidate = path if self._attempt.number == 1 else sibling(path, self._attempt.number)
        while self._layout.artifact(candidate) in self._used:
            number += 1
            candidate = sibling(path, self._attempt.number, number)
        key = self._layout.artifact(candidate)
        self._used.add(key)
        return key

    def _is_there(self, key: str, size_bytes: int) -> bool:
        try:
            return self._store.head(key).size_bytes == size_bytes
        except ObjectNotFoundError:
            return False

    def _announce(self, keys: list[str]) -> str:
        """Say which keys are about to be written, so that readers do not take them for artifacts before the commit."""
        self._intents += 1
        intent = self._layout.intent(self._attempt.number, self._intents)
        self._store.put(intent, json.dumps({"keys": [key.partition("/")[2] for key in keys]}).encode())
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

    def _advise(self, checkpoint: Checkpoint, intents: Sequence[str]) -> None:
        """Write what readers may use and nobody needs; a failure here is no failure."""
        self._log.advise(checkpoint.seq)
        try:
            for file in checkpoint.files:
                folder, _, name = file.path.rpartition("/")
                if name.endswith("-rank0.pt"):
                    link = self._layout.artifact(
                        f"{folder}/latest-rank0.pt.symlink" if folder else "latest-rank0.pt.symlink"
                    )
                    self._store.put(link, file.key.encode())
            if intents:
                self._store.delete(intents)
        except ArtifactSyncError as error:
            _log.debug("advisory objects of %s were not written: %s", checkpoint.name, error)

    def _publish_and_prune(
        self,
        prepare: Callable[[], Sequence[LocalFile]],
        label: Label,
        timing: SaveTiming,
        gather: Callable[[], tuple[Sequence[LocalFile], Sequence[CheckpointFile]]] | None,
    ) -> Checkpoint:
        checkpoint = self._publish(prepare, label, timing, gather)
        if self._after_commit is not None:
            try:
                self._after_commit()
            except ArtifactSyncError as error:
                _log.warning("old checkpoints were not removed this time: %s", error)
        return checkpoint


def _counted(what: str, value: Any) -> int:
    """``value`` as a plain count."""
    try:
        count = operator.index(value)
    except TypeError:
        count = -1
    if not 0 <= count <= _MAX_COUNT:
        raise ConfigurationError(f"{what} is {value!r}", hint=f"{what} counts from 0: give a whole number")
    return count


def _metric_name(name: object) -> str:
    if not isinstance(name, str):
        raise ConfigurationError(f"a metric is called {name!r}", hint="give {name: number}, the name as text")
    return name


def _number(name: str, value: Any) -> float:
    """``value`` as a plain float."""
    try:
        if not isinstance(value, (str, bytes)):
            detach = getattr(value, "detach", None)  # a loss with its graph: torch warns of turning it into a number
            return float(detach() if callable(detach) else value)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # the last from tensors of several elements
        pass
    raise ConfigurationError(
        f"the metric {name!r} is no number, but of type {type(value).__name__}", hint="give one number for each metric"
    )


def local_files(files: Mapping[str, Any]) -> list[LocalFile]:
    """Describe whole local files: ``{path below the run: local path}``.

    Raises:
        ObjectNotFoundError: one of them is not there, or is no file.
    """
    described = []
    for path, local in files.items():
        local_path = Path(local)
        if not local_path.is_file():
            raise ObjectNotFoundError(
                f"{local_path} is no file", hint="give whole files that exist", url=str(local_path)
            )
        described.append(LocalFile(path=check_relative(path), local=local_path, size_bytes=local_path.stat().st_size))
    return described
