"""Object stores through obstore: what S3 and its likes, Azure Blob Storage and memory have in common.

Owns: requests, parts, and what one request's failure means. Does not own: credentials (``credentials``), patience
(``retry``), the settings of each service (``s3``, ``azure``, ``memory``), the meaning of errors (``object_errors``).

Invariants: a key is stored exactly or refused; an upload whose body fails becomes no object; a create-only write is
sent once. Parts of a large upload are sent again one by one when they fail, with credentials that are renewed in
between, so neither a lost part nor an expired token starts the file again.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import obstore

from artifactsync.errors import (
    ArtifactSyncError,
    FileChangedError,
    ObjectNotFoundError,
    PermissionDeniedError,
    StoreError,
    UnfencedStoreError,
)
from artifactsync.stores import runtime
from artifactsync.stores.keys import split_key, why_refused
from artifactsync.stores.object_errors import THROTTLED_PAUSE_S, from_obstore, printable_cause
from artifactsync.stores.protocol import Body, BytesBody, ObjectInfo

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

_MIB = 1024 * 1024
PART_BYTES = 8 * _MIB
"""Size of a part, and the largest body that is sent in one request."""
SHORT_BYTES = _MIB
"""The largest body that must be through within the short timeout of the ``ask`` lane."""
MAX_PARTS = 10_000
"""Source: https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html (2026-11-01)."""
_PARTS_AT_A_TIME = 4
CONNECT_TIMEOUT_S = 5
SHORT_TIMEOUT_S = 10
_LONG_TIMEOUT_S = 900  # for one part: 8 MiB at 10 kB/s
_SILENCE_TIMEOUT_S = 30


@dataclass(frozen=True, kw_only=True)
class Lanes:
    """The same place, opened with the patience that each kind of request needs."""

    ask: Any
    """No resending, short timeout: questions, records, and the first contact."""
    create: Any
    """No resending, long timeout: create-only writes."""
    write: Any
    """Resends single parts, long timeout: uploads."""
    read: Any
    """Resends and continues, times out on silence: downloads."""


def open_lanes(open_one: Callable[[dict[str, Any], Any], Any], client_options: dict[str, Any]) -> Lanes:
    """Open the four lanes.

    Args:
        open_one: Makes an obstore store from its client options and its retry configuration.
        client_options: What all lanes share.
    """

    def lane(retries: int, **timeouts_s: int) -> Any:
        limits = {name: timedelta(seconds=value) for name, value in timeouts_s.items()}
        pauses = {"init_backoff": timedelta(seconds=THROTTLED_PAUSE_S), "max_backoff": timedelta(seconds=10), "base": 2}
        retry = {"max_retries": retries, "backoff": pauses, "retry_timeout": timedelta(seconds=120)}
        return open_one({**client_options, "connect_timeout": timedelta(seconds=CONNECT_TIMEOUT_S), **limits}, retry)

    return Lanes(
        ask=lane(0, timeout=SHORT_TIMEOUT_S),
        create=lane(0, timeout=_LONG_TIMEOUT_S),
        write=lane(5, timeout=_LONG_TIMEOUT_S),
        read=lane(3, timeout=_LONG_TIMEOUT_S, read_timeout=_SILENCE_TIMEOUT_S),
    )


class ObjectStore:
    """A bucket, a container, or memory.

    Args:
        lanes: The place.
        url: Its URL, without secrets.
    """

    ordered_listing = True
    max_create_bytes = 256 * _MIB
    """The largest create-only write, which has to be one request."""

    def __init__(self, lanes: Lanes, url: str) -> None:
        self._lanes = lanes
        self._url = url
        self._was_answered = False

    @property
    def url(self) -> str:
        """The root as a URL."""
        return self._url

    def get(self, key: str, *, start: int = 0, end: int | None = None) -> bytes:
        """Return the bytes ``[start, end)``. See ``Store.get``."""
        split_key(key)
        if end is not None and end <= start:
            self.head(key)
            return b""
        wanted: Any = (start, end) if end is not None else {"offset": start} if start else None
        self._make_contact(key)
        try:
            with self._errors(key):
                return bytes(obstore.get(self._lanes.read, key, options={"range": wanted} if wanted else None).bytes())
        except StoreError:
            if wanted and self.head(key).size_bytes <= start:
                return b""  # 416: the range begins at or after the end
            raise

    def put(self, key: str, body: Body | bytes) -> ObjectInfo:
        """Write an object, in parts if it is large. See ``Store.put``."""
        split_key(key)
        body = BytesBody(body) if isinstance(body, bytes) else body
        size_bytes = body.size_bytes
        if size_bytes <= PART_BYTES:
            return self._put_whole(key, _read_all(body), is_create=False)
        self._make_contact(key)
        part_bytes = part_size_bytes(size_bytes)
        with self._errors(key):
            sent = obstore.put(
                self._lanes.write,
                key,
                exact_chunks(body, part_bytes),
                chunk_size=part_bytes,
                max_concurrency=_PARTS_AT_A_TIME,
            )
        return ObjectInfo(key=key, size_bytes=size_bytes, etag=sent["e_tag"])

    def put_if_absent(self, key: str, body: Body | bytes) -> ObjectInfo:
        """Write an object with one conditional request, sent once. See ``Store.put_if_absent``.

        Raises:
            UnfencedStoreError: the body is larger than one request can carry here.
        """
        split_key(key)
        body = BytesBody(body) if isinstance(body, bytes) else body
        if body.size_bytes > self.max_create_bytes:
            raise UnfencedStoreError(
                f"{self._url} cannot create an object of {body.size_bytes} bytes atomically",
                hint=f"allow overwriting it, or stay below {self.max_create_bytes // _MIB} MiB",
                url=f"{self._url}/{key}",
            )
        return self._put_whole(key, _read_all(body), is_create=True)

    def head(self, key: str) -> ObjectInfo:
        """Return what the store knows of an object. See ``Store.head``."""
        split_key(key)
        try:
            with self._errors(key):
                return _info(obstore.head(self._lanes.ask, key))
        except (ObjectNotFoundError, PermissionDeniedError, StoreError) as error:
            if type(error) in {ObjectNotFoundError, PermissionDeniedError, StoreError}:
                self._explain(key, error)
            raise

    def list(self, prefix: str = "", *, start_after: str = "") -> Iterator[ObjectInfo]:
        """Yield the objects whose key starts with ``prefix``. See ``Store.list``."""
        folder = prefix.rpartition("/")[0]
        if folder and why_refused(folder):
            return
        with self._errors(""):
            for chunk in obstore.list(self._lanes.ask, folder or None, offset=start_after or None):
                # obstore ignores the offset for Azure, and knows only whole folders as prefixes.
                yield from (_info(m) for m in chunk if m["path"].startswith(prefix) and m["path"] > start_after)

    def list_folders(self, prefix: str = "") -> Sequence[str]:
        """Return the names of the direct sub-folders. See ``Store.list_folders``."""
        folder = prefix.rstrip("/")
        if folder and why_refused(folder):
            return []
        with self._errors(""):
            found = obstore.list_with_delimiter(self._lanes.ask, folder or None)["common_prefixes"]
        return [name.rstrip("/").rpartition("/")[2] for name in found]

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects. See ``Store.delete``."""
        every = list(keys)
        for key in every:
            split_key(key)
        with contextlib.suppress(ObjectNotFoundError), self._errors(""):
            obstore.delete(self._lanes.ask, every)

    def copy(self, source: str, target: str) -> ObjectInfo:
        """Copy within the service. See ``Store.copy``."""
        split_key(target)
        size_bytes = self.head(source).size_bytes
        self._copy(source, target, size_bytes)
        return self.head(target)

    def close(self) -> None:
        """Connections end with the object."""

    def _refined(self, error: ArtifactSyncError) -> ArtifactSyncError:
        """Return the error, with more said where the service can be asked."""
        return error

    def _copy(self, source: str, target: str, size_bytes: int) -> None:  # noqa: ARG002 overridden where size matters
        with self._errors(source):
            obstore.copy(self._lanes.write, source, target)

    def _put_whole(self, key: str, data: bytes, *, is_create: bool) -> ObjectInfo:
        lanes = self._lanes
        is_short = len(data) <= SHORT_BYTES
        if not is_short:
            self._make_contact(key)
        lane = lanes.ask if is_short else lanes.create if is_create else lanes.write
        mode: Any = "create" if is_create else "overwrite"
        with self._errors(key, is_create=is_create):
            sent = obstore.put(lane, key, data, mode=mode, use_multipart=False)
        return ObjectInfo(key=key, size_bytes=len(data), etag=sent["e_tag"])

    def _make_contact(self, key: str) -> None:
        """Before the first patient request: ask a short question, so that a wrong remote shows at once."""
        if not self._was_answered:
            with contextlib.suppress(ObjectNotFoundError):
                self.head(key)
            self._was_answered = True

    def _explain(self, key: str, error: ArtifactSyncError) -> None:
        """An answer to HEAD has no body that tells a missing bucket from a missing key: ask with GET.

        Raises:
            ArtifactSyncError: what it really was.
        """
        if isinstance(error, ObjectNotFoundError) and self._was_answered:
            return
        with self._errors(key):
            obstore.get_range(self._lanes.ask, key, start=0, end=1)

    @contextlib.contextmanager
    def _errors(self, key: str, *, is_create: bool = False) -> Iterator[None]:
        """Around each use of obstore: the guard against fork, and its errors in our words."""
        url = f"{self._url}/{key}" if key else self._url
        runtime.note_use(url)
        try:
            yield
        except ArtifactSyncError:  # from the body, or from within
            raise
        except Exception as error:  # noqa: BLE001 obstore raises built-in errors too; each is mapped
            ours = from_obstore(error, url=url, is_create=is_create)
            if isinstance(ours, ObjectNotFoundError) and "<Code>" in str(error):
                self._was_answered = True  # it is the key that is missing, not the bucket
            raise self._refined(ours) from printable_cause(error)
        else:
            self._was_answered = True


def part_size_bytes(size_bytes: int) -> int:
    """Size of the parts of an upload: whole MiB, at least ``PART_BYTES``, at most ``MAX_PARTS`` of them."""
    return max(PART_BYTES, -(-size_bytes // (MAX_PARTS * _MIB)) * _MIB)


def _read_all(body: Body) -> bytes:
    if isinstance(body, BytesBody):
        return body.data
    return b"".join(exact_chunks(body, PART_BYTES))


def exact_chunks(body: Body, chunk_bytes: int) -> Iterator[bytes]:
    """Yield the body's chunks.

    Raises:
        FileChangedError: they are more or fewer than the body said; raised before the last one could complete it.
    """
    expected_bytes = body.size_bytes
    passed_bytes = 0
    for chunk in body.chunks(chunk_bytes):
        passed_bytes += len(chunk)
        yield chunk
    if passed_bytes != expected_bytes:
        raise FileChangedError(f"a file of {expected_bytes} bytes gave {passed_bytes} while it was read")


def _info(meta: Any) -> ObjectInfo:
    return ObjectInfo(
        key=meta["path"], size_bytes=meta["size"], modified_at=meta["last_modified"], etag=meta.get("e_tag")
    )
