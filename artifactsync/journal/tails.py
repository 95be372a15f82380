"""Growing logs as readers see them, and how the whole file takes the place of their segments.

Owns: which logs are shown from segments instead of the plain object, ``LogStore``, through which they are read, and
``LogMirror``, the writer's side of a run's logs. Does not own: what a segment is, and sending one (``transfer.tail``).

Invariant: what is read of a log is a piece of one history of it, from its first byte on, every segment compared with
its sha256. A whole object wins where a seal says that it holds all of it. Each attempt has a key of its own for that,
as for checkpoints, so a process that was fenced and does not know it can replace nothing that a later attempt wrote.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from artifactsync.errors import ArtifactSyncError, DamagedError, MissingBytesError, ObjectNotFoundError
from artifactsync.naming.layout import sibling
from artifactsync.stores.protocol import ObjectInfo
from artifactsync.transfer.download import download_file
from artifactsync.transfer.hashing import READ_BYTES
from artifactsync.transfer.tail import Seal, Segment, Tail, chain_of, chains_over, place_of, read_name, segments_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from artifactsync.naming.layout import RunLayout
    from artifactsync.stores.protocol import Body, Store
    from artifactsync.transfer.queue import UploadQueue
    from artifactsync.transfer.upload import Upload

_log = logging.getLogger(__name__)

_READ_THREADS = 16  # segments fetched at a time for one range: a log flushed often has many small ones


@dataclass(frozen=True, kw_only=True)
class GrowingLog:
    """A log that is shown from its segments."""

    path: str
    """Below the run's folder. Hostile input."""
    key: str
    """Where the whole file will be, below the remote."""
    chain: tuple[Segment, ...] = ()
    """Its segments, in order and without a gap."""
    whole: ObjectInfo | None = None
    """The object that holds all of it, instead of segments: a later attempt's own, beside the plain key."""

    @property
    def size_bytes(self) -> int:
        """Length of what there is."""
        return self.whole.size_bytes if self.whole else self.chain[-1].end


def whole_key(layout: RunLayout, path: str, attempt: int) -> str:
    """Where an attempt puts the whole of a log: the first one at the plain key, a later one beside it."""
    return layout.root + (path if attempt <= 1 else sibling(path, attempt))


def wholes_of_later_attempts(layout: RunLayout, objects: Iterable[ObjectInfo]) -> set[str]:
    """Keys at which later attempts put whole logs: they are shown at the plain key, if at all."""
    found = (read_name(layout, info) for info in objects)
    return {whole_key(layout, f.path, f.generation[0]) for f in found if f is not None and f.generation[0] > 1}


def growing_logs(
    layout: RunLayout, objects: Sequence[ObjectInfo], *, damaged: Collection[Segment] = ()
) -> dict[str, GrowingLog]:
    """By key: the logs of a listed run folder of which the plain object does not hold all.

    Args:
        layout: The run's keys.
        objects: Everything in the run's folder.
        damaged: Segments known to be damaged: what comes after them is not shown.
    """
    segments, seals = segments_of(layout, objects)
    there = {info.key: info for info in objects}
    logs: dict[str, GrowingLog] = {}
    for path in sorted({*segments, *seals}):
        key, seal = layout.root + path, seals.get(path)
        if layout.path_of(key) is None:
            continue
        whole = there.get(whole_key(layout, path, seal.generation[0])) if seal else None
        if seal and whole and whole.key != key and whole.size_bytes != seal.size_bytes:
            whole = None  # not the one that was sealed
        sealed = (seal.generation, seal.size_bytes) if seal and whole else None
        chain = chain_of((s for s in segments.get(path, ()) if s not in damaged), newer_than=sealed)
        if chain:
            logs[key] = GrowingLog(path=path, key=key, chain=tuple(chain))
        elif whole and whole.key != key:
            logs[key] = GrowingLog(path=path, key=key, whole=whole)
    return logs


