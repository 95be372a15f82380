"""One upload after the other: a try, and what follows from it.

Owns: ``Delivery``: reading through the limits, and settling, postponing or giving up. Does not own: what one try sends
(``sending``), how long is too long (``patience``), threads (``workers``).

Invariants: ``run`` never raises; after it the upload is settled or will be tried again.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from artifactsync.errors import (
    AccessError,
    AlreadyExistsError,
    ArtifactSyncError,
    ConfigurationError,
    RemoteUnreachableError,
    UploadError,
)
from artifactsync.stores.origin import origin_of
from artifactsync.transfer.failures import release_frames
from artifactsync.transfer.hashing import FileBody
from artifactsync.transfer.sending import send_file

if TYPE_CHECKING:
    from collections.abc import Callable

    from artifactsync.transfer.backlog import Backlog
    from artifactsync.transfer.being_written import GrowingBody
    from artifactsync.transfer.clock import Clock
    from artifactsync.transfer.courier import Courier
    from artifactsync.transfer.meter import Meter, Throttle
    from artifactsync.transfer.patience import Patience
    from artifactsync.transfer.politeness import Politeness
    from artifactsync.transfer.remote import Remote
    from artifactsync.transfer.upload import Upload, UploadedFile

COURIER_BYTES = 8 * 1024 * 1024
"""Files as large as this are sent by the process beside this one, if there is one: handing a file over costs about as
much as sending one of these."""

_FIRST_CONTACT_PAUSE_S = 1.0  # longest pause while someone waits for a remote that was never heard of


def _body(upload: Upload, source: str | int, on_read: Callable[[int], None]) -> FileBody | GrowingBody:
    if upload.writing is not None:
        return upload.writing.open(on_read)
    return FileBody(source, growing=upload.growing, on_read=on_read)


class Delivery:
    """Tries uploads of a backlog.

    Args:
        backlog: Where they come from.
        remote: Where they go.
        patience: How long failing ones are tried again.
        meter: Counts what moves.
        throttle: Limits it; None does not.
        politeness: Knows whether somebody waits.
        courier: A process that sends large files; None sends all from here.
        clock: The ``time`` module, or a ``FakeClock``.
    """

    def __init__(
        self,
        backlog: Backlog,
        remote: Remote,
        *,
        patience: Patience,
        meter: Meter,
        throttle: Throttle | None,
        politeness: Politeness,
        courier: Courier | None = None,
        clock: Clock,
    ) -> None:
        self._backlog, self._remote, self._patience = backlog, remote, patience
        self._meter, self._throttle, self._politeness, self._clock = meter, throttle, politeness, clock
        self._courier = courier if throttle is None else None  # the limit is one for all that this process sends
        self.was_answered = False
        """Whether the remote was ever heard of. The backlog's lock guards it."""
        self._was_warned = False

    def run(self, upload: Upload) -> None:
        """Try an upload once that the schedule gave out."""
        now = self._clock.monotonic()
        upload.first_try_s = now if upload.first_try_s is None else upload.first_try_s
        upload.attempts += 1
        upload.moved_bytes = 0

        def on_read(count_bytes: int) -> None:
            self._check_abort(upload)
            upload.moved_bytes += count_bytes
            self._meter.add(count_bytes)
            if self._throttle is not None:
                self._throttle.take(count_bytes, lambda: self._check_abort(upload))

        try:
            self._check_abort(upload)
            upload.check()
            source = upload.path if upload.fd is None else upload.fd
            if upload.tail is not None:
                outcome = upload.tail.send(self._remote.store(), source, on_read)
            else:
                outcome = self._send(upload, source, on_read)
        except ArtifactSyncError as error:
            release_frames(error)
            self._failed(upload, error)
        except BaseException as error:  # noqa: BLE001 - a thread that dies silently would hang wait()
            release_frames(error)
            self._failed(upload, self._given_up(upload, error))
        else:
            with self._backlog.held():
                self.was_answered = True
                self._was_warned = False
                self._backlog.schedule.finish(upload)
                self._backlog.settle(upload, outcome)

    def _send(self, upload: Upload, source: str | int, on_read: Callable[[int], None]) -> UploadedFile:
        store = self._remote.store()
        courier = self._courier if upload.size_bytes >= COURIER_BYTES else None
        origin = origin_of(store) if courier is not None else None
        is_refused = False
        if courier is not None and origin is not None and courier.is_ready:
            try:
                return courier.put(
                    origin,
                    upload.key,
                    upload.writing or source,
                    name=upload.path,
                    overwrite=upload.overwrite,
                    growing=upload.growing,
                    on_read=on_read,
                    hold=lambda job: setattr(upload, "body", job),
                )
            except (AccessError, ConfigurationError):
                is_refused = True  # what this process was given in code may not have reached the other
                upload.moved_bytes = 0
        elif courier is not None and origin is not None and not self._politeness.is_watched:  # else nobody trains
            courier.begin(origin, polite=self._politeness.is_possible)
        with _body(upload, source, on_read) as body:
            upload.body = body
            sent = send_file(store, upload.key, body, overwrite=upload.overwrite)
        if is_refused:
            self._courier = None  # from here it could be sent
        return sent

    def _failed(self, upload: Upload, error: ArtifactSyncError) -> None:
        """Try again later, or give up."""
        now = self._clock.monotonic()
        with self._backlog.held():
            self.was_answered = self.was_answered or not isinstance(error, RemoteUnreachableError)
            gives_up = self._gives_up(upload, error, now)
            newer = self._backlog.schedule.replacement(upload) if upload.overwrite else None
            if newer is not None:
                self._backlog.replace(upload, newer)
                if not gives_up:
                    newer.first_try_s, newer.attempts = upload.first_try_s, upload.attempts
                gives_up = self._backlog.is_aborted  # it is another file: what the old one met may not be its fate
                upload = newer
            if gives_up:
                self._backlog.schedule.finish(upload)
                self._backlog.settle(upload, self._given_up(upload, error))
            else:
                self._postpone(upload, error, now)

    def _gives_up(self, upload: Upload, error: ArtifactSyncError, now: float) -> bool:
        return (
            self._backlog.is_aborted
            or isinstance(error, UploadError)
            or self._patience.gives_up(
                error,
                attempts=upload.attempts,
                since_first_try_s=now - (now if upload.first_try_s is None else upload.first_try_s),
                never_answered=not self.was_answered,
                is_watched=self._politeness.is_watched,
            )
        )

    def _postpone(self, upload: Upload, error: ArtifactSyncError, now: float) -> None:
        upload.has_failed = True
        self._backlog.failures.note_trouble(upload.key, error)
        if not self._was_warned:
            self._was_warned = True
            self._backlog.log_later(logging.WARNING, f"upload of {upload.key} failed and will be tried again: {error}")
        pause_s = self._patience.pause_s(error, max(1, upload.attempts))
        if self._politeness.is_watched and not self.was_answered:
            pause_s = min(pause_s, _FIRST_CONTACT_PAUSE_S)  # or the pause would outlast the deadline
        self._backlog.schedule.postpone(upload, now + pause_s)
        self._backlog.tell_all()

    def _given_up(self, upload: Upload, error: BaseException) -> ArtifactSyncError:
        if isinstance(error, (UploadError, AlreadyExistsError)):
            return error
        tries = "1 attempt" if upload.attempts == 1 else f"{upload.attempts} attempts"
        failure = UploadError(
            f"upload of {upload.key} failed after {tries}: {error or type(error).__name__}",
            hint=getattr(error, "hint", "") or "the local file is untouched; upload it again",
            url=f"{self._remote.url}/{upload.key}",
        )
        failure.__cause__ = error
        return failure

    def _check_abort(self, upload: Upload) -> None:
        if self._backlog.is_aborted:
            raise UploadError(f"the uploader was closed before {upload.key} was durable")
        if upload.is_given_up:
            raise UploadError(f"the upload of {upload.key} was given up before it was durable")
