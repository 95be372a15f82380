"""What an object store answered, in our words: the one place where a status or a library's error becomes ours.

Owns: the meaning of HTTP statuses, S3 and Azure error codes, and of obstore's and botocore's exceptions. Does not
own: retries.

Limits: obstore hands out no response headers, so ``Retry-After`` is unknown there; a throttled answer (429, 503)
then carries ``retry_after_s`` = ``THROTTLED_PAUSE_S``. botocore's answers, and those of ``s3_wire``, carry the
server's own value (docs/design/005-retry-after.md).
"""

from __future__ import annotations

import email.utils
import re
import time
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

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
    UnsafeKeyError,
    redact,
)

THROTTLED_PAUSE_S = 5.0
"""Seconds that a request waits at least where the server's own ``Retry-After`` cannot be seen: most ask for less."""

BUSY_HINT = "the service is busy or failing: try again in a while"
"""The hint of what was tried for as long as the policy allows."""

UNKNOWN_REGION_HINT = "set AWS_REGION to the bucket's region"
"""The hint of a ``wrong_region`` whose right one is not known."""

_CREDENTIAL_CODES = frozenset(
    {
        "AuthFailure",
        "AuthenticationFailed",
        "ExpiredToken",
        "ExpiredTokenException",
        "InvalidAccessKeyId",
        "InvalidAuthenticationInfo",
        "InvalidClientTokenId",
        "InvalidSecurity",
        "InvalidToken",
        "NoAuthenticationInformation",
        "RequestExpired",
        "SignatureDoesNotMatch",
        "TokenRefreshRequired",
        "UnrecognizedClientException",
    }
)
_EXPIRED_CODES = frozenset({"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"})
_MISSING_BUCKET_CODES = frozenset({"NoSuchBucket", "ContainerNotFound", "ContainerBeingDeleted"})
_REGION_CODES = frozenset({"AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "PermanentRedirect"})
_THROTTLE_CODES = frozenset({"SlowDown", "ServiceUnavailable", "ServerBusy", "Throttling", "TooManyRequests"})
_BROKEN_BODY_CODES = frozenset({"BadDigest", "IncompleteBody", "OperationTimedOut", "RequestTimeout"})
_CONFLICT_CODES = frozenset({"ConditionalRequestConflict", "OperationAborted"})
_UNDECIDED_CODES = _THROTTLE_CODES | _BROKEN_BODY_CODES | _CONFLICT_CODES
_REDIRECTS = frozenset({HTTPStatus.MOVED_PERMANENTLY, HTTPStatus.TEMPORARY_REDIRECT, HTTPStatus.PERMANENT_REDIRECT})
_KNOWN_STATUSES = frozenset(HTTPStatus)
_TRANSIENT_STATUSES = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS})
_THROTTLE_STATUSES = frozenset({HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE})


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What is known of one failed request."""

    url: str
    """The object's URL, or the store's."""
    status: int | None = None
    """HTTP status; None: no answer came."""
    code: str = ""
    """The service's error code."""
    detail: str = ""
    """The service's message, or the library's."""
    region: str = ""
    """The region that the service named as the right one."""
    is_connecting: bool = False
    """No answer, and no connection either: nothing was sent."""
    is_create: bool = False
    """The request was a create-only write: unless surely refused, its outcome is unknown."""
    retry_after_s: float | None = None
    """The server's ``Retry-After``."""
    least_pause_s: float = 1.0
    """What a throttled request waits where no ``Retry-After`` was given, in seconds; more where it cannot be seen."""

    def error(self) -> ArtifactSyncError:
        """Return the error of ours that this answer means."""
        return self._definite() or self._indefinite()

    @property
    def _why(self) -> str:
        code = self.code or (HTTPStatus(self.status).phrase if self.status in _KNOWN_STATUSES else "")
        numbers = " ".join(word for word in (str(self.status or ""), code) if word)
        return ": ".join(words for words in (numbers, self.detail) if words)

    def _definite(self) -> ArtifactSyncError | None:
        """The request was understood and refused."""
        if self.code in _UNDECIDED_CODES:
            return None
        return self._access() or self._configuration() or self._state()

    def _access(self) -> ArtifactSyncError | None:
        url = self.url
        if self.code in _EXPIRED_CODES:
            hint = "renew them (aws sso login, or a new AWS_SESSION_TOKEN), then again: what is whole is not sent again"
            return CredentialsError(f"the credentials for {url} have expired: {self._why}", hint=hint, url=url)
        is_unknown = self.code in _CREDENTIAL_CODES or "failed to authenticate" in self.detail
        if is_unknown or (self.status == HTTPStatus.UNAUTHORIZED and not self.code):
            names = "AZURE_*" if url.startswith("az:") else "AWS_ACCESS_KEY_ID, AWS_PROFILE"
            hint = f"check {names} or storage_options; renew expired tokens"
            return CredentialsError(f"the credentials for {url} were refused: {self._why}", hint=hint, url=url)
        if self.status == HTTPStatus.FORBIDDEN and self.code != "RequestTimeTooSkewed":
            hint = "these credentials need a policy that allows it (artifactsync doctor says which)"
            return PermissionDeniedError(f"no permission for {url}: {self._why}", hint=hint, url=url)
        return None

    def _configuration(self) -> ArtifactSyncError | None:
        url = self.url
        if self.code == "RequestTimeTooSkewed":
            hint = "set this machine's clock (NTP), then try again"
            return ConfigurationError(
                f"{url} says that the clock of this machine is wrong: {self._why}", hint=hint, url=url
            )
        if self.code in _REGION_CODES or self.status in _REDIRECTS:
            return wrong_region(url, self.region)
        if self.code in _MISSING_BUCKET_CODES:
            hint = "check the name, or create it first"
            return BucketNotFoundError(f"the bucket of {url} does not exist", hint=hint, url=url)
        return None

    def _state(self) -> ArtifactSyncError | None:
        url, status = self.url, self.status
        if status == HTTPStatus.NOT_FOUND:
            return ObjectNotFoundError(f"{url} does not exist", url=url)
        if status in {HTTPStatus.CONFLICT, HTTPStatus.PRECONDITION_FAILED}:
            return AlreadyExistsError(f"{url} exists already", url=url)
        is_client_error = status is not None and status // 100 == 4 and status not in _TRANSIENT_STATUSES  # noqa: PLR2004
        if status == HTTPStatus.NOT_IMPLEMENTED or is_client_error:
            return StoreError(f"the store refused a request for {url}: {self._why}", url=url)
        return None

    def _indefinite(self) -> ArtifactSyncError:
        """Something broke, or the service is busy."""
        url = self.url
        name = "AZURE_STORAGE_ENDPOINT" if url.startswith("az:") else "AWS_ENDPOINT_URL"
        hint = f"check the endpoint ({name}, or endpoint_url in storage_options) and the network"
        if self.is_connecting:
            return RemoteUnreachableError(f"{url} cannot be reached: {self._why}", hint=hint, url=url)
        is_throttled = self.status in _THROTTLE_STATUSES
        surely_refused = self.status == HTTPStatus.TOO_MANY_REQUESTS or self.code in _UNDECIDED_CODES - _CONFLICT_CODES
        pause_s = self.retry_after_s or (self.least_pause_s if is_throttled else None)
        if self.is_create and not surely_refused:
            message = f"whether {url} was created is unknown: {self._why or 'no answer'}"
            return UnknownOutcomeError(message, url=url, retry_after_s=pause_s)
        if self.status is None and not self.code:
            return RemoteUnreachableError(f"{url} did not answer: {self._why}", hint=hint, url=url)
        asks = f"the service asks to wait {self.retry_after_s:g} s: try again then" if self.retry_after_s else BUSY_HINT
        return TransientStoreError(f"{url}: {self._why}", hint=asks, url=url, retry_after_s=pause_s)


