"""What Google Cloud Storage and the line to it say, in our words: one function from their errors to ours.

Owns: the mapping. Does not own: whether a 404 is about the bucket or the object where the answer does not say (``gcs``
asks again).

Invariant: an error after which a create-only write may have been applied is an ``UnknownOutcomeError``; and no
upload session's address, which is a right to write, is in any message or cause.
"""

from __future__ import annotations

import email.utils
import http.client
import re
import time
from typing import TYPE_CHECKING

import google.api_core.exceptions as api
import google.auth.exceptions
import requests.exceptions
import urllib3.exceptions
from google.cloud.storage.exceptions import DataCorruption, InvalidResponse

from artifactsync.errors import (
    AlreadyExistsError,
    ArtifactSyncError,
    BucketNotFoundError,
    ConfigurationError,
    CredentialsError,
    ObjectNotFoundError,
    PermissionDeniedError,
    RemoteUnreachableError,
    StoreError,
    TransientStoreError,
    UnknownOutcomeError,
)
from artifactsync.stores.object_errors import BUSY_HINT

if TYPE_CHECKING:
    from collections.abc import Iterator

FOREIGN_ERRORS = (
    api.GoogleAPIError,
    google.auth.exceptions.GoogleAuthError,
    DataCorruption,
    InvalidResponse,
    requests.exceptions.RequestException,
    urllib3.exceptions.HTTPError,
    http.client.HTTPException,
    OSError,
)
"""Everything that the client raises for what happens outside this process."""

_NEVER_SENT = (
    urllib3.exceptions.NewConnectionError,
    urllib3.exceptions.ConnectTimeoutError,
    urllib3.exceptions.SSLError,
    urllib3.exceptions.ProxyError,
    requests.exceptions.ConnectTimeout,
    requests.exceptions.SSLError,
    requests.exceptions.ProxyError,
    google.auth.exceptions.TransportError,  # no token, so no request
)
_RATE_LIMITS = re.compile(r"rateLimitExceeded|userRateLimitExceeded|quotaExceeded", re.IGNORECASE)
_WRONG_CLOCK = re.compile(r"reasonable timeframe|iat and exp|issued in the future", re.IGNORECASE)
_CHECKSUM = re.compile(r"crc32c|md5|checksum", re.IGNORECASE)
_UPLOAD_SESSION = re.compile(r"(upload_id=)[^&\s:'\")]+")


def translated(error: Exception, *, url: str, bucket_url: str, is_create: bool = False) -> ArtifactSyncError:
    """Our error for ``error``.

    Args:
        error: One of ``FOREIGN_ERRORS``.
        url: What it happened at.
        bucket_url: The bucket, for errors that are about it.
        is_create: Whether the request was a create-only write, which must not be sent again blindly.
    """
    if isinstance(error, api.RetryError) and isinstance(error.cause, Exception):
        return translated(error.cause, url=url, bucket_url=bucket_url, is_create=is_create)
    if isinstance(error, api.GoogleAPICallError) and error.code is not None:
        return _of_status(error, int(error.code), url=url, bucket_url=bucket_url, is_create=is_create)
    if isinstance(error, DataCorruption):
        return _unsure(f"{url}: the bytes were damaged on their way (checksum)", url, is_create=is_create)
    if isinstance(error, google.auth.exceptions.GoogleAuthError) and not isinstance(
        error, google.auth.exceptions.TransportError
    ):
        return _of_login(error, url=url, bucket_url=bucket_url)
    why = _why(error)
    if any(isinstance(cause, _NEVER_SENT) for cause in _chain(error)):
        return RemoteUnreachableError(
            f"cannot reach {bucket_url}: {why}", hint="check the endpoint and the network", url=url
        )
    return _unsure(f"{url}: the connection broke ({why})", url, is_create=is_create)


def _of_login(error: Exception, *, url: str, bucket_url: str) -> ArtifactSyncError:
    """No token was given."""
    if _WRONG_CLOCK.search(str(error)):
        return ConfigurationError(
            f"Google says that the clock of this machine is wrong, for {bucket_url}",
            hint="set this machine's clock (NTP), then try again",
            url=url,
        )
    return CredentialsError(
        f"Google refused the credentials for {bucket_url}",
        hint="log in again (gcloud auth application-default login), or check the key file",
        url=url,
    )


