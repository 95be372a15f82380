"""Objects into local files: ranges in parallel, verified, and visible only when whole.

Owns: ``Downloader``. Does not own: single requests (``asking``), the temporary file (``partial``), the hash
(``in_order``), many files (``pull``).

Invariant: the destination's name never shows a byte that was not verified, and at most ``max_parts`` parts and 12 more
are in memory.
"""

from __future__ import annotations

import hashlib
import stat
import threading
import time
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack
from typing import TYPE_CHECKING

from artifactsync.errors import (
    AlreadyExistsError,
    DamagedError,
    DestinationError,
    DiskFullError,
    MissingBytesError,
    ObjectNotFoundError,
)
from artifactsync.stores.landing import landing
from artifactsync.stores.protocol import ObjectInfo
from artifactsync.stores.retry import RetryPolicy
from artifactsync.stores.runtime import in_the_foreground
from artifactsync.transfer.asking import Asker, Wanted
from artifactsync.transfer.hashing import FileDigest, hash_file
from artifactsync.transfer.held import Held
from artifactsync.transfer.in_order import InOrder
from artifactsync.transfer.partial import PartialFile
from artifactsync.transfer.places import Places

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from typing_extensions import Self

    from artifactsync.stores.protocol import Store
    from artifactsync.transfer.clock import Clock
    from artifactsync.transfer.folder import Folder

PART_BYTES = 8 * 1024 * 1024
"""Length of one range: large enough for full speed over one connection, small enough to lose little."""

MAX_PARTS = 8
"""Ranges fetched at a time, over all files."""

_KEPT_PARTS = 12  # of those that wait for an earlier one, or for the processor

_MAX_ROUNDS = 3  # a download that came out wrong, or whose object changed meanwhile, is begun anew so often


