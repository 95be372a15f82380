"""The saver of each run that is open, and waiting for it.

Owns: which saver belongs to which run. Does not own: what a saver does (``saving``).

Invariant: a run has one saver as long as it lives, and no longer.
"""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING, Any

from artifactsync.checkpoint.saving import StateSaver

if TYPE_CHECKING:
    from artifactsync.checkpoint.local_run import LocalRun
    from artifactsync.run import Run

_savers: weakref.WeakKeyDictionary[Run | LocalRun, StateSaver] = weakref.WeakKeyDictionary()
_savers_lock = threading.Lock()


def saver_of(run: Run | LocalRun) -> StateSaver:
    """The saver of a run, made when it is first asked for."""
    with _savers_lock:
        saver = _savers.get(run)
        if saver is None:
            saver = _savers[run] = StateSaver()
        return saver


def prepare_state(run: Run | LocalRun, state: Any) -> None:
    """Have the memory for snapshots of ``state``, or of a part of it, before the first save needs it.

    Raises:
        ConfigurationError: the state holds something that cannot be loaded again with ``weights_only=True``.
    """
    saver_of(run).prepare(state)


def wait_copied(run: Run | LocalRun) -> None:
    """Hold the caller until the last state saved is copied; then it may change anything, however it was saved."""
    saver_of(run).settle()


def wait_written(run: Run | LocalRun) -> None:
    """Wait until every state saved so far has its local file, or failed to."""
    saver_of(run).wait()
