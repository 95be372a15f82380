"""S3 and its likes: three ways to one bucket, and which request takes which.

Owns the choice: single requests (get, head, put of one part, put_if_absent, delete, copy) by ``s3_wire``, which sees
``Retry-After``; uploads in parts by obstore, whose threads take no training time; by boto3 what is left: listing,
create-only uploads too large for one request, copies beyond 5 GiB, deletion in bulk. Does not own: connections
(``s3_connection``), credentials (``credentials``).

Invariants: what is listed is what is there, key by key, however hostile a key is. No single request is sent again
before the time that the service asked for. Limit: a *part* of an upload is sent again by obstore, which cannot see the
wish, ``THROTTLED_PAUSE_S`` after a refusal at the earliest (docs/design/005-retry-after.md).
"""

from __future__ import annotations

import contextlib
import dataclasses
import email.utils
import os
import threading
import unicodedata
from datetime import timezone
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from artifactsync.errors import (
    AlreadyExistsError,
    ArtifactSyncError,
    CredentialsError,
    ObjectNotFoundError,
    PermissionDeniedError,
    RemoteUnreachableError,
    StoreError,
    UnsafeKeyError,
)
from artifactsync.stores.credentials import S3Settings, SessionCredentials, read_s3_settings
from artifactsync.stores.keys import split_key
from artifactsync.stores.object import PART_BYTES, SHORT_BYTES, ObjectStore
from artifactsync.stores.object_errors import UNKNOWN_REGION_HINT, Answer, from_botocore, printable_cause, wrong_region
from artifactsync.stores.protocol import Body, BytesBody, ObjectInfo
from artifactsync.stores.s3_connection import is_virtual, open_boto_client, open_s3_lanes
from artifactsync.stores.s3_parts import upload_in_parts
from artifactsync.stores.s3_wire import Reply, S3Wire
from artifactsync.stores.unfinished import UnfinishedUpload

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

_MIB = 1024 * 1024
_ASK_FIRST_BYTES = 1024 * 1024
"""Before a create-only write of more than this, the store is asked whether the key is free: a service that refuses in
mid-body may cut the line (LocalStack does), and then the answer is lost. The condition still decides."""

_SINGLE_CREATE_BYTES = 64 * _MIB  # beyond, a create-only upload goes in parts and the condition is on its completion
_SINGLE_DELETES = 3  # so many keys are deleted one by one; more of them a thousand at a time
_BULK_DELETES = 1000  # Source: https://docs.aws.amazon.com/AmazonS3/latest/API/API_DeleteObjects.html
_RANGE_NOT_SATISFIABLE = 416
_PARTIAL = 206
_SINGLE_COPY_BYTES = 5 * 1024 * _MIB  # Source: https://docs.aws.amazon.com/AmazonS3/latest/API/API_CopyObject.html


_Sent = TypeVar("_Sent")


