"""Creating a record exactly once although answers get lost.

Owns: what to do after a create-only write whose outcome is unknown: read the key and compare. Does not own: what the
bytes mean (``journal``). The bytes must be unique to this writer (a ``write_id``), or another's equal record would
count as ours.

Invariant: returns if and only if ``key`` holds exactly ``data``; never deletes or overwrites anything.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from artifactsync.errors import (
    AlreadyExistsError,
    ArtifactSyncError,
    ObjectNotFoundError,
    RemoteUnreachableError,
    TransientStoreError,
    UnknownOutcomeError,
)
from artifactsync.stores.protocol import ObjectInfo
from artifactsync.stores.retry import RetryPolicy

if TYPE_CHECKING:
    from collections.abc import Callable

    from artifactsync.stores.protocol import Store


def create_once(
    store: Store,
    key: str,
    data: bytes,
    *,
    policy: RetryPolicy | None = None,
    sleep: Callable[[float], object] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> ObjectInfo:
    """Write ``data`` at ``key`` unless something else is there already.

    Args:
        store: Must have a true ``put_if_absent`` (``stores.probe``).
        key: Where.
        data: The record; unique to this writer.
        policy: How often and how long to try while outcomes stay unknown.
        sleep: Waits that many seconds; a test passes its own.
        clock: Monotonic seconds; a test passes its own.

    Raises:
        AlreadyExistsError: other bytes are there.
        UnknownOutcomeError: still unknown at the deadline; the record may be there.
        TransientStoreError: at the deadline, and surely not written.
    """
    policy = policy or RetryPolicy()
    began = clock()
    may_be_written = False
    attempt = 0
    while True:
        attempt += 1
        try:
            return store.put_if_absent(key, data)
        except (UnknownOutcomeError, TransientStoreError, AlreadyExistsError) as error:
            failure: ArtifactSyncError = error
        may_be_written = may_be_written or isinstance(failure, UnknownOutcomeError)
        asked_at, asked_s = clock(), getattr(failure, "retry_after_s", None) or 0.0
        try:
            return _read_back(store, key, data, failure)
        except ObjectNotFoundError:  # surely not written by any try that was answered: try again
            pass
        except (TransientStoreError, UnknownOutcomeError) as error:
            failure = error
        pause_s = max(
            policy.pause_s(attempt, failure), asked_at + asked_s - clock()
        )  # of the write, whoever failed last
        deadline_s = policy.deadline_s
        if isinstance(failure, RemoteUnreachableError) and not may_be_written:
            deadline_s = min(deadline_s, policy.unanswered_deadline_s)
        if attempt >= policy.max_attempts or clock() - began + pause_s > deadline_s:
            if may_be_written and not isinstance(failure, UnknownOutcomeError):
                raise UnknownOutcomeError(
                    f"{failure.message}; an earlier try may have been applied", hint=failure.hint, url=failure.url
                ) from failure
            raise failure
        sleep(pause_s)


def _read_back(store: Store, key: str, data: bytes, failure: ArtifactSyncError) -> ObjectInfo:
    """Return the object if it is ours.

    Raises:
        AlreadyExistsError: it is not.
        ObjectNotFoundError: nothing is there.
    """
    found = store.get(key, end=len(data) + 1)
    if found == data:
        return ObjectInfo(key=key, size_bytes=len(data))
    url = f"{store.url}/{key}"
    raise AlreadyExistsError(f"{url} exists already, with other bytes", url=url) from failure
