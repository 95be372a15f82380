"""Every exception of artifactsync, one tree, grouped by what a handler would do.

    ArtifactSyncError                 kind             exit  also a
    ├── ConfigurationError            configuration       2  ValueError   change the call, then try again
    │   ├── RunNameError              run-name            2
    │   ├── TemplateError             template            2
    │   ├── MissingPackageError       missing-package     2  ImportError
    │   ├── DestinationError          destination         2
    │   ├── BucketNotFoundError       bucket-not-found    2
    │   ├── UnfencedStoreError        unfenced-store      2
    │   └── NewerFormatError          newer-format        2
    ├── NotFoundError                 not-found           3  FileNotFoundError   look for another name
    │   ├── RunNotFoundError          run-not-found       3
    │   ├── CheckpointNotFoundError   checkpoint-not-found 3
    │   └── ObjectNotFoundError       object-not-found    3
    ├── DamagedError                  damaged             4  use an older checkpoint
    │   ├── MissingBytesError         missing             4
    │   └── UnsafeKeyError            unsafe-key          4
    ├── RunOwnedError                 run-owned           5  stop, or take the run over
    │   ├── RunFencedError            run-fenced          5
    │   └── RunIsLiveError            run-live            5
    ├── AccessError                   access              6  PermissionError   fix credentials or policy
    │   ├── CredentialsError          credentials         6
    │   └── PermissionDeniedError     permission          6
    ├── NotDurableError               not-durable         7  keep the local files, push again
    │   ├── UploadError               upload              7
    │   └── WaitTimeoutError          wait-timeout        7  TimeoutError
    └── StoreError                    store               1  one request failed
        ├── TransientStoreError       transient           1  retry
        │   └── RemoteUnreachableError unreachable        2  ConnectionError
        ├── UnknownOutcomeError       unknown-outcome     1  read back, never clean up
        ├── AlreadyExistsError        already-exists      1  FileExistsError
        ├── FileChangedError          file-changed        1  upload again
        └── DiskFullError             disk-full           1  OSError

``kind`` is a stable word for programs, ``hint`` says what to do, ``url`` where it happened, and
``exit_code`` is what the command line returns. Messages never hold credentials.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

_SECRET_QUERY = re.compile(
    r"(?i)((?:x-amz-(?:signature|credential|security-token)|x-goog-signature|sig|token|secret|password|key)=)[^&\s\"']+"
)

# Secrets have '@' and '/' in them, percent-encoded or not; what follows host:port is a path, though.
_USER_INFO = re.compile(r"(\w+://)(?:[^/\s]*|[^/@\s:]*:(?!\d{1,5}/)[^@\s]*)@")


def redact(text: str) -> str:
    """Return ``text`` with user info and signatures of any URL in it replaced by ``***``."""
    text = _USER_INFO.sub(r"\1***@", text)
    return _SECRET_QUERY.sub(r"\1***", text)


def redact_url(url: str) -> str:
    """Return ``url`` without user info and without secrets in its query."""
    return redact(url)


class ArtifactSyncError(Exception):
    """Any error of artifactsync.

    Args:
        message: What happened, one line.
        hint: What to do about it, one line; empty where nothing sensible can be said.
        url: The remote, key or path it happened at.
    """

    kind: ClassVar[str] = "unexpected"
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str = "", url: str | None = None) -> None:
        super().__init__(redact(message))
        self.message = redact(message)
        self.hint = redact(hint)
        self.url = redact_url(url) if url else None
        if self.hint and hasattr(self, "add_note"):  # Python 3.11: shown below the traceback
            self.add_note(f"hint: {self.hint}")

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.__dict__.copy()))


def _rebuild(cls: type[ArtifactSyncError], state: dict[str, Any]) -> ArtifactSyncError:
    """Unpickle an error whatever its constructor takes (errors cross process borders)."""
    error = cls.__new__(cls)
    Exception.__init__(error, state.get("message", ""))
    error.__dict__.update(state)
    return error


class ConfigurationError(ArtifactSyncError, ValueError):
    """The call or the configuration is wrong: nothing was tried."""

    kind = "configuration"
    exit_code = 2


class RunNameError(ConfigurationError):
    """A run name that is not allowed; the hint proposes one that is."""

    kind = "run-name"


class TemplateError(ConfigurationError):
    """A path template with an unknown placeholder, or one that leaves the run's folder."""

    kind = "template"