def _of_status(  # noqa: PLR0911 one return for each meaning
    error: api.GoogleAPICallError, status: int, *, url: str, bucket_url: str, is_create: bool
) -> ArtifactSyncError:
    told = _UPLOAD_SESSION.sub(r"\1***", str(error.message))
    if status == http.client.NOT_FOUND:
        return ObjectNotFoundError(f"{url} does not exist", url=url)
    if status == http.client.PRECONDITION_FAILED and is_create:
        return AlreadyExistsError(f"{url} exists already", url=url)
    if status == http.client.UNAUTHORIZED:
        hint = "log in (gcloud auth application-default login) or set GOOGLE_APPLICATION_CREDENTIALS"
        return CredentialsError(f"{bucket_url} wants other credentials (401)", hint=hint, url=url)
    if status == http.client.TOO_MANY_REQUESTS or (status == http.client.FORBIDDEN and _RATE_LIMITS.search(told)):
        message = f"{url}: too many requests ({status})"
        return TransientStoreError(message, url=url, hint=BUSY_HINT, retry_after_s=asked_pause_s(error))
    if status == http.client.FORBIDDEN:
        hint = "the account needs the role Storage Object User on the bucket (roles/storage.objectUser)"
        return PermissionDeniedError(f"{url}: not allowed (403)", hint=hint, url=url)
    if status == http.client.BAD_REQUEST and _CHECKSUM.search(told):
        return TransientStoreError(f"{url}: the bytes were damaged on their way (checksum)", url=url)
    if status == http.client.BAD_REQUEST and "bucket name" in told:
        return BucketNotFoundError(f"{bucket_url} is no valid bucket name", hint="check the remote", url=bucket_url)
    if status in {http.client.REQUEST_TIMEOUT, http.client.CONFLICT, http.client.PRECONDITION_FAILED} or (
        status >= http.client.INTERNAL_SERVER_ERROR
    ):
        retry_after_s = asked_pause_s(error)
        return _unsure(f"{url}: the server failed ({status})", url, is_create=is_create, retry_after_s=retry_after_s)
    return StoreError(f"{url}: refused ({status}): {told.rpartition(': ')[2][:200]}", url=url)


def bucket_missing(bucket_url: str) -> BucketNotFoundError:
    """The error for a bucket that is not there."""
    hint = "create the bucket, or check the remote's name and the project"
    return BucketNotFoundError(f"the bucket {bucket_url} does not exist", hint=hint, url=bucket_url)


def is_about_bucket(error: api.GoogleAPICallError) -> bool | None:
    """Whether a 404 says that the bucket is missing; None where it does not say what is."""
    told = str(error.message).casefold()
    if "bucket does not exist" in told:
        return True
    return False if "no such object" in told else None


def scrubbed(error: Exception) -> Exception:
    """``error``, or one without its causes if the address of an upload session would be seen with it."""
    if not any(_UPLOAD_SESSION.search(f"{cause} {cause!r}") for cause in _chain(error)):
        return error
    return ConnectionError(_UPLOAD_SESSION.sub(r"\1***", f"{type(error).__name__}: {error}"))


def _unsure(message: str, url: str, *, is_create: bool, retry_after_s: float | None = None) -> StoreError:
    if is_create:
        hint = "read the key back to know"
        return UnknownOutcomeError(message, hint=hint, url=url, retry_after_s=retry_after_s)
    return TransientStoreError(message, hint=BUSY_HINT, url=url, retry_after_s=retry_after_s)


def asked_pause_s(error: Exception) -> float | None:
    """Seconds that the answer's Retry-After asks for (a number or a date)."""
    headers = getattr(getattr(error, "response", None), "headers", None) or {}
    value = str(headers.get("Retry-After", "")).strip()
    if value.isdecimal():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def _why(error: Exception) -> str:
    """The innermost reason, in a few words."""
    for cause in reversed(list(_chain(error))):
        if (
            isinstance(cause, OSError)
            and cause.strerror
            and not isinstance(cause, requests.exceptions.RequestException)
        ):
            return str(cause.strerror)
    if any(isinstance(c, requests.exceptions.Timeout | urllib3.exceptions.TimeoutError) for c in _chain(error)):
        return "timed out"
    return type(error).__name__


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and all that is within it or behind it, outermost first, each once."""
    seen: set[int] = set()
    waiting: list[object] = [error]
    while waiting:
        cause = waiting.pop(0)
        if not isinstance(cause, BaseException) or id(cause) in seen:
            continue
        seen.add(id(cause))
        yield cause
        waiting += [*cause.args, getattr(cause, "reason", None), cause.__cause__, cause.__context__]