class Downloader:
    """Downloads that share one bound of memory and one progress. Thread-safe; use it in a ``with``.

    Args:
        store: Where from.
        on_progress: See ``download_file``.
        max_parts: Ranges fetched at a time.
        part_bytes: Length of a range.
        retry: How often and how long one range is tried.
        clock: The ``time`` module, or a ``FakeClock``.
    """

    def __init__(
        self,
        store: Store,
        *,
        on_progress: Callable[[int], None] | None = None,
        max_parts: int = MAX_PARTS,
        part_bytes: int = PART_BYTES,
        retry: RetryPolicy | None = None,
        clock: Clock = time,
    ) -> None:
        self._store = store
        self._on_progress = on_progress
        self._part_bytes = part_bytes
        self._asker = Asker(store, retry or RetryPolicy(max_attempts=5), clock)
        self._lock = threading.Lock()
        self._gate = threading.BoundedSemaphore(max_parts)
        self._places = Places(part_bytes, _KEPT_PARTS)
        self._max_parts = max_parts
        self._threads: ThreadPoolExecutor | None = None
        self._foreground = ExitStack()

    def fetch(self, wanted: Wanted, folder: Folder, name: str, *, overwrite: bool) -> tuple[FileDigest, bool]:
        """Bring one object to ``name`` in ``folder``.

        Returns:
            The digest, and whether the file was there already.

        Raises:
            ArtifactSyncError: see ``download_file``.
        """
        there = self.find_there(wanted, folder, name, overwrite=overwrite)
        if there is not None:
            self.progress(there.size_bytes)
            return there, True
        partial = PartialFile(folder, name, f"{self._store.url}/{wanted.key}")
        try:
            digest = self._fetch_verified(wanted, partial)
            partial.publish(overwrite=overwrite)
        except (DamagedError, DiskFullError, ObjectNotFoundError, AlreadyExistsError, DestinationError):
            partial.discard()  # of no use to a later try, or in its way
            raise
        finally:
            if not partial.is_resumable:
                partial.discard()
            partial.close()
        return digest, False

    def progress(self, count_bytes: int) -> None:
        """Report bytes."""
        if self._on_progress is not None and count_bytes:
            with self._lock:
                self._on_progress(count_bytes)

    def stop(self) -> None:
        """Let running downloads fail soon; they can be continued."""
        self._asker.is_stopped = True

    def __enter__(self) -> Self:
        self._foreground.enter_context(in_the_foreground())
        return self

    def __exit__(self, *_: object) -> None:
        with self._foreground:
            if self._threads is not None:
                self._threads.shutdown(cancel_futures=True)

    def find_there(self, wanted: Wanted, folder: Folder, name: str, *, overwrite: bool) -> FileDigest | None:
        """Return the digest of what is at the destination if it is what is wanted."""
        found = folder.stat(name)
        path = folder.path / name
        if found is None:
            return None
        if stat.S_ISDIR(found.st_mode):
            raise DestinationError(f"{path} is a folder", hint="name a file, or move the folder away", url=str(path))
        if wanted.sha256 and stat.S_ISREG(found.st_mode) and wanted.size_bytes in (None, found.st_size):
            digest = hash_file(path)
            if digest.sha256 == wanted.sha256:
                return digest
        if not overwrite:
            raise AlreadyExistsError(f"{path} exists already", hint="pass overwrite=True to replace it", url=str(path))
        return None

    # Fetching.

    def _fetch_verified(self, wanted: Wanted, partial: PartialFile) -> FileDigest:
        """Fetch until the bytes are right, a few rounds at most."""
        rounds = _MAX_ROUNDS
        while True:
            rounds -= 1
            try:
                return self._fetch_round(wanted, partial, is_again=rounds < _MAX_ROUNDS - 1)
            except DamagedError as error:
                is_known = wanted.size_bytes is not None or wanted.sha256 is not None
                if not rounds or (isinstance(error, MissingBytesError) and is_known):
                    raise

    def _fetch_round(self, wanted: Wanted, partial: PartialFile, *, is_again: bool) -> FileDigest:
        size = wanted.size_bytes
        if size is not None and size <= self._part_bytes:
            data = self._asker.get(wanted, 0, size, beyond=1)
            partial.reset()
            partial.write(data, 0)
            self.progress(len(data))
            digest = FileDigest(len(data), hashlib.sha256(data).hexdigest())
            return self._checked(wanted, digest)
        if size is not None and wanted.sha256 is not None and not is_again:
            # Nothing more need be known: the last range tells whether the object is longer, and the sha256 all else.
            digest = self._fetch_parts(wanted, ObjectInfo(key=wanted.key, size_bytes=size), partial, beyond=1)
            return self._checked(wanted, digest)
        info = self._asker.head(wanted)
        digest = self._fetch_parts(wanted, info, partial)
        if wanted.sha256 is None:
            again = self._asker.head(wanted)
            if (again.size_bytes, again.etag) != (info.size_bytes, info.etag):
                self.progress(-digest.size_bytes)
                raise DamagedError(
                    f"{self._asker.url_of(wanted)} changed while it was downloaded",
                    hint="try again when it is no longer written",
                )
        return self._checked(wanted, digest)

    def _checked(self, wanted: Wanted, digest: FileDigest) -> FileDigest:
        if wanted.sha256 in (None, digest.sha256):
            return digest
        self.progress(-digest.size_bytes)
        raise DamagedError(
            f"{self._asker.url_of(wanted)} has sha256 {digest.sha256}, not the recorded {wanted.sha256}",
            hint="the object is damaged: use an older checkpoint",
            url=self._asker.url_of(wanted),
        )

    def _fetch_parts(self, wanted: Wanted, info: ObjectInfo, partial: PartialFile, *, beyond: int = 0) -> FileDigest:
        size, part_bytes = info.size_bytes, self._part_bytes
        count = -(-size // part_bytes)
        held = Held()
        if count > 1:
            identity = {"size": size, "etag": None if wanted.sha256 else info.etag, "sha256": wanted.sha256}
            partial.is_resumable = bool(info.etag or wanted.sha256)
            held = partial.held_parts(identity, part_bytes, size)
        else:
            partial.reset()
        there = {*range(held.leading), *held.others}
        missing = [part for part in range(count) if part not in there]
        arrived = [min(part_bytes, size - part * part_bytes) if part in there else 0 for part in range(count)]
        self.progress(sum(arrived))
        order = InOrder(partial, part_bytes, size, held, self._places)

        def fetch(part: int) -> None:
            start = part * part_bytes
            end = min(start + part_bytes, size)
            try:
                with self._gate:
                    place = self._places.take()
                    try:
                        with landing(place):
                            data = self._asker.get(wanted, start, end, beyond=beyond if end == size else 0)
                        partial.write(data, start)
                    except BaseException:
                        self._places.give(place)
                        raise
                    arrived[part] = len(data)
                    order.add(part, data, place)
                self.progress(arrived[part])
            except BaseException:
                order.stop()
                raise

        is_damaged = False
        try:
            self._run_all(fetch, missing, order, count)
        except DamagedError:
            is_damaged = True
            self.progress(-sum(arrived))
            raise
        finally:
            order.close()
            if is_damaged:
                partial.forget_held()  # with its descriptor
        partial.forget_held()  # a next round, should the whole be wrong, trusts nothing of this one
        return order.digest()

    def _run_all(self, fetch: Callable[[int], None], missing: list[int], order: InOrder, count: int) -> None:
        """Fetch what is missing in threads, and hash all of it in this one.

        What is fetched runs ahead of what is hashed by as many parts as keep the line busy while one of them is late,
        and no more: on a machine with few cores it would take them from the hash, whose rest would then run alone.
        """
        ahead = max(self._max_parts, _KEPT_PARTS)
        futures: list[Future[None]] = []
        try:
            while order.front < count:
                while len(futures) < len(missing) and missing[len(futures)] < order.front + ahead:
                    futures.append(self._open_threads().submit(fetch, missing[len(futures)]))
                if not order.hash_next():
                    break
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
        finally:
            for future in futures:
                future.cancel()
            wait(futures)

    def _open_threads(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._threads is None:
                self._threads = ThreadPoolExecutor(self._max_parts, "artifactsync-download")
            return self._threads