class MissingPackageError(ConfigurationError, ImportError):
    """An optional package is not installed; the hint has the pip command."""

    kind = "missing-package"


class DestinationError(ConfigurationError):
    """A local destination that cannot be used (a file where a folder must be, and the like)."""

    kind = "destination"


class BucketNotFoundError(ConfigurationError):
    """The bucket or container of the remote does not exist."""

    kind = "bucket-not-found"


class UnfencedStoreError(ConfigurationError):
    """The store has no true put-if-absent, so two writers of one run could not be told apart."""

    kind = "unfenced-store"


class NewerFormatError(ConfigurationError):
    """A record written by a newer artifactsync than this one."""

    kind = "newer-format"


class NotFoundError(ArtifactSyncError, FileNotFoundError):
    """Something asked for by name is not there."""

    kind = "not-found"
    exit_code = 3


class RunNotFoundError(NotFoundError):
    """No run of that name under the remote."""

    kind = "run-not-found"


class CheckpointNotFoundError(NotFoundError):
    """The run has no such committed checkpoint."""

    kind = "checkpoint-not-found"


class ObjectNotFoundError(NotFoundError):
    """No object at that key, or no file at that path."""

    kind = "object-not-found"


class DamagedError(ArtifactSyncError):
    """Bytes that differ from what the journal recorded."""

    kind = "damaged"
    exit_code = 4


class MissingBytesError(DamagedError):
    """A committed file is not there, or is shorter than recorded."""

    kind = "missing"


class UnsafeKeyError(DamagedError):
    """A remote key that would land outside the destination, or cannot be a file name here."""

    kind = "unsafe-key"


class RunOwnedError(ArtifactSyncError):
    """Another writer owns the run."""

    kind = "run-owned"
    exit_code = 5


class RunFencedError(RunOwnedError):
    """A later attempt has taken the run over: this process must stop writing to it."""

    kind = "run-fenced"


class RunIsLiveError(RunOwnedError):
    """The run has a writer that is still alive, and no takeover was asked for."""

    kind = "run-live"


class AccessError(ArtifactSyncError, PermissionError):
    """Credentials or permissions do not suffice."""

    kind = "access"
    exit_code = 6


class CredentialsError(AccessError):
    """No credentials, or wrong or expired ones."""

    kind = "credentials"


class PermissionDeniedError(AccessError):
    """The credentials are known, but may not do this."""

    kind = "permission"


class NotDurableError(ArtifactSyncError):
    """Not everything that was handed over is durable on the remote."""

    kind = "not-durable"
    exit_code = 7


class UploadError(NotDurableError):
    """An upload failed for good; names the key, the cause and the number of attempts."""

    kind = "upload"


class WaitTimeoutError(NotDurableError, TimeoutError):
    """The time given to wait ran out before everything was durable."""

    kind = "wait-timeout"


class StoreError(ArtifactSyncError):
    """One request to a store failed."""

    kind = "store"


class TransientStoreError(StoreError):
    """A request that failed, was surely not applied, and may succeed when sent again.

    Args:
        retry_after_s: What the server asked for in ``Retry-After``, in seconds, if it did.
    """

    kind = "transient"

    def __init__(
        self, message: str, *, hint: str = "", url: str | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message, hint=hint, url=url)
        self.retry_after_s = retry_after_s


class RemoteUnreachableError(TransientStoreError, ConnectionError):
    """The remote cannot be reached: wrong endpoint, no route, or it is down."""

    kind = "unreachable"
    exit_code = 2


class UnknownOutcomeError(StoreError):
    """A write whose answer was lost: it may or may not have been applied. Read back to know.

    Args:
        retry_after_s: How long the server asked to wait before the write is sent again, in seconds, if it did.
    """

    kind = "unknown-outcome"

    def __init__(
        self, message: str, *, hint: str = "", url: str | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message, hint=hint, url=url)
        self.retry_after_s = retry_after_s


class AlreadyExistsError(StoreError, FileExistsError):
    """The key exists already, and the write was create-only."""

    kind = "already-exists"


class FileChangedError(StoreError):
    """A local file changed while it was being read for an upload."""

    kind = "file-changed"


class DiskFullError(StoreError, OSError):
    """No space is left on the local disk; nothing was put at a visible name."""

    kind = "disk-full"
