"""A large object to Google Cloud Storage: one session, two requests, and on from what the service has after a break.

Owns: the requests of a session after its beginning. Does not own: the beginning (``gcs``), what errors mean
(``gcs_errors``).

All but the last 256 KiB at most go with one request, and those with a second one, which carries the CRC32C of the
whole; up to 16 MiB all goes with one. Google's client sends chunk by chunk, each from memory: large chunks take memory,
and small ones a round trip each and, where a server joins them by copying (fake-gcs-server), time that grows with the
square of the length.

Invariants: the last byte is sent after the body has ended well, and with the checksum of all, so the service refuses
bytes that were damaged on their way. After a break it is asked what it has, and never sent a byte that it confirmed.
Source: https://cloud.google.com/storage/docs/performing-resumable-uploads (read 2026-11).
"""

from __future__ import annotations

import base64
import re
import time
from http.client import GONE, NOT_FOUND, PERMANENT_REDIRECT
from typing import TYPE_CHECKING, Any

import google.api_core.exceptions as api
import google_crc32c
import requests.exceptions
import urllib3.exceptions
from google.cloud.storage.exceptions import DataCorruption

from artifactsync.errors import ArtifactSyncError
from artifactsync.stores.body_stream import BodyStream
from artifactsync.stores.gcs_errors import asked_pause_s

if TYPE_CHECKING:
    from collections.abc import Iterator

    from artifactsync.stores.protocol import Body

_CHUNK_BYTES = 4 * 2**20  # two are in memory
_QUANTUM_BYTES = 256 * 2**10  # a request that is not the last one has a multiple of it
_WHOLE_BYTES = 16 * 2**20  # up to so many go with one request, from memory: a second one would take longer than they do
_PATIENCE_S = 20.0  # of a session that does not get on; then the whole is for ``RetryStore`` to try again
_PAUSES_S = (0.3, 5.0)  # the first, and the longest
_FINE = (200, 201)
_GONE = (NOT_FOUND, GONE)
_BREAKS = (requests.exceptions.RequestException, urllib3.exceptions.HTTPError, OSError)


def send_in_session(
    http: Any, session_url: str, body: Body, *, timeout_s: tuple[float, float], goes_on: bool
) -> dict[str, Any]:
    """Send a body, and return what the service says of the object.

    Args:
        http: Of ``requests``, with credentials.
        session_url: A right to write: it is in no message of ours.
        body: Longer than 256 KiB.
        timeout_s: To connect, and of silence.
        goes_on: Whether a break is no end. Not for create-only uploads, whose outcome would not be clear.

    Raises:
        FileChangedError: from the body; nothing became visible.
        google.api_core.exceptions.GoogleAPICallError: a refusal, in the words of the client.
        google.cloud.storage.exceptions.DataCorruption: the object has not the bytes that were sent.
        requests.exceptions.RequestException, urllib3.exceptions.HTTPError, OSError: no answer.
    """
    return _Session(http, session_url, body, timeout_s).send(goes_on=goes_on)