class S3ObjectStore(ObjectStore):
    """A bucket of S3 or of a service that speaks its protocol.

    Args:
        bucket: Its name.
        settings: Where and as whom.
    """

    max_create_bytes = 5 * 1024 * 1024 * _MIB
    can_begin = True

    def __init__(self, bucket: str, settings: S3Settings) -> None:
        url = f"s3://{bucket}"
        self._credentials = None if settings.anon else SessionCredentials(settings.session, url=url)
        super().__init__(open_s3_lanes(bucket, settings, self._credentials), url)
        self._bucket = bucket
        self._settings = settings
        self._client: Any = None
        self._client_pid = 0
        self._client_lock = threading.Lock()
        self._wire: S3Wire | None = None
        self._is_encrypting = False

    def get(self, key: str, *, start: int = 0, end: int | None = None) -> bytes:
        """Return the bytes ``[start, end)``. See ``Store.get``."""
        _refuse_control_characters(key)
        if end is not None and end <= start:
            self.head(key)
            return b""
        is_long = end is None or end - start > SHORT_BYTES
        if is_long:
            self._make_contact(key)
        fields = _range(start, end)
        reply = self._send("GET", key, headers=fields, is_long=is_long, also_fine=_RANGE_NOT_SATISFIABLE)
        return _content(reply, start, end)

    def begin_get(self, key: str, *, start: int, end: int) -> Callable[[], bytes] | None:
        """Ask for the bytes ``[start, end)``. See ``stores.ahead``."""
        if not self._was_answered or end <= start:
            return None
        _refuse_control_characters(key)
        reply = self._open_wire().begin("GET", key, headers=_range(start, end), also_fine=_RANGE_NOT_SATISFIABLE)
        return None if reply is None else lambda: _content(reply(), start, end)

    def begin_put(self, key: str, data: bytes, *, sha256: str) -> Callable[[], ObjectInfo] | None:
        """Send an object. See ``stores.ahead``."""
        if not self._was_answered or (self._settings.encryption and not self._is_encrypting):
            return None
        _refuse_control_characters(key)
        reply = self._open_wire().begin("PUT", key, body=data, sha256=sha256, headers=self._encryption_headers)
        return None if reply is None else lambda: self._stored(reply(), key, data)

    def head(self, key: str) -> ObjectInfo:
        """Return what the store knows of an object. See ``Store.head``."""
        _refuse_control_characters(key)
        try:
            fields = self._send("HEAD", key).headers
        except (ObjectNotFoundError, PermissionDeniedError, StoreError) as error:
            if type(error) in {ObjectNotFoundError, PermissionDeniedError, StoreError}:
                self._explain(key, error)
            raise
        at = email.utils.parsedate_to_datetime(fields["Last-Modified"]) if "Last-Modified" in fields else None
        return ObjectInfo(
            key=key, size_bytes=int(fields.get("Content-Length") or 0), modified_at=at, etag=fields.get("ETag")
        )

    def put(self, key: str, body: Body | bytes) -> ObjectInfo:
        """Write an object, in parts if it is large. See ``Store.put``."""
        body = BytesBody(body) if isinstance(body, bytes) else body
        if body.size_bytes <= PART_BYTES:
            return super().put(key, body)
        split_key(key)
        self._confirm_encryption(key)
        if self._settings.encryption and self._settings.encryption.context:  # which obstore cannot send
            return self._in_parts(key, body, is_create=False)
        return self._with_checksum(lambda: super(S3ObjectStore, self).put(key, body))

    def put_if_absent(self, key: str, body: Body | bytes) -> ObjectInfo:
        """Write an object unless it exists; a large one in parts. See ``Store.put_if_absent``."""
        size_bytes = len(body) if isinstance(body, bytes) else body.size_bytes
        if size_bytes > _ASK_FIRST_BYTES and self._exists(key):
            raise AlreadyExistsError(f"{self.url}/{key} exists already", url=f"{self.url}/{key}")
        if isinstance(body, bytes) or body.size_bytes <= _SINGLE_CREATE_BYTES:
            return super().put_if_absent(key, body)
        split_key(key)
        self._confirm_encryption(key)
        return self._in_parts(key, body, is_create=True)

    def _exists(self, key: str) -> bool:
        try:
            self.head(key)
        except ObjectNotFoundError:
            return False
        return True

    @property
    def ordered_listing(self) -> bool:  # type: ignore[override] # which service it is decides
        """Whether ``list`` is in key order: AWS promises it; others have been seen to list folder by folder."""
        return self._settings.endpoint_url is None

    def list(self, prefix: str = "", *, start_after: str = "") -> Iterator[ObjectInfo]:
        """Yield the objects whose key starts with ``prefix``. See ``Store.list``."""
        if not start_after.startswith(prefix):
            if start_after > prefix:
                return
            start_after = ""
        passed_over = [] if self.ordered_listing else _folders_passed_over(prefix, start_after)
        for folder in passed_over:
            yield from self._list(folder, "", [])
        yield from self._list(prefix, start_after, passed_over)

    def _list(self, prefix: str, start_after: str, known: Sequence[str]) -> Iterator[ObjectInfo]:
        for page in self._pages(Prefix=prefix, StartAfter=start_after):
            for found in page.get("Contents", ()):
                key = found["Key"]
                if key > start_after and not key.startswith(tuple(known)):
                    at = found["LastModified"].astimezone(timezone.utc)
                    yield ObjectInfo(key=key, size_bytes=found["Size"], modified_at=at, etag=found.get("ETag"))

    def list_folders(self, prefix: str = "") -> Sequence[str]:
        """Return the names of the direct sub-folders. See ``Store.list_folders``."""
        pages = self._pages(Prefix=prefix, Delimiter="/")
        found = [entry["Prefix"] for page in pages for entry in page.get("CommonPrefixes", ())]
        return [name for entry in found if (name := entry[len(prefix) :].rstrip("/"))]

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects, also those with keys that this store would not write. See ``Store.delete``."""
        every = list(keys)
        if len(every) <= _SINGLE_DELETES:
            for key in every:
                with contextlib.suppress(ObjectNotFoundError):
                    self._send("DELETE", key)
            return
        plain = [key for key in every if key.isprintable()]
        for key in set(every).difference(plain):  # XML has no words for them
            self._send("DELETE", key)
        for first in range(0, len(plain), _BULK_DELETES):
            wanted = {"Objects": [{"Key": key} for key in plain[first : first + _BULK_DELETES]], "Quiet": True}
            with self._boto_errors(""):
                failed = self._boto().delete_objects(Bucket=self._bucket, Delete=wanted).get("Errors", ())
            for one in failed:
                if one.get("Code") != "NoSuchKey":
                    url = f"{self._url}/{one.get('Key', '')}"
                    code = one.get("Code", "")
                    status = 403 if code == "AccessDenied" else 400  # no status of its own in the answer to many
                    raise Answer(url=url, status=status, code=code, detail=one.get("Message", "")).error()

    def unfinished_uploads(self, prefix: str = "") -> Iterator[UnfinishedUpload]:
        """Yield multipart uploads that were begun and neither completed nor aborted. See ``stores.unfinished``."""
        where: dict[str, str] = {"Prefix": prefix} if prefix else {}
        while True:
            with self._boto_errors(prefix):
                page = self._boto().list_multipart_uploads(Bucket=self._bucket, **where)
            for found in page.get("Uploads", ()):
                if found["Key"].startswith(prefix):
                    at = found["Initiated"].astimezone(timezone.utc)
                    yield UnfinishedUpload(key=found["Key"], upload_id=found["UploadId"], started_at=at)
            if not page.get("IsTruncated"):
                return
            where |= {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}

    def abort_upload(self, upload: UnfinishedUpload) -> None:
        """Delete the parts that were sent. See ``stores.unfinished``."""
        with contextlib.suppress(ObjectNotFoundError), self._boto_errors(upload.key):
            self._boto().abort_multipart_upload(Bucket=self._bucket, Key=upload.key, UploadId=upload.upload_id)

    def _put_whole(self, key: str, data: bytes, *, is_create: bool) -> ObjectInfo:
        is_long = len(data) > SHORT_BYTES
        if is_long:
            self._make_contact(key)
        _refuse_control_characters(key)
        self._confirm_encryption(key)
        fields = self._encryption_headers | ({"If-None-Match": "*"} if is_create else {})
        wanted: dict[str, Any] = {"headers": fields, "is_create": is_create}
        sent = self._with_checksum(lambda: self._send("PUT", key, body=data, is_long=is_long, **wanted))
        return self._stored(sent, key, data)

    def _stored(self, sent: Reply, key: str, data: bytes) -> ObjectInfo:
        self._check_encrypted(sent, key)
        return ObjectInfo(key=key, size_bytes=len(data), etag=sent.headers.get("ETag"))

    def _with_checksum(self, send: Callable[[], _Sent]) -> _Sent:
        """Send; where the service refuses our kind of checksum, send without one, now and from now on."""
        try:
            return send()
        except StoreError as error:
            if type(error) is not StoreError or "checksum" not in error.message.lower():
                raise
            if not self._settings.checksum_algorithm:
                raise
        self._settings = dataclasses.replace(self._settings, checksum_algorithm="")
        self._lanes = open_s3_lanes(self._bucket, self._settings, self._credentials)
        self._wire = None
        return send()

    def _refined(self, error: ArtifactSyncError) -> ArtifactSyncError:
        if isinstance(error, CredentialsError) and self._credentials and self._credentials.failure:
            return self._credentials.failure
        if error.hint != UNKNOWN_REGION_HINT:
            return error
        import botocore.exceptions  # noqa: PLC0415 loads the cloud library

        try:
            headers = self._boto().head_bucket(Bucket=self._bucket)["ResponseMetadata"]["HTTPHeaders"]
        except botocore.exceptions.ClientError as refusal:
            headers = refusal.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        except botocore.exceptions.BotoCoreError:
            return error
        return wrong_region(error.url or self._url, headers.get("x-amz-bucket-region", ""))

    def close(self) -> None:
        """Close boto3's connections; obstore's end with the object."""
        with self._client_lock:
            if self._client is not None:
                self._client.close()
            if self._wire is not None:
                self._wire.close()

    def _copy(self, source: str, target: str, size_bytes: int) -> None:
        self._confirm_encryption(target)
        if size_bytes <= _SINGLE_COPY_BYTES:
            origin = {"x-amz-copy-source": quote(f"/{self._bucket}/{source}", safe="/~")}
            done = self._send("PUT", target, headers=origin | self._encryption_headers, is_long=True)
            self._check_encrypted(done, target)
            return
        arguments = self._settings.encryption_arguments
        arguments.pop("BucketKeyEnabled", None)  # boto3 has no word for it here; it saves requests, nothing else
        with self._boto_errors(source):
            self._boto().copy({"Bucket": self._bucket, "Key": source}, self._bucket, target, ExtraArgs=arguments)

    @property
    def _encryption_headers(self) -> dict[str, str]:
        return self._settings.encryption.headers if self._settings.encryption else {}

    def _check_encrypted(self, reply: Reply, key: str) -> None:
        if self._settings.encryption:
            self._settings.encryption.check(reply.headers, f"{self._url}/{key}")

    def _pages(self, **query: str) -> Iterator[dict[str, Any]]:
        token: dict[str, str] = {}
        query = {name: value for name, value in query.items() if value}
        while True:
            with self._boto_errors(""):
                page = self._boto().list_objects_v2(Bucket=self._bucket, **query, **token)
            yield page
            if not page.get("IsTruncated"):
                return
            token = {"ContinuationToken": page["NextContinuationToken"]}

    def _in_parts(self, key: str, body: Body, *, is_create: bool) -> ObjectInfo:
        where = {"Bucket": self._bucket, "Key": key}
        encryption = self._settings.encryption_arguments
        return upload_in_parts(
            self._boto(), where, body, errors=self._boto_errors, encryption=encryption, is_create=is_create
        )

    def _confirm_encryption(self, key: str) -> None:
        """Before the first write: begin an upload and give it up, to see what the service says to the encryption.

        Raises:
            ConfigurationError: it does not confirm it. Nothing was sent.
        """
        encryption = self._settings.encryption
        if encryption is None or self._is_encrypting:
            return
        where = {"Bucket": self._bucket, "Key": key}
        with self._boto_errors(key):
            begun = self._boto().create_multipart_upload(**where, **encryption.arguments)
        with contextlib.suppress(ArtifactSyncError), self._boto_errors(key):  # who may write need not be allowed to
            self._boto().abort_multipart_upload(**where, UploadId=begun["UploadId"])
        encryption.check(begun["ResponseMetadata"]["HTTPHeaders"], self._url)
        self._is_encrypting = True

    def _send(self, method: str, key: str, **request: Any) -> Reply:
        """Send one request, once; see ``S3Wire.send``."""
        try:
            reply = self._open_wire().send(method, key, **request)
        except RemoteUnreachableError:
            raise
        except ArtifactSyncError as error:
            if isinstance(error, ObjectNotFoundError) and method != "HEAD":
                self._was_answered = True  # it is the key that is missing, not the bucket
            refined = self._refined(error)
            if refined is error:
                raise
            raise refined from error
        self._was_answered = True
        return reply

    def _open_wire(self) -> S3Wire:
        wire = self._wire
        if wire is not None and self._client_pid == os.getpid():
            return wire
        service_url = self._boto().meta.endpoint_url
        with self._client_lock:
            if self._wire is None:
                self._wire = S3Wire(
                    self._bucket,
                    self._settings,
                    self._credentials,
                    service_url=service_url,
                    is_virtual=is_virtual(self._bucket, self._settings),
                )
            return self._wire

    def _explain(self, key: str, error: ArtifactSyncError) -> None:
        if not (isinstance(error, ObjectNotFoundError) and self._was_answered):
            self._send("GET", key, headers={"Range": "bytes=0-0"}, also_fine=_RANGE_NOT_SATISFIABLE)

    def _boto(self) -> Any:
        with self._client_lock:
            if self._client is None or self._client_pid != os.getpid():  # a forked child must not share connections
                self._client, self._client_pid = open_boto_client(self._settings), os.getpid()
            return self._client

    @contextlib.contextmanager
    def _boto_errors(self, key: str, *, is_create: bool = False) -> Iterator[None]:
        """Around each use of boto3: its errors in our words."""
        import botocore.exceptions  # noqa: PLC0415 loads the cloud library

        try:
            yield
        except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as error:
            url = f"{self._url}/{key}" if key else self._url
            raise from_botocore(error, url=url, is_create=is_create) from printable_cause(error)
        self._was_answered = True


def s3_store(bucket: str, storage_options: Mapping[str, Any]) -> S3ObjectStore:
    """Open a bucket. See ``stores.credentials`` for the options.

    Raises:
        ConfigurationError: a wrong option.
        CredentialsError: there are none.
    """
    return S3ObjectStore(bucket, read_s3_settings(storage_options))


def _range(start: int, end: int | None) -> dict[str, str]:
    is_whole = start == 0 and end is None
    return {} if is_whole else {"Range": f"bytes={start}-{'' if end is None else end - 1}"}


def _content(reply: Reply, start: int, end: int | None) -> bytes:
    if reply.status == _RANGE_NOT_SATISFIABLE:
        return b""
    is_whole = start == 0 and end is None
    return reply.content if is_whole or reply.status == _PARTIAL else reply.content[start:end]


def _refuse_control_characters(key: str) -> None:
    """Refuse what obstore refuses, so that a key does not depend on its body's length.

    Raises:
        UnsafeKeyError: the key would be changed on its way, or has control characters.
    """
    split_key(key)
    if not key.isprintable() and any(unicodedata.category(char) == "Cc" for char in key):
        raise UnsafeKeyError(f"the key {key!r} has control characters", hint="use keys such as run/model.pt")


def _folders_passed_over(prefix: str, start_after: str) -> list[str]:
    """Folders that sort after ``start_after`` as strings, but before it where a service lists folder by folder.

    ``a/b`` is greater than ``a-x``, but such a service (SeaweedFS) gives the folder ``a/`` first, and asked to start
    after ``a-x`` it leaves ``a/b`` out.
    """
    ends = [at for at in range(max(1, len(prefix)), len(start_after)) if start_after[at] < "/"]
    if start_after:
        ends.append(len(start_after))
    return [start_after[:at] + "/" for at in ends if start_after[at - 1] != "/"]
