"""The watcher for a cloud's notice: a quiet thread that calls back once, when this machine is about to go.

Owns: the thread, how often it asks, and that it ends. Does not own: the protocols (``notice_sources``), or what is done
about a notice (``StopSignal``, the ``Trainer``, the supervisor).

Invariant: nothing is ever raised into training; the callback is called at most once, and never after ``close``
returned.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

from artifactsync.batch.metadata_server import MetadataUnavailableError
from artifactsync.batch.notice_sources import notice_source

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Self

    from artifactsync.batch.job_env import JobEnv
    from artifactsync.batch.notice_sources import Notice, NoticeSource

LEAD_S = 120.0
"""An event is told this many seconds ahead, no earlier: Azure announces a reboot a quarter of an hour before."""

_MIN_PAUSE_S = 1.0
_MAX_PAUSE_S = 60.0  # between questions to a server that does not answer

_log = logging.getLogger(__name__)


def watch_for_notice(job: JobEnv, callback: Callable[[str, float], object]) -> NoticeWatch:
    """Watch for the notice of the cloud that this machine belongs to.

    Args:
        job: What ``job_env()`` found; where its ``notice_from`` is empty nothing is started.
        callback: Called once, in the watcher's thread, with the reason in words and the seconds that are left. What it
            raises is logged.

    Returns:
        The watch; close it, or use it as a context manager.
    """
    return NoticeWatch(notice_source(job.notice_from, job.environ), callback)


class NoticeWatch:
    """Asks a source until there is a notice, or until it is closed.

    Args:
        source: Whom to ask; None starts nothing.
        callback: Called once with the reason and the seconds that are left.
        lead_s: How long before the end an event is told at the earliest, in seconds.
    """

    def __init__(
        self, source: NoticeSource | None, callback: Callable[[str, float], object], *, lead_s: float = LEAD_S
    ) -> None:
        self._source, self._callback, self._lead_s = source, callback, lead_s
        self._closing = threading.Event()
        self._telling = threading.RLock()  # a callback may close the watch
        self._thread: threading.Thread | None = None
        if source is not None:
            self._thread = threading.Thread(target=self._watch, name="artifactsync-notice", daemon=True)
            self._thread.start()

    @property
    def is_watching(self) -> bool:
        """Whether somebody is being asked."""
        return self._thread is not None and self._thread.is_alive()

    def close(self) -> None:
        """End the watch; no callback begins after this returned. Idempotent, quick, also from within the callback."""
        self._closing.set()
        if self._source is not None:
            self._source.close()
        with self._telling:  # a callback that is running ends first
            pass
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=2.0)  # it is a daemon: whatever holds it does not hold the process

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _watch(self) -> None:
        source = self._source
        assert source is not None, "there is no thread without one"
        failures = 0
        while not self._closing.is_set():
            asked_at = time.monotonic()
            try:
                notice = source.ask()
                failures = 0
                # One that waits for changes is asked again at once; should it not wait, it is not asked without end.
                pause_s = max(source.interval_s, _MIN_PAUSE_S - (time.monotonic() - asked_at))
                if notice is not None:
                    early_s = notice.ends_at_unix_s - time.time() - self._lead_s
                    if early_s <= 0:
                        self._tell(notice)
                        return
                    pause_s = min(pause_s, early_s)
            except MetadataUnavailableError as error:
                failures += 1
                pause_s = min(_MAX_PAUSE_S, max(_MIN_PAUSE_S, source.interval_s) * 2 ** min(failures - 1, 6))
                _log.debug("the metadata server of %s does not answer: %s", source.cloud, error)
            except Exception:  # noqa: BLE001  (training goes on without a watch)
                _log.warning("the watch for a preemption notice ended", exc_info=True)
                return
            self._closing.wait(pause_s)

    def _tell(self, notice: Notice) -> None:
        with self._telling:
            if self._closing.is_set():
                return
            left_s = max(0.0, notice.ends_at_unix_s - time.time())
            _log.warning("%s, in %.0f s", notice.reason, left_s)
            try:
                self._callback(notice.reason, left_s)
            except Exception:  # noqa: BLE001  (it is somebody else's code, in our thread)
                _log.warning("the callback for a preemption notice failed", exc_info=True)
