"""One object into one local file: ranges in parallel, verified, and visible only when whole.

Owns: ``download_file`` and ``Downloader``. Does not own: the temporary file (``partial``), many files (``pull``).

Invariant: the destination's name never shows a byte that was not verified, and at most ``max_parts`` parts are in
memory.
"""

from __future__ import annotations

import hashlib
import stat
import threading
import time
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from artifactsync.errors import (
    AlreadyExistsError,
    DamagedError,
    DestinationError,
    DiskFullError,
    MissingBytesError,
    ObjectNotFoundError,
    RemoteUnreachableError,
    TransientStoreError,
)
from artifactsync.stores.retry import RetryPolicy
from artifactsync.transfer.folder import Folder
from artifactsync.transfer.hashing import READ_BYTES, FileDigest, hash_file
from artifactsync.transfer.partial import PartialFile

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from typing_extensions import Self

    from artifactsync.stores.protocol import ObjectInfo, Store
    from artifactsync.transfer.clock import Clock

_Result = TypeVar("_Result")

PART_BYTES = 8 * 1024 * 1024
"""Length of one range: large enough for full speed over one connection, small enough to lose little."""

MAX_PARTS = 8
"""Ranges fetched at a time, over all files: 64 MiB of memory at most."""

_MAX_ROUNDS = 3  # a download that came out wrong, or whose object changed meanwhile, is begun anew so often


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """An object, and what is known of it beforehand."""

    key: str
    """Key below the store's root."""
    size_bytes: int | None = None
    """The length it must have; None takes it as it is."""
    sha256: str | None = None
    """The sha256 it must have, in hex; None takes it as it is."""