class _Session:
    def __init__(self, http: Any, url: str, body: Body, timeout_s: tuple[float, float]) -> None:
        self._http, self._url, self._timeout_s = http, url, timeout_s
        self._size_bytes = body.size_bytes
        self._source = _Source(body)

    def send(self, *, goes_on: bool) -> dict[str, Any]:
        start = 0
        pause_s, until_s = _PAUSES_S[0], time.monotonic() + _PATIENCE_S
        is_broken = False
        while True:
            try:
                found = self._ask() if is_broken else self._send_from(start)
                if isinstance(found, dict):
                    return self._checked(found)
                if found > self._source.read_bytes or (found <= start and not is_broken):
                    raise requests.exceptions.ConnectionError(f"the service says that it has {found} bytes")
            except ArtifactSyncError:  # from the body
                raise
            except (*_BREAKS, api.ServerError, api.TooManyRequests) as error:
                pause_s = max(pause_s, asked_pause_s(error) or 0.0)
                if not goes_on or isinstance(error, _SessionGoneError) or time.monotonic() + pause_s > until_s:
                    raise
                time.sleep(pause_s)
                pause_s, is_broken = min(2 * pause_s, _PAUSES_S[1]), True
                continue
            if found > start:
                pause_s, until_s = _PAUSES_S[0], time.monotonic() + _PATIENCE_S
            start, is_broken = found, False

    def _send_from(self, start: int) -> dict[str, Any] | int:
        """Send what comes next; what the service says of the object, or how much it has."""
        last = (self._size_bytes - 1) // _QUANTUM_BYTES * _QUANTUM_BYTES if self._size_bytes > _WHOLE_BYTES else 0
        if start < last:
            return self._put(start, last, f"bytes {start}-{last - 1}/*", {})
        size_bytes = self._size_bytes
        # Made when all has been read, which is before its first byte is sent.
        tail = b"".join(self._source.between(start, size_bytes))
        fields = {"x-goog-hash": f"crc32c={self._source.crc32c()}"}
        return self._put(start, size_bytes, f"bytes {start}-{size_bytes - 1}/{size_bytes}", fields, tail)

    def _ask(self) -> dict[str, Any] | int:
        return self._put(0, 0, "bytes */*", {}, b"")

    def _put(
        self, start: int, end: int, what: str, fields: dict[str, str], data: bytes | None = None
    ) -> dict[str, Any] | int:
        answer = self._http.request(
            "PUT",
            self._url,
            data=_Part(self._source, start, end) if data is None else data,
            headers={"Content-Range": what, "Content-Type": "application/octet-stream", **fields},
            timeout=self._timeout_s,
            allow_redirects=False,  # 308 is one for everybody else
        )
        with answer:
            status = answer.status_code
            if status == PERMANENT_REDIRECT:
                has = re.fullmatch(r"bytes=0-(\d+)", answer.headers.get("Range", ""))
                return int(has[1]) + 1 if has else 0
            if status in _FINE:
                return dict(answer.json())
            if status in _GONE:
                raise _SessionGoneError("the upload session is gone")
            raise api.from_http_status(status, f"PUT: {answer.text}", response=answer)

    def _checked(self, found: dict[str, Any]) -> dict[str, Any]:
        wanted = (str(self._size_bytes), self._source.crc32c())
        if (str(found.get("size")), found.get("crc32c", wanted[1])) != wanted:
            raise DataCorruption(None, "the object has other bytes than were sent")
        return found


class _SessionGoneError(requests.exceptions.ConnectionError):
    """It is too old, or was lost: to be begun anew."""


class _Part:
    """A range of the body for ``requests``, which sends each piece as it comes; anew if it has to be sent again."""

    def __init__(self, source: _Source, start: int, end: int) -> None:
        self._source, self._start, self._end = source, start, end

    def __len__(self) -> int:
        return self._end - self._start

    def __iter__(self) -> Iterator[bytes]:
        return self._source.between(self._start, self._end)


class _Source:
    """The body from any place on, and the CRC32C of all that was read of it."""

    def __init__(self, body: Body) -> None:
        self._stream = BodyStream(body, _CHUNK_BYTES)
        self._crc32c = 0
        self.read_bytes = 0
        """How far the body was read."""

    def between(self, start: int, end: int) -> Iterator[bytes]:
        self._stream.seek(start)
        while start < end:
            data = self._stream.read(min(_CHUNK_BYTES, end - start))
            if start + len(data) > self.read_bytes:
                self._crc32c = google_crc32c.extend(self._crc32c, data[max(0, self.read_bytes - start) :])
                self.read_bytes = start + len(data)
            start += len(data)
            yield data

    def crc32c(self) -> str:
        return base64.b64encode(self._crc32c.to_bytes(4, "big")).decode()