class LogStore:
    """A store in which growing logs can be read at their plain keys; everything else is as it is below.

    Args:
        store: Where the segments are.
        layout: The run's keys.
        logs: By key, as :func:`growing_logs` found them.
    """

    def __init__(self, store: Store, layout: RunLayout, logs: Mapping[str, GrowingLog]) -> None:
        self._store, self._layout, self._logs = store, layout, logs
        self.ordered_listing = False
        self.bad: dict[str | None, Segment] = {}
        """Segments that were found damaged, or gone, by the ``url`` of the error that says so."""

    @property
    def url(self) -> str:
        """The root as a URL."""
        return self._store.url

    def get(self, key: str, *, start: int = 0, end: int | None = None) -> bytes:
        """See ``Store.get``.

        Raises:
            DamagedError: a segment has not the bytes that its name says.
            MissingBytesError: a segment is gone: the whole file may have taken its place.
        """
        log = self._logs.get(key)
        if log is None:
            return self._store.get(key, start=start, end=end)
        if log.whole is not None:
            return self._store.get(log.whole.key, start=start, end=end)
        stop = log.size_bytes if end is None else min(end, log.size_bytes)
        if start >= stop:
            return b""
        first = place_of(log.chain, start)
        wanted = [s for s in log.chain[first : place_of(log.chain, stop - 1) + 1] if s.end > s.start]
        if len(wanted) == 1:
            pieces = [self._read(wanted[0])]
        else:
            with ThreadPoolExecutor(min(_READ_THREADS, len(wanted)), thread_name_prefix="artifactsync-log") as pool:
                pieces = list(pool.map(self._read, wanted))
        return b"".join(pieces)[start - wanted[0].start :][: stop - start]

    def head(self, key: str) -> ObjectInfo:
        """See ``Store.head``."""
        log = self._logs.get(key)
        if log is None:
            return self._store.head(key)
        if log.whole is not None:
            return replace(self._store.head(log.whole.key), key=key)
        return ObjectInfo(key=key, size_bytes=log.size_bytes, etag=log.chain[-1].link)

    def list(self, prefix: str = "", *, start_after: str = "") -> Iterator[ObjectInfo]:
        """See ``Store.list``."""
        for info in self._store.list(prefix, start_after=start_after):
            if info.key not in self._logs:
                yield info
        for key in sorted(self._logs):
            if key.startswith(prefix) and key > start_after:
                yield self.head(key)

    def list_folders(self, prefix: str = "") -> Sequence[str]:
        """See ``Store.list_folders``."""
        below = {key[len(prefix) :].partition("/") for key in self._logs if key.startswith(prefix)}
        return sorted({*self._store.list_folders(prefix), *(name for name, slash, _ in below if slash)})

    def put(self, key: str, body: Body | bytes) -> ObjectInfo:
        """See ``Store.put``."""
        return self._store.put(key, body)

    def put_if_absent(self, key: str, body: Body | bytes) -> ObjectInfo:
        """See ``Store.put_if_absent``."""
        return self._store.put_if_absent(key, body)

    def delete(self, keys: Iterable[str]) -> None:
        """See ``Store.delete``."""
        self._store.delete(keys)

    def copy(self, source: str, target: str) -> ObjectInfo:
        """See ``Store.copy``; a growing log is read and put."""
        return self._store.put(target, self.get(source)) if source in self._logs else self._store.copy(source, target)

    def close(self) -> None:
        """Leave the store below open: it is another's."""

    def _read(self, segment: Segment) -> bytes:
        key = segment.key(self._layout)
        url = f"{self._store.url}/{key}"
        error: DamagedError
        try:
            data = self._store.get(key)
        except ObjectNotFoundError as cause:
            error = MissingBytesError(f"a segment of {segment.path} is gone", url=url)
            self.bad[error.url] = segment
            raise error from cause
        if len(data) != segment.end - segment.start or hashlib.sha256(data).hexdigest() != segment.sha256:
            error = DamagedError(f"a segment of {segment.path} is damaged", url=url)
            self.bad[error.url] = segment
            raise error
        return data


def fetch_log(store: Store, layout: RunLayout, path: str, local: Path, *, size_bytes: int, sha256: str) -> bool:
    """Bring back a log that begins with known bytes, from whichever history has them, or the plain object.

    Args:
        store: The remote.
        layout: The run's keys.
        path: The log, below the run's folder.
        local: Where to; replaced.
        size_bytes: How many bytes are known.
        sha256: Their hash.

    Returns:
        Whether a file that begins so is at ``local`` now; it may be longer.
    """
    key = layout.artifact(path)
    segments, seals = segments_of(layout, store.list(f"{layout.tails}{path}/"))
    histories: list[Mapping[str, GrowingLog]] = [
        {key: GrowingLog(path=path, key=key, chain=tuple(chain))}
        for chain in chains_over(segments.get(path, ()), size_bytes)
    ]
    if path in seals and seals[path].generation[0] > 1:
        with contextlib.suppress(ObjectNotFoundError):
            whole = store.head(whole_key(layout, path, seals[path].generation[0]))
            histories.append({key: GrowingLog(path=path, key=key, whole=whole)})
    for logs in (*histories, {}):
        view = LogStore(store, layout, logs)
        try:
            if view.head(key).size_bytes < size_bytes:
                continue
            download_file(view, key, local, overwrite=True)
        except (ObjectNotFoundError, DamagedError):
            continue
        with local.open("rb") as file:
            digest, left = hashlib.sha256(), size_bytes
            while left and (data := file.read(min(left, READ_BYTES))):
                digest.update(data)
                left -= len(data)
        if not left and digest.hexdigest() == sha256:
            return True
    return False


