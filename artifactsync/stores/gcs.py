"""Google Cloud Storage through its JSON API and Google's own client.

Owns: requests and their bodies. Does not own: credentials and timeouts (``gcs_session``), what errors mean
(``gcs_errors``), patience (``retry``).

Invariant: ``put_if_absent`` sends ``ifGenerationMatch=0`` and is never sent twice; every upload carries its CRC32C, so
that the server itself refuses bytes that were damaged on their way.

Why Google's client and not obstore: obstore speaks the XML API, which no emulator here accepts for uploads, so it could
not be tested. Source: https://cloud.google.com/storage/docs/request-preconditions and
https://cloud.google.com/storage/docs/performing-resumable-uploads (read 2026-11).
"""

from __future__ import annotations

import contextlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import google.api_core.exceptions as api
from google.cloud.storage.retry import DEFAULT_RETRY

from artifactsync.errors import (
    AlreadyExistsError,
    ArtifactSyncError,
    ObjectNotFoundError,
    RemoteUnreachableError,
    TransientStoreError,
)
from artifactsync.stores import gcs_errors, gcs_session
from artifactsync.stores.body_stream import BodyStream
from artifactsync.stores.encryption import check_gcs_answer
from artifactsync.stores.gcs_ahead import GcsAhead
from artifactsync.stores.gcs_download import Downloads
from artifactsync.stores.gcs_upload import send_in_session
from artifactsync.stores.keys import split_key
from artifactsync.stores.protocol import Body, BytesBody, ObjectInfo

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from google.cloud import storage

_SMALL_BYTES = 8 * 2**20  # the client sends up to so many in one request, more in a resumable session
_KIND = "application/octet-stream"
_DELETE_THREADS = 16
_LIST_FIELDS = "items(name,size,updated,etag),prefixes,nextPageToken"
# The beginning of a session is asked for again, which is safe; all else is RetryStore's, or the session's own.
_SESSION_RETRY = DEFAULT_RETRY.with_delay(initial=0.3, maximum=5.0).with_timeout(20.0)


