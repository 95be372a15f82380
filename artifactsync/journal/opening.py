"""Opening a run: is the store fit for it, and is the name free.

Invariant: no record is written to a store that was not seen to refuse a second create, unless the user allowed it.
"""

from __future__ import annotations

import threading
import uuid
from typing import TYPE_CHECKING

from artifactsync.errors import ConfigurationError, UnfencedStoreError
from artifactsync.journal.attempt import Attempt, claim
from artifactsync.journal.writer import WriterIdentity
from artifactsync.stores.probe import probe

if TYPE_CHECKING:
    from artifactsync.journal.log import JournalLog
    from artifactsync.stores.protocol import Store

_fit: set[tuple[str, bool]] = set()  # remotes, and whether they were only found fit without a fence
_lock = threading.Lock()


def check_store(store: Store, log: JournalLog, *, allow_unfenced: bool) -> None:
    """Refuse a store that cannot tell two writers of one run apart. Asked once per process and remote.

    Raises:
        UnfencedStoreError: what the store did instead.
        ConfigurationError: what is read from it is not what was written; no user can allow that.
    """
    with _lock:
        if (store.url, False) in _fit or (allow_unfenced and (store.url, True) in _fit):
            return
    capabilities = probe(store, log.layout.probe(uuid.uuid4().hex))
    if capabilities.unsoundness:
        raise ConfigurationError(
            f"{store.url} cannot hold checkpoints: {capabilities.unsoundness}",
            hint="use another store, or take away the cache or gateway in front of it",
            url=store.url,
        )
    if not capabilities.put_if_absent and not allow_unfenced:
        raise UnfencedStoreError(
            f"{store.url} has no working put-if-absent: {capabilities.reason}",
            hint="use a store with conditional writes; or pass allow_unfenced=True, and then two processes with one "
            "run name can overwrite each other's checkpoints unnoticed",
            url=store.url,
        )
    with _lock:
        _fit.add((store.url, not capabilities.put_if_absent))


def begin_attempt(store: Store, log: JournalLog, *, takeover: bool, allow_unfenced: bool, launch: str = "") -> Attempt:
    """Check the store, and claim the run; ``launch`` is what the other ranks look for.

    Raises:
        UnfencedStoreError: the store has no put-if-absent.
        RunIsLiveError: the run has an owner that is alive.
    """
    check_store(store, log, allow_unfenced=allow_unfenced)
    return claim(log, writer=WriterIdentity.of_this_process(), takeover=takeover, launch=launch)
