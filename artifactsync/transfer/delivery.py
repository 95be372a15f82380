"""One upload after the other: a try, and what follows from it.

Owns: ``Delivery``: reading through the limits, and settling, postponing or giving up. Does not own: what one try sends
(``sending``), how long is too long (``patience``), threads (``workers``).

Invariants: ``run`` never raises; after it the upload is settled or will be tried again.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING

from artifactsync.errors import (
    AccessError,
    AlreadyExistsError,
    ArtifactSyncError,
    ConfigurationError,
    FileChangedError,
    RemoteUnreachableError,
    TransientStoreError,
    UploadError,
)
from artifactsync.stores.ahead import AHEAD_BYTES, NotYetError, begin_put
from artifactsync.stores.origin import origin_of
from artifactsync.transfer.ahead import work_ahead
from artifactsync.transfer.failures import release_frames
from artifactsync.transfer.hashing import FileBody
from artifactsync.transfer.sending import confirmed, send_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from artifactsync.stores.protocol import ObjectInfo, Store
    from artifactsync.transfer.backlog import Backlog
    from artifactsync.transfer.being_written import GrowingBody
    from artifactsync.transfer.clock import Clock
    from artifactsync.transfer.courier import Courier
    from artifactsync.transfer.hashing import FileDigest
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


def _nothing() -> None:
    """What ends an upload that is at its end."""


class _Quick:
    """A quick upload, and its bytes from the time they were read."""

    def __init__(self, upload: Upload) -> None:
        self.upload = upload
        self.data = b""
        self.digest: FileDigest | None = None

    def read(self, on_read: Callable[[int], None]) -> None:
        """Read the file: all of it, as it is at one moment.

        Raises:
            FileChangedError: it is longer by now than what is quick.
        """
        source = self.upload.path if self.upload.fd is None else self.upload.fd
        with FileBody(source, growing=self.upload.growing, on_read=on_read) as body:
            if body.size_bytes > AHEAD_BYTES:
                raise FileChangedError(f"{self.upload.path} has grown")
            self.data = body.read()
            self.digest = body.digest

    def begin(self, store: Store) -> Callable[[], ObjectInfo] | None:
        """Begin to send what was read; see ``stores.ahead``."""
        assert self.digest is not None
        return begin_put(store, self.upload.key, self.data, sha256=self.digest.sha256)


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
        self._count_try(upload)
        on_read = partial(self._on_read, upload)
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
            self._sent(upload, outcome)

    @property
    def can_run_ahead(self) -> bool:
        """Whether several quick uploads can be under way on one thread."""
        return self._throttle is None and self._remote.can_begin

    def run_ahead(self, uploads: Iterable[Upload | None]) -> None:
        """Try quick uploads once each, with many under way at a time; None where there is none just now."""
        work_ahead((None if upload is None else _Quick(upload) for upload in uploads), self._begin)

    def _begin(self, quick: _Quick, is_alone: bool) -> Callable[[], object] | None:
        """Begin a quick upload; where something is the matter with it, it is tried in the usual way."""
        upload = quick.upload
        try:
            self._check_abort(upload)
            if quick.digest is None:
                upload.check()
                quick.read(partial(self._on_read, upload))
            info = quick.begin(self._remote.store())
        except BaseException as error:  # noqa: BLE001 - the usual way says what it is, and settles the upload
            release_frames(error)
            self._hand_back(upload)
            return _nothing
        if info is not None:
            return partial(self._end, quick, info)
        if not is_alone:
            return None
        self.run(upload)  # now: with others begun, it would hold up what they are answered
        return _nothing

    def _end(self, quick: _Quick, info: Callable[[], ObjectInfo]) -> None:
        upload = quick.upload
        assert quick.digest is not None
        try:
            sent = confirmed(self._remote.store(), upload.key, info(), quick.digest)
        except NotYetError:
            raise
        except ArtifactSyncError as error:
            self._count_try(upload)
            release_frames(error)
            upload.is_quick = False
            self._failed(upload, error, is_first=True)
        except BaseException as error:  # noqa: BLE001 - as in _begin
            release_frames(error)
            self._hand_back(upload)
        else:
            self._count_try(upload)
            self._sent(upload, sent)

    def _hand_back(self, upload: Upload) -> None:
        """Let the upload be tried in the usual way, by whichever worker."""
        with self._backlog.held():
            upload.is_quick = False
            self._backlog.schedule.postpone(upload, self._clock.monotonic())
            self._backlog.tell_all()

    def _sent(self, upload: Upload, outcome: UploadedFile) -> None:
        with self._backlog.held():
            self.was_answered = True
            self._was_warned = False
            self._backlog.schedule.finish(upload)
            self._backlog.settle(upload, outcome)

    def _count_try(self, upload: Upload) -> None:
        if upload.first_try_s is None:
            upload.first_try_s = self._clock.monotonic()
        upload.attempts += 1
        upload.moved_bytes = 0

    def _on_read(self, upload: Upload, count_bytes: int) -> None:
        self._check_abort(upload)
        upload.moved_bytes += count_bytes
        self._meter.add(count_bytes)
        if self._throttle is not None:
            self._throttle.take(count_bytes, lambda: self._check_abort(upload))

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

    def _failed(self, upload: Upload, error: ArtifactSyncError, *, is_first: bool = False) -> None:
        """Try again later, or give up.

        Args:
            upload: What was tried.
            error: What came of it.
            is_first: It is the error of one request; those of the usual way were sent again for a while already.
        """
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
                self._postpone(upload, error, now, is_quiet=is_first and isinstance(error, TransientStoreError))

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

    def _postpone(self, upload: Upload, error: ArtifactSyncError, now: float, *, is_quiet: bool) -> None:
        upload.has_failed = True
        self._backlog.failures.note_trouble(upload.key, error)
        if not (self._was_warned or is_quiet):
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