class GcsStore:
    """A bucket. Opening sends nothing: the first request does.

    Args:
        bucket: Its name.
        storage_options: ``token`` (a key's path or dict, credentials, ``"anon"``), ``project``, ``endpoint_url``,
            ``anon``, ``requester_pays`` (True or the project that pays), as gcsfs takes them; ``kms_key_name``: what
            every object that is written is encrypted with.

    Raises:
        ConfigurationError: an option is unknown or wrong.
    """

    ordered_listing = True

    def __init__(self, bucket: str, *, storage_options: Mapping[str, Any] | None = None) -> None:
        self._name = bucket
        self._options = dict(storage_options or {})
        gcs_session.check_options(self._options, self.url)
        self._kms_key_name: str | None = self._options.get("kms_key_name")
        self._lock = threading.Lock()
        self._client: storage.Client | None = None
        self._downloads: Downloads | None = None
        self._ahead: tuple[GcsAhead | None, int] = (None, 0)
        self._was_answered = False
        self._bucket_was_seen = False

    def __repr__(self) -> str:
        return f"GcsStore({self._name!r})"

    @property
    def url(self) -> str:
        """The bucket as a URL."""
        return f"gs://{self._name}"

    def get(self, key: str, *, start: int = 0, end: int | None = None) -> bytes:
        """Return the bytes ``[start, end)``. See ``Store.get``."""
        if end is not None and end <= start:
            self.head(key)  # a missing object is an error all the same
            return b""
        last = None if end is None else end - 1
        with self._errors(key):
            bucket = self._bucket()
            assert self._downloads is not None
            try:
                data = self._downloads.fetch(bucket, key, start, last, timeout_s=self._timeout_s)
                if data is None:
                    data = self._get_by_client(key, start, last)
            except api.RequestRangeNotSatisfiable:
                data = b""
        self._bucket_was_seen = True
        return data

    def _get_by_client(self, key: str, start: int, last: int | None) -> bytes:
        """The same by Google's client, which renews tokens."""
        data: bytes = self._blob(key).download_as_bytes(
            start=start or None,
            end=last,
            raw_download=True,  # the bytes as they were put, whatever Content-Encoding says
            checksum="crc32c",
            retry=None,
            timeout=self._timeout_s,
        )
        return data

    def put(self, key: str, body: Body | bytes) -> ObjectInfo:
        """Upload, replacing what was there. See ``Store.put``."""
        return self._upload(key, body, is_create=False)

    def begin_get(self, key: str, *, start: int, end: int) -> Callable[[], bytes] | None:
        """Ask for the bytes ``[start, end)``. See ``stores.ahead``."""
        ahead = self._open_ahead()
        return None if ahead is None or end <= start else ahead.begin_get(key, start, end)

    def begin_put(self, key: str, data: bytes, *, sha256: str) -> Callable[[], ObjectInfo] | None:  # noqa: ARG002 - it goes with a CRC32C of its own
        """Send an object. See ``stores.ahead``."""
        split_key(key)
        ahead = self._open_ahead()
        return None if ahead is None else ahead.begin_put(key, data)

    def put_if_absent(self, key: str, body: Body | bytes) -> ObjectInfo:
        """Upload with ``ifGenerationMatch=0``. See ``Store.put_if_absent``.

        A large body's condition is checked when its session starts and again when it ends; and before, since not every
        service with this interface checks it then.
        """
        size_bytes = len(body) if isinstance(body, bytes) else body.size_bytes
        if size_bytes > _SMALL_BYTES and self._exists(key):
            raise AlreadyExistsError(f"{self.url}/{key} exists already", url=f"{self.url}/{key}")
        return self._upload(key, body, is_create=True)

    def _exists(self, key: str) -> bool:
        try:
            self.head(key)
        except ObjectNotFoundError:
            return False
        return True

    def head(self, key: str) -> ObjectInfo:
        """Return an object's metadata. See ``Store.head``."""
        with self._errors(key):
            blob = self._blob(key)
            blob.reload(retry=None, timeout=self._timeout_s)
        self._bucket_was_seen = True
        return self._info(blob)

    def list(self, prefix: str = "", *, start_after: str = "") -> Iterator[ObjectInfo]:
        """Yield the objects whose name starts with ``prefix``, in order. See ``Store.list``."""
        with self._errors(prefix):
            for blob in self._pages(prefix, start_offset=start_after or None):
                if blob.name > start_after:  # the server's start is inclusive
                    yield self._info(blob)
        self._bucket_was_seen = True

    def list_folders(self, prefix: str = "") -> Sequence[str]:
        """Return the names of the direct sub-folders. See ``Store.list_folders``."""
        with self._errors(prefix):
            pages = self._pages(prefix, delimiter="/")
            for _ in pages:
                pass  # the folders are known once the pages are read
            return sorted(name[len(prefix) : -1] for name in pages.prefixes if len(name) > len(prefix) + 1)

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects, several at a time. See ``Store.delete``."""
        every = list(keys)
        if len(every) == 1:
            self._delete(every[0])
        elif every:
            with ThreadPoolExecutor(min(_DELETE_THREADS, len(every)), "artifactsync-gcs-delete") as pool:
                for _ in pool.map(self._delete, every):
                    pass  # raises the first failure, after all were tried

    def copy(self, source: str, target: str) -> ObjectInfo:
        """Copy within Google's storage. See ``Store.copy``."""
        split_key(target)
        with self._errors(source):
            origin, blob, token = self._blob(source), self._blob(target, kms_key_name=self._kms_key_name), None
            while True:  # one call copies up to 1 GiB where it has to move the bytes
                token, _, _ = blob.rewrite(origin, token=token, retry=None, timeout=self._timeout_s)
                if token is None:
                    check_gcs_answer(self._kms_key_name, blob.kms_key_name, f"{self.url}/{target}")
                    return self._info(blob)

    def close(self) -> None:
        """Close the connections. Idempotent."""
        with self._lock:
            if self._client is not None:
                self._client.close()
            if self._ahead[0] is not None:
                self._ahead[0].close()

    def _upload(self, key: str, body: Body | bytes, *, is_create: bool) -> ObjectInfo:
        split_key(key)
        source = BytesBody(body) if isinstance(body, bytes) else body
        is_large = source.size_bytes > _SMALL_BYTES
        if is_large:
            self._make_contact()
        with self._errors(key, is_create=is_create):
            blob = self._blob(key, kms_key_name=self._kms_key_name)
            (self._upload_large if is_large else self._upload_small)(blob, source, is_create=is_create)
        self._bucket_was_seen = True
        check_gcs_answer(self._kms_key_name, blob.kms_key_name, f"{self.url}/{key}")
        return self._info(blob)

    def _upload_small(self, blob: storage.Blob, source: Body, *, is_create: bool) -> None:
        blob.upload_from_file(
            BodyStream(source, _SMALL_BYTES),
            size=source.size_bytes,
            content_type=_KIND,
            if_generation_match=0 if is_create else None,
            checksum="crc32c",
            retry=None,
            timeout=self._timeout_s,
        )

    def _upload_large(self, blob: storage.Blob, source: Body, *, is_create: bool) -> None:
        session_url = blob.create_resumable_upload_session(
            content_type=_KIND,
            size=source.size_bytes,
            if_generation_match=0 if is_create else None,
            checksum=None,  # it is not known yet, and goes with the last bytes
            retry=_SESSION_RETRY if not is_create else None,
            timeout=self._timeout_s,
        )
        http = blob.client._http  # noqa: SLF001 made by us: see ``gcs_session.connect``
        found = send_in_session(http, session_url, source, timeout_s=self._timeout_s, goes_on=not is_create)
        blob._set_properties(found)  # noqa: SLF001 as its own uploads do

    def _delete(self, key: str) -> None:
        with self._errors(key):
            try:
                self._blob(key).delete(retry=None, timeout=self._timeout_s)
            except api.NotFound as error:
                if self._is_bucket_missing(error):
                    raise

    @property
    def can_begin(self) -> bool:
        """See ``stores.ahead``: where the answer to a write, or who pays, needs no more looking at."""
        return not any(self._options.get(name) for name in ("kms_key_name", "requester_pays", "user_project"))

    def _open_ahead(self) -> GcsAhead | None:
        """What sends before other answers were read; None before the first contact."""
        if not (self._was_answered and self.can_begin):
            return None
        ahead, pid = self._ahead
        if ahead is None or pid != os.getpid():
            client = self._bucket().client
            ahead = GcsAhead(client, self._name, self.url)
            self._ahead = ahead, os.getpid()
        return ahead

    @property
    def _timeout_s(self) -> tuple[float, float]:
        return gcs_session.TIMEOUT_S if self._was_answered else gcs_session.FIRST_TIMEOUT_S

    def _pages(self, prefix: str, **options: Any) -> Any:
        bucket = self._bucket()
        return bucket.client.list_blobs(
            bucket, prefix=prefix or None, fields=_LIST_FIELDS, retry=None, timeout=self._timeout_s, **options
        )

    def _bucket(self) -> storage.Bucket:
        with self._lock:
            if self._client is None:
                self._client = gcs_session.connect(self._options, self.url)
                self._downloads = Downloads(self._client)
        payer = self._options.get("user_project") or self._options.get("requester_pays") or None
        return self._client.bucket(self._name, user_project=self._client.project if payer is True else payer)

    def _blob(self, key: str, **options: Any) -> storage.Blob:
        return self._bucket().blob(key, **options)

    def _info(self, blob: storage.Blob) -> ObjectInfo:
        return ObjectInfo(key=blob.name, size_bytes=int(blob.size), modified_at=blob.updated, etag=blob.etag)

    @contextlib.contextmanager
    def _errors(self, key: str, *, is_create: bool = False) -> Iterator[None]:
        """Within: every error of Google's client leaves as one of ours."""
        url = f"{self.url}/{key}" if key else self.url
        try:
            yield
        except ArtifactSyncError:
            raise
        except gcs_errors.FOREIGN_ERRORS as error:
            was_answered = self._was_answered = self._was_answered or isinstance(error, api.GoogleAPICallError)
            if isinstance(error, api.NotFound) and self._is_bucket_missing(error):
                raise gcs_errors.bucket_missing(self.url) from error
            ours = gcs_errors.translated(error, url=url, bucket_url=self.url, is_create=is_create)
            if not was_answered and type(ours) is TransientStoreError:
                hint = "check the endpoint and the network"
                ours = RemoteUnreachableError(f"{self.url} never answered: {ours.message}", hint=hint, url=url)
            raise ours from gcs_errors.scrubbed(error)
        else:
            self._was_answered = True

    def _is_bucket_missing(self, error: api.NotFound) -> bool:
        """Whether a 404 is about the bucket; asks for a listing where the answer does not say."""
        told = gcs_errors.is_about_bucket(error)
        if told is None and not self._bucket_was_seen:
            try:
                next(iter(self._pages("", max_results=1)), None)
            except api.NotFound:
                return True
            except gcs_errors.FOREIGN_ERRORS:
                return False  # it could not be asked; the object is missing in any case
            self._bucket_was_seen = True
        return bool(told)

    def _make_contact(self) -> None:
        """Before the first large upload: find out with a small request whether the endpoint answers at all."""
        if not self._was_answered:
            with self._errors(""), contextlib.suppress(api.Forbidden):  # who may write need not be allowed to list
                next(iter(self._pages("", max_results=1)), None)