def wrong_region(url: str, region: str) -> ConfigurationError:
    """The bucket is elsewhere: in ``region``, or where nobody said (empty)."""
    hint = f"set AWS_REGION={region}, or region in storage_options" if region else UNKNOWN_REGION_HINT
    return ConfigurationError(
        f"the bucket of {url} is in {f'region {region}' if region else 'another region'}", hint=hint, url=url
    )


def from_obstore(error: BaseException, *, url: str, is_create: bool = False) -> ArtifactSyncError:
    """Return what an exception of obstore's means."""
    text = str(error)
    if isinstance(error, ArtifactSyncError):
        return error
    if isinstance(error, ValueError) or type(error).__name__ == "InvalidPathError":
        hint = "use keys without control characters and without empty, '.' or '..' parts"
        return UnsafeKeyError(f"the key of {url} cannot be stored as it is", hint=hint, url=url)
    if type(error).__name__ == "UnauthenticatedError" and "credential provider" in text:
        return CredentialsError(
            f"no credentials for {url}: {_first_line(text)}", hint="renew them, then again", url=url
        )
    status = re.search(r"status code: (\d{3})", text)
    if "redirect without LOCATION" in text:
        return wrong_region(url, "")
    answer = Answer(
        url=url,
        status=int(status[1]) if status else _implied_status(error),
        code=said_in(text, "Code"),
        detail=said_in(text, "Message") or _transport_words(text),
        region=said_in(text, "Region") or region_of(said_in(text, "Endpoint")),
        is_connecting=re.search(r"legacy::Error\(\s*Connect,", text) is not None,
        is_create=is_create,
        least_pause_s=THROTTLED_PAUSE_S,
    )
    if answer.is_connecting and "certificate" in text.lower():
        hint = "set AWS_CA_BUNDLE (or SSL_CERT_FILE) to the certificate authority of this endpoint"
        return ConfigurationError(f"the TLS certificate for {url} is not trusted: {answer.detail}", hint=hint, url=url)
    return answer.error()


