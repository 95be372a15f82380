"""What any fsspec filesystem says, in our words.

Owns: the mapping, from built-in meanings, HTTP statuses and a few class names; no cloud library is imported for it.

Invariant: an error after which a create-only write may have been applied is an ``UnknownOutcomeError``.
"""

from __future__ import annotations

import errno
import http.client
import socket
from typing import TYPE_CHECKING

from artifactsync.errors import (
    AlreadyExistsError,
    ArtifactSyncError,
    ConfigurationError,
    CredentialsError,
    DestinationError,
    DiskFullError,
    ObjectNotFoundError,
    PermissionDeniedError,
    RemoteUnreachableError,
    StoreError,
    TransientStoreError,
    UnknownOutcomeError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

_NO_CREDENTIALS = frozenset(
    {
        "NoCredentialsError",  # botocore
        "PartialCredentialsError",
        "CredentialRetrievalError",
        "TokenRetrievalError",
        "UnauthorizedSSOTokenError",
        "DefaultCredentialsError",  # google-auth
        "RefreshError",
        "AuthenticationException",  # paramiko
        "ClientAuthenticationError",  # azure
    }
)
_BAD_CREDENTIALS = frozenset(
    {"ExpiredToken", "InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "RequestTimeTooSkewed"}
)  # S3's error codes
_UNREACHABLE = frozenset(
    {
        "EndpointConnectionError",  # botocore
        "ConnectTimeoutError",
        "ClientConnectorError",  # aiohttp
        "ClientConnectorDNSError",
        "NoValidConnectionsError",  # paramiko
        "NewConnectionError",  # urllib3
        "NameResolutionError",
    }
)
_BROKEN = frozenset(
    {
        "ClientError",  # aiohttp's; botocore's has a status and is asked for that first
        "ClientPayloadError",
        "ServerDisconnectedError",
        "ServerTimeoutError",
        "ReadTimeoutError",
        "ResponseStreamingError",
        "ConnectionClosedError",
        "IncompleteReadError",
        "ChecksumError",
        "SSHException",
    }
)
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_SHAPE = frozenset({errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY, errno.ENAMETOOLONG, errno.ELOOP})
_BUSY = frozenset({errno.EBUSY, errno.EIO, errno.ETIMEDOUT, errno.EAGAIN, getattr(errno, "EREMOTEIO", errno.EIO)})


def translated(error: Exception, *, url: str, is_create: bool = False) -> ArtifactSyncError:
    """Our error for ``error``.

    Args:
        error: What a filesystem raised.
        url: What it happened at.
        is_create: Whether the request was a create-only write, which must not be sent again blindly.
    """
    if isinstance(error, TypeError):  # s3fs looks at its options with the first request
        return ConfigurationError(f"{url}: {error}", hint="check the storage options", url=url)
    for ours in (_of_meaning(error, url, is_create), _of_access(error, url), _of_line(error, url, is_create)):
        if ours is not None:
            return ours
    text = f"{url}: {type(error).__name__}: {str(error)[:200]}"
    if is_create:
        return UnknownOutcomeError(text, hint="read the key back to know", url=url)
    return StoreError(text, url=url)


def _of_meaning(error: Exception, url: str, is_create: bool) -> ArtifactSyncError | None:
    """What is or is not there."""
    status = _status(error)
    if isinstance(error, FileExistsError) or status == http.client.PRECONDITION_FAILED:
        if is_create:
            return AlreadyExistsError(f"{url} exists already", url=url)
        return _misshapen(error, url)
    if isinstance(error, FileNotFoundError | IsADirectoryError) or status == http.client.NOT_FOUND:
        return ObjectNotFoundError(f"{url} does not exist", url=url)
    if isinstance(error, OSError) and error.errno in _SHAPE:
        return _misshapen(error, url)
    if isinstance(error, OSError) and error.errno in _FULL:
        return DiskFullError(f"no space left for {url}", hint="free some space, then try again", url=url)
    return None


def _of_access(error: Exception, url: str) -> ArtifactSyncError | None:
    """Who may do it."""
    status, names = _status(error), _names(error)
    if status == http.client.UNAUTHORIZED or names & _NO_CREDENTIALS or _s3_code(error) in _BAD_CREDENTIALS:
        return CredentialsError(
            f"no valid credentials for {url}", hint="log in again, or pass storage_options", url=url
        )
    is_forbidden = isinstance(error, PermissionError) or str(error).startswith("Forbidden")  # gcsfs says it in words
    if is_forbidden or status == http.client.FORBIDDEN:
        return PermissionDeniedError(f"{url}: not allowed", hint="check what the account or user may do there", url=url)
    return None


def _of_line(error: Exception, url: str, is_create: bool) -> ArtifactSyncError | None:
    """What is between here and there."""
    status, names = _status(error), _names(error)
    if names & _UNREACHABLE or isinstance(error, ConnectionRefusedError | socket.gaierror):
        return RemoteUnreachableError(f"cannot reach {url}", hint="check the endpoint and the network", url=url)
    if status == http.client.TOO_MANY_REQUESTS:
        return TransientStoreError(f"{url}: too many requests (429)", url=url)
    is_broken = (
        (status is not None and (status >= http.client.INTERNAL_SERVER_ERROR or status == http.client.CONFLICT))
        or isinstance(error, ConnectionError | TimeoutError)
        or (isinstance(error, OSError) and error.errno in _BUSY)
        or bool(names & _BROKEN)
    )
    if not is_broken:
        return None
    text = f"{url}: the request broke off ({type(error).__name__}{f', {status}' if status else ''})"
    if is_create:
        return UnknownOutcomeError(text, hint="read the key back to know", url=url)
    return TransientStoreError(text, url=url)


def _misshapen(error: Exception, url: str) -> DestinationError:
    why = getattr(error, "strerror", None) or type(error).__name__
    return DestinationError(
        f"{url}: {why}", hint="a file and a folder cannot have the same name; names may be too long", url=url
    )


def _status(error: BaseException) -> int | None:
    """The HTTP status in the error or its cause, wherever its library keeps it."""
    for cause in _chain(error):
        response = getattr(cause, "response", None)
        found = response.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(response, dict) else None
        for name in ("status_code", "status", "code"):
            found = found or getattr(cause, name, None)
        if isinstance(found, int | str) and str(found).isdecimal():
            return int(found)
    return None


def _s3_code(error: BaseException) -> str:
    for cause in _chain(error):
        response = getattr(cause, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
    return ""


def _names(error: BaseException) -> frozenset[str]:
    return frozenset(kind.__name__ for cause in _chain(error) for kind in type(cause).__mro__)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and its causes."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__