class LogMirror:
    """The growing logs that one attempt mirrors. Thread-safe.

    Args:
        layout: The run's keys.
        attempt: The attempt's number.
        queue: Uploads to the remote's root.
        check: Asked behind, before the whole file is put under a key; raises if that key may not be written.
    """

    def __init__(
        self,
        layout: RunLayout,
        *,
        attempt: int,
        queue: Callable[[], UploadQueue],
        check: Callable[[str], object] = lambda _: None,
    ) -> None:
        self._layout, self._attempt, self._queue, self._check = layout, attempt, queue, check
        self._lock = threading.Lock()
        self._tails: dict[str, tuple[Tail, Path]] = {}
        self._pushed: dict[str, Upload] = {}

    def push(self, path: str, file: Path) -> Upload:
        """Send what is new of a growing file; returns at once."""
        with self._lock:
            tail, _ = self._tails.get(path) or (Tail(self._layout, path, attempt=self._attempt), file)
            self._tails[path] = (tail, file)
            upload = self._queue().submit(self._layout.artifact(path), file, growing=True, tail=tail)
            self._pushed[path] = upload
        return upload

    def seal(self, store: Store, *, timeout: Callable[[], float | None], clean: bool) -> None:
        """Put every whole file under this attempt's key, and say so. What cannot be done is logged: the segments stay.

        Args:
            store: The remote.
            timeout: Seconds that are left, None for any.
            clean: Whether to delete the segments then: nobody continues them.
        """
        with self._lock:
            tails = [(path, tail, file) for path, (tail, file) in self._tails.items() if not tail.is_sealed]
        uploads: list[tuple[str, Tail, Upload]] = []
        for path, tail, file in tails:
            with contextlib.suppress(ArtifactSyncError):  # if it failed, the whole file makes it good
                self._pushed[path].result(timeout())
            with contextlib.suppress(ObjectNotFoundError):  # the local file was removed: its segments are all there is
                key = whole_key(self._layout, path, self._attempt)
                uploads.append(
                    (path, tail, self._queue().submit(key, file, growing=True, check=partial(self._check, key)))
                )
        for path, tail, upload in uploads:
            self._seal_one(store, path, tail, upload, timeout=timeout, clean=clean)

    def _seal_one(
        self, store: Store, path: str, tail: Tail, upload: Upload, *, timeout: Callable[[], float | None], clean: bool
    ) -> None:
        try:
            sent = upload.result(timeout())
            seal = Seal(path=path, generation=tail.generation, size_bytes=sent.size_bytes, sha256=sent.sha256)
            store.put(seal.key(self._layout), b"")
        except ArtifactSyncError as error:
            upload.cancel()
            _log.warning("%s stays in segments on the remote, from which it is read as a whole: %s", path, error)
            return
        tail.is_sealed = True
        is_plain = self._show_plain(store, path)
        if clean:
            self._delete(store, path, seal, keep_plain=is_plain)

    def _show_plain(self, store: Store, path: str) -> bool:
        """Copy a later attempt's log to the plain key, for other tools; the store does it, nothing is sent.

        Our own readers go by the seal: a process that was taken over can put its older log there again, and fool none.
        """
        plain, own = whole_key(self._layout, path, 1), whole_key(self._layout, path, self._attempt)
        if plain != own:
            try:
                self._check(plain)
                store.copy(own, plain)
            except ArtifactSyncError as error:  # a role that may not overwrite
                _log.info("%s is at %s, and was not copied to its plain key: %s", path, own, error)
                return False
        return True

    def _delete(self, store: Store, path: str, seal: Seal, *, keep_plain: bool) -> None:
        """Delete the segments of a sealed log, and what earlier attempts had put whole.

        A role that may not delete leaves them, and they are passed over.

        The seal stays: what a process that was taken over might still send is passed over because of it.
        """
        sealed = seal.key(self._layout)
        prefix = sealed.rpartition("/")[0].rpartition("/")[0] + "/"
        try:
            found = [(info.key, self._layout.tail_of(info.key)) for info in store.list(prefix)]
            # Never a later attempt's: this process may have been fenced, and not know it.
            mine = [(key, p) for key, p in found if p and p[0] == path and p[1][0] <= self._attempt]
            own = [(parts[2], key) for key, parts in mine if key != sealed]
            before = {parts[1][0] for _, parts in mine if parts[2].startswith("~") and parts[1][0] < self._attempt}
            # By name, so the first segments first: readers who meet half of them gone find no history, and take the
            # plain object.
            store.delete([key for _, key in sorted(own)])
            wholes = {whole_key(self._layout, path, attempt) for attempt in before}
            store.delete(sorted(wholes - ({whole_key(self._layout, path, 1)} if keep_plain else set())))
        except ArtifactSyncError as error:
            _log.debug("the segments of %s were not deleted: %s", path, error)