def from_botocore(error: Any, *, url: str, is_create: bool = False) -> ArtifactSyncError:
    """Return what an exception of botocore's means."""
    name = type(error).__name__
    response = getattr(error, "response", None)
    if response is not None:
        meta, said = response.get("ResponseMetadata", {}), response.get("Error", {})
        headers = meta.get("HTTPHeaders", {})
        code = str(said.get("Code", ""))
        return Answer(
            url=url,
            status=meta.get("HTTPStatusCode"),
            code="" if code.isdigit() else code,
            detail=said.get("Message", ""),
            region=said.get("Region") or headers.get("x-amz-bucket-region") or region_of(said.get("Endpoint", "")),
            is_create=is_create,
            retry_after_s=retry_after_s(headers.get("retry-after")),
        ).error()
    words = redact(str(error))
    if "Credential" in name or "Token" in name or "SSO" in name:
        hint = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or run 'aws sso login'"
        return CredentialsError(f"no usable credentials for {url}: {words}", hint=hint, url=url)
    if name == "SSLError":
        hint = "set AWS_CA_BUNDLE to the certificate authority of this endpoint"
        return ConfigurationError(f"the TLS certificate for {url} is not trusted: {words}", hint=hint, url=url)
    is_connecting = name in {"EndpointConnectionError", "ConnectTimeoutError", "ProxyConnectionError"}
    if is_connecting or name in {
        "ReadTimeoutError",
        "ConnectionClosedError",
        "HTTPClientError",
        "ResponseParserError",  # an answer that broke off
        "ResponseStreamingError",
    }:
        return Answer(url=url, detail=words, is_connecting=is_connecting, is_create=is_create).error()
    return ConfigurationError(
        f"{url}: {words}", hint="check AWS_PROFILE, the AWS config files and storage_options", url=url
    )


def printable_cause(error: BaseException) -> BaseException:
    """Return ``error``, or a copy without the secrets of its text (SAS signatures in URLs)."""
    text = str(error)
    clean = redact(text)
    return error if clean == text else RuntimeError(f"{type(error).__name__}: {clean}")


def _implied_status(error: BaseException) -> int | None:
    """The status behind an exception of obstore's that carries none (memory)."""
    names = {
        "AlreadyExistsError": 409,
        "FileNotFoundError": 404,
        "NotSupportedError": 501,
        "PermissionDeniedError": 403,
    }
    return names.get(type(error).__name__)


def said_in(text: str, name: str) -> str:
    """The content of an XML element of an answer; empty where there is none."""
    found = re.search(rf"<{name}>([^<]*)</{name}>", text)
    return " ".join(found[1].split("\n", 1)[0].split()) if found else ""


def _transport_words(text: str) -> str:
    """The innermost reason in obstore's debug text, in plain words."""
    for pattern, words in (
        (r"dns error|failed to lookup address", "the host name is not known"),
        (r"ConnectionRefused|Connection refused", "the connection was refused"),
        (r"TimedOut|Elapsed", "timed out"),
        (r"IncompleteMessage|ConnectionReset|BrokenPipe|UnexpectedEof", "the connection broke off"),
        (r"InvalidContentType|Parse\(", "the answer is not the expected protocol"),
        (r"(?i)certificate: (\w+)", "certificate"),
        (r"NetworkUnreachable|HostUnreachable", "there is no route to the host"),
    ):
        if re.search(pattern, text):
            return words
    return _first_line(text) if "Server returned" not in text else ""


def _first_line(text: str) -> str:
    return redact(text.split("\n", 1)[0])[:300]


def region_of(endpoint: str) -> str:
    """The region in a host name of AWS; empty where there is none."""
    found = re.search(r"s3[.-]([a-z]{2}(?:-[a-z]+)+-\d)\.amazonaws", endpoint)
    return found[1] if found else ""


def retry_after_s(value: str | None) -> float | None:
    """Seconds that a ``Retry-After`` asks for, written as a number or as a date; None where it asks for nothing."""
    text = (value or "").strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError):  # not there, or no date
        return None
