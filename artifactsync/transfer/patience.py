"""How long a failing upload is tried again, and when it is given up.

Owns: ``Patience`` and its verdicts. Does not own: waiting (``queue``), the single request's own retries
(``stores.retry``).

Background uploads are patient: training goes on, and the bytes lie safely on the local disk meanwhile. What no
patience can mend fails at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from artifactsync.errors import (
    AlreadyExistsError,
    ArtifactSyncError,
    ConfigurationError,
    CredentialsError,
    DiskFullError,
    FileChangedError,
    RemoteUnreachableError,
    StoreError,
    TransientStoreError,
    UnknownOutcomeError,
)
from artifactsync.stores.retry import own_jitter

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How patient a queue is with one upload."""

    deadline_s: float = 6 * 3600.0
    """Transient errors (unreachable, 5xx, throttling, a full store) are retried until this long after the first try,
    in seconds. Six hours outlast the long regional outages of the big clouds."""
    unanswered_deadline_s: float = 5.0
    """The deadline while the remote has never answered anything and someone waits for the upload: it is more likely
    wrong than down, and the user sits in front of it. In seconds. Shorter than the 8 s of ``stores.RetryPolicy``, so
    that one try of a store with that patience is enough."""
    base_delay_s: float = 0.5
    """Upper bound of the first pause, doubled with each try (full jitter), in seconds."""
    max_delay_s: float = 60.0
    """Upper bound of every pause, in seconds; a server's ``Retry-After`` may ask for more."""
    max_credentials_attempts: int = 5
    """Tries with credentials that are refused: a refresh in mid-training may take a moment, more is a mistake."""
    max_changed_attempts: int = 8
    """Tries of a file that changes while it is read, before it is said to be growing or in constant use."""
    max_store_attempts: int = 3
    """Tries of a request that the store refuses without saying why."""

    def gives_up(
        self,
        error: ArtifactSyncError,
        *,
        attempts: int,
        since_first_try_s: float,
        never_answered: bool,
        is_watched: bool,
    ) -> bool:
        """Say whether an upload that just failed has failed for good.

        Args:
            error: Why.
            attempts: Tries so far, this one included.
            since_first_try_s: Seconds since the first one began.
            never_answered: The remote has never answered any request of this queue.
            is_watched: Someone waits in ``wait``, ``close`` or ``result``.
        """
        if isinstance(error, CredentialsError):
            return attempts >= self.max_credentials_attempts
        if isinstance(error, FileChangedError):
            return attempts >= self.max_changed_attempts
        if isinstance(error, (AlreadyExistsError, ConfigurationError)):
            return True
        if isinstance(error, (TransientStoreError, UnknownOutcomeError, DiskFullError)):
            deadline_s = self.deadline_s
            if isinstance(error, RemoteUnreachableError) and never_answered and is_watched:
                deadline_s = min(deadline_s, self.unanswered_deadline_s)
            return since_first_try_s >= deadline_s
        return not isinstance(error, StoreError) or attempts >= self.max_store_attempts

    def pause_s(self, error: ArtifactSyncError, attempts: int, jitter: Callable[[], float] = own_jitter) -> float:
        """Seconds to wait after failure number ``attempts``: never less than the server asked for."""
        ceiling_s = min(self.max_delay_s, self.base_delay_s * 2.0 ** min(attempts - 1, 30))
        asked_s = getattr(error, "retry_after_s", None) or 0.0
        return float(max(asked_s, ceiling_s * jitter()))