def download_file(
    store: Store,
    key: str,
    destination: str | os.PathLike[str],
    *,
    size_bytes: int | None = None,
    sha256: str | None = None,
    overwrite: bool = False,
    on_progress: Callable[[int], None] | None = None,
    max_concurrency: int = MAX_PARTS,
    part_bytes: int = PART_BYTES,
    retry: RetryPolicy | None = None,
    clock: Clock = time,
) -> FileDigest:
    """Bring an object here. An interrupted download goes on where it stopped when it is called again.

    A destination that has the wanted ``sha256`` already is left as it is. Folders above it are made.

    Args:
        store: Where from.
        key: Key below the store's root.
        destination: A file path.
        size_bytes: The length it must have, if known.
        sha256: The sha256 it must have, if known.
        overwrite: Whether a file that is there is replaced. A symbolic link is replaced, never followed.
        on_progress: Called with the number of bytes that arrived since the last call, one call at a time, from any
            thread; with a negative number where bytes have to be fetched again.
        max_concurrency: Ranges fetched at a time.
        part_bytes: Length of a range; ``max_concurrency * part_bytes`` is the memory used.
        retry: How often and how long one range is tried.
        clock: The ``time`` module, or a ``FakeClock``.

    Raises:
        ObjectNotFoundError: no such object, and nothing was known of it.
        MissingBytesError: a known object is not there, or shorter than known.
        DamagedError: its bytes are not the known ones, or it keeps changing.
        DestinationError: the destination is a folder, or below a file.
        AlreadyExistsError: a file is there, and ``overwrite`` is False.
        DiskFullError: no space is left; nothing is at the destination's name.
    """
    path = Path(destination)
    if path.name in {"", ".."}:
        raise DestinationError(f"{path} is a folder", hint="name the file to write")
    wanted = Wanted(key=key, size_bytes=size_bytes, sha256=sha256)
    downloader = Downloader(
        store, on_progress=on_progress, max_parts=max_concurrency, part_bytes=part_bytes, retry=retry, clock=clock
    )
    with downloader, Folder(path.parent) as folder:
        digest, _ = downloader.fetch(wanted, folder, path.name, overwrite=overwrite)
    return digest


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
        self._retry = retry or RetryPolicy(max_attempts=5)
        self._clock = clock
        self._lock = threading.Lock()
        self._gate = threading.BoundedSemaphore(max_parts)
        self._max_parts = max_parts
        self._threads: ThreadPoolExecutor | None = None
        self._was_answered = False
        self._is_stopped = False

    def fetch(self, wanted: Wanted, folder: Folder, name: str, *, overwrite: bool) -> tuple[FileDigest, bool]:
        """Bring one object to ``name`` in ``folder``.

        Returns:
            The digest, and whether the file was there already.

        Raises:
            ArtifactSyncError: see ``download_file``.
        """
        there = self._check_destination(wanted, folder, name, overwrite=overwrite)
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
        self._is_stopped = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)

    def _check_destination(self, wanted: Wanted, folder: Folder, name: str, *, overwrite: bool) -> FileDigest | None:
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
                return self._fetch_round(wanted, partial)
            except MissingBytesError:
                raise
            except DamagedError:
                if not rounds:
                    raise

    def _fetch_round(self, wanted: Wanted, partial: PartialFile) -> FileDigest:
        size = wanted.size_bytes
        if size is not None and size <= self._part_bytes:
            data = self._get(wanted, 0, size, beyond=1)
            partial.reset()
            partial.write(data, 0)
            self.progress(len(data))
            digest = FileDigest(len(data), hashlib.sha256(data).hexdigest())
            return self._checked(wanted, digest)
        info = self._head(wanted)
        digest = self._fetch_parts(wanted, info, partial)
        if wanted.sha256 is None and info.size_bytes > self._part_bytes:
            again = self._head(wanted)
            if (again.size_bytes, again.etag) != (info.size_bytes, info.etag):
                self.progress(-digest.size_bytes)
                raise DamagedError(
                    f"{self._url(wanted)} changed while it was downloaded",
                    hint="try again when it is no longer written",
                )
        return self._checked(wanted, digest)

    def _checked(self, wanted: Wanted, digest: FileDigest) -> FileDigest:
        if wanted.sha256 in (None, digest.sha256):
            return digest
        self.progress(-digest.size_bytes)
        raise DamagedError(
            f"{self._url(wanted)} has sha256 {digest.sha256}, not the recorded {wanted.sha256}",
            hint="the object is damaged: use an older checkpoint",
            url=self._url(wanted),
        )

    def _fetch_parts(self, wanted: Wanted, info: ObjectInfo, partial: PartialFile) -> FileDigest:
        size, part_bytes = info.size_bytes, self._part_bytes
        parts = range(-(-size // part_bytes))
        order = _InOrder(partial, part_bytes, size)
        held = []
        if len(parts) > 1:
            identity = {"size": size, "etag": info.etag, "sha256": wanted.sha256}
            partial.is_resumable = bool(info.etag or wanted.sha256)
            held = partial.held_parts(identity, part_bytes, size)
        else:
            partial.reset()
        for part in held:
            order.add(part)
        self.progress(sum(min(part_bytes, size - part * part_bytes) for part in held))
        missing = [part for part in parts if part not in set(held)]
        arrived = [0] * len(parts)

        def fetch(part: int) -> None:
            start = part * part_bytes
            with self._gate:
                data = self._get(wanted, start, min(start + part_bytes, size))
                partial.write(data, start, part if len(parts) > 1 else None)
                order.add(part, data)
            arrived[part] = len(data)
            self.progress(len(data))

        try:
            self._run_all(fetch, missing)
        except DamagedError:
            self.progress(-sum(arrived))
            raise
        if len(parts) > 1:
            partial.forget_held()  # a next round, should the whole be wrong, trusts nothing of this one
        return order.digest()

    def _run_all(self, fetch: Callable[[int], None], parts: list[int]) -> None:
        if len(parts) == 1:
            return fetch(parts[0])
        with self._lock:
            if self._threads is None:
                self._threads = ThreadPoolExecutor(self._max_parts, "artifactsync-download")
        futures = [self._threads.submit(fetch, part) for part in parts]
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
        finally:
            for future in futures:
                future.cancel()
            wait(futures)
        return None

    def _head(self, wanted: Wanted) -> ObjectInfo:
        info: ObjectInfo = self._patiently(wanted, lambda: self._store.head(wanted.key))
        if wanted.size_bytes is not None and info.size_bytes != wanted.size_bytes:
            error = MissingBytesError if info.size_bytes < wanted.size_bytes else DamagedError
            raise error(
                f"{self._url(wanted)} has {info.size_bytes} bytes, not the recorded {wanted.size_bytes}",
                hint="the object is damaged: use an older checkpoint",
                url=self._url(wanted),
            )
        return info

    def _get(self, wanted: Wanted, start: int, end: int, *, beyond: int = 0) -> bytes:
        """Get a range, all of it; with ``beyond``, look whether there are bytes after it."""

        def get() -> bytes:
            data = self._store.get(wanted.key, start=start, end=end + beyond)
            if len(data) < end - start:
                raise _ShortRangeError(
                    f"{self._url(wanted)} gave {len(data)} bytes of the range {start}-{end}", url=self._url(wanted)
                )
            if len(data) > end - start:
                raise DamagedError(
                    f"{self._url(wanted)} is longer than the recorded {wanted.size_bytes} bytes",
                    hint="the object is damaged: use an older checkpoint",
                    url=self._url(wanted),
                )
            return data

        try:
            return self._patiently(wanted, get)
        except _ShortRangeError as error:
            raise MissingBytesError(
                error.message, hint="the object is shorter than it should be", url=self._url(wanted)
            ) from error

    def _patiently(self, wanted: Wanted, request: Callable[[], _Result]) -> _Result:
        began_s = self._clock.monotonic()
        attempt = 0
        while True:
            attempt += 1
            if self._is_stopped:
                raise TransientStoreError(f"the download of {self._url(wanted)} was stopped")
            try:
                result = request()
            except ObjectNotFoundError as error:
                if wanted.sha256 is None and wanted.size_bytes is None:
                    raise
                raise MissingBytesError(
                    f"{self._url(wanted)} is not there", hint="use an older checkpoint", url=self._url(wanted)
                ) from error
            except TransientStoreError as error:
                pause_s = self._retry.pause_s(attempt, error)
                is_late = self._clock.monotonic() - began_s + pause_s > self._retry.deadline_s
                is_unheard = isinstance(error, RemoteUnreachableError) and not self._was_answered
                if attempt >= self._retry.max_attempts or is_late or is_unheard:
                    raise
                self._clock.sleep(pause_s)
            else:
                self._was_answered = True
                return result

    def _url(self, wanted: Wanted) -> str:
        return f"{self._store.url.rstrip('/')}/{wanted.key}"


class _ShortRangeError(TransientStoreError):
    """A range that broke off."""


class _InOrder:
    """The sha256 of a file whose parts arrive in any order; parts that came early are read back from the file."""

    def __init__(self, partial: PartialFile, part_bytes: int, size_bytes: int) -> None:
        self._partial = partial
        self._part_bytes = part_bytes
        self._size_bytes = size_bytes
        self._lock = threading.Lock()
        self._digest = hashlib.sha256()
        self._early: set[int] = set()
        self._next = 0

    def add(self, part: int, data: bytes | None = None) -> None:
        """``part`` is in the file; ``data`` are its bytes if they are at hand."""
        with self._lock:
            self._early.add(part)
            while self._next in self._early:
                self._early.remove(self._next)
                if self._next == part and data is not None:
                    self._digest.update(data)
                else:
                    self._read_back(self._next)
                self._next += 1

    def digest(self) -> FileDigest:
        """The digest, when every part was added."""
        return FileDigest(self._size_bytes, self._digest.hexdigest())

    def _read_back(self, part: int) -> None:
        offset = part * self._part_bytes
        end = min(offset + self._part_bytes, self._size_bytes)
        while offset < end and (data := self._partial.read(min(READ_BYTES, end - offset), offset)):
            self._digest.update(data)
            offset += len(data)
