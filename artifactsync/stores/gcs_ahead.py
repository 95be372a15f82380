"""Small objects to and from Google Cloud Storage, begun before the answers to others were read.

Owns: these two requests, and the check of their answers. Does not own: connections (``http_lines``), credentials
(``gcs_session``). An answer that is anything but a success is an error that says little: whoever gets it asks again in
the usual way, by Google's client, which renews tokens and whose refusals ``gcs_errors`` knows.

Google's client takes 1 ms of a core for such an object, and a thread that waits for each answer.

Invariant: what is sent carries its CRC32C, so that the service refuses bytes that were damaged on their way; what is
returned is a whole answer.
Source: https://cloud.google.com/storage/docs/json_api/v1/objects/insert (read 2026-11).
"""

from __future__ import annotations

import base64
import json
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import google_crc32c

from artifactsync.errors import TransientStoreError
from artifactsync.stores import gcs_session
from artifactsync.stores.http_lines import HttpLines, Words
from artifactsync.stores.object_errors import retry_after_s
from artifactsync.stores.protocol import ObjectInfo

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from google.cloud import storage

    from artifactsync.stores.http_answer import HttpAnswer

_CONNECTIONS = 64
_OK, _PARTIAL, _BAD_RANGE = 200, 206, 416
_KIND = "application/octet-stream"


class GcsAhead:
    """Requests to one bucket over connections of their own. Thread-safe; made anew in a forked child.

    Args:
        client: Whose endpoint and credentials are used.
        bucket: Its name.
        url: Of the bucket, for messages.
    """

    def __init__(self, client: storage.Client, bucket: str, url: str) -> None:
        self._session: Any = client._http  # noqa: SLF001 made by us: see ``gcs_session.connect``
        endpoint = urlsplit(client.api_endpoint)
        self._above, self._bucket, self._url = endpoint.path.rstrip("/"), quote(bucket, safe=""), url
        # Those of the environment, as the client's session finds them.
        how = self._session.merge_environment_settings(client.api_endpoint, {}, True, None, None)
        self._has_proxy = bool(how.get("proxies"))
        self._lines = HttpLines(
            f"{endpoint.scheme}://{endpoint.netloc}",
            words=Words(*[self._broken] * 6),
            ca_file=_authorities(how.get("verify")),
            connect_timeout_s=gcs_session.TIMEOUT_S[0],
            keep=_CONNECTIONS,
        )

    def begin_get(self, key: str, start: int, end: int) -> Callable[[], bytes] | None:
        """Ask for the bytes ``[start, end)``. See ``stores.ahead``."""
        target = f"{self._above}/download/storage/v1/b/{self._bucket}/o/{quote(key, safe='')}?alt=media"
        # The bytes as they were put, also those that are gzip already.
        answer = self._begin("GET", target, {"Accept-Encoding": "gzip", "Range": f"bytes={start}-{end - 1}"}, b"")
        return None if answer is None else lambda: self._content(answer(), key)

    def begin_put(self, key: str, data: bytes) -> Callable[[], ObjectInfo] | None:
        """Send an object. See ``stores.ahead``."""
        checksum: int = google_crc32c.value(data)
        known = {"name": key, "contentType": _KIND, "crc32c": base64.b64encode(checksum.to_bytes(4, "big")).decode()}
        edge = f"={secrets.token_hex(16)}="
        part = f"--{edge}\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n{json.dumps(known)}\r\n"
        body = f"{part}--{edge}\r\nContent-Type: {_KIND}\r\n\r\n".encode() + data + f"\r\n--{edge}--".encode()
        fields = {"Accept-Encoding": "identity", "Content-Type": f'multipart/related; boundary="{edge}"'}
        target = f"{self._above}/upload/storage/v1/b/{self._bucket}/o?uploadType=multipart"
        answer = self._begin("POST", target, fields, body)
        return None if answer is None else lambda: self._stored(answer(), key)

    def close(self) -> None:
        """Close the connections."""
        self._lines.close()

    def _begin(
        self, method: str, target: str, fields: Mapping[str, str], body: bytes
    ) -> Callable[[], HttpAnswer] | None:
        if self._has_proxy or not self._session.credentials.valid:
            return None
        if not self._lines.has_free():
            self._lines.widen(is_slow=False)  # the first connection
            return None
        headers = {"Host": self._lines.host, **fields}
        self._session.credentials.apply(headers)
        sent = self._lines.begin(method, target, headers, body, gcs_session.TIMEOUT_S[1])
        return None if sent is None else sent.answer

    def _content(self, answer: HttpAnswer, key: str) -> bytes:
        if answer.status_code == _BAD_RANGE:
            return b""
        if answer.status_code != _PARTIAL:
            raise self._refused(answer, key)
        return answer.content

    def _stored(self, answer: HttpAnswer, key: str) -> ObjectInfo:
        if answer.status_code != _OK:
            raise self._refused(answer, key)
        try:
            found = json.loads(answer.content)
            return ObjectInfo(key=key, size_bytes=int(found["size"]), etag=found.get("etag"))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise TransientStoreError(f"{self._url}/{key}: an answer that makes no sense") from error

    def _refused(self, answer: HttpAnswer, key: str) -> TransientStoreError:
        error = TransientStoreError(f"{self._url}/{key}: status {answer.status_code}", url=f"{self._url}/{key}")
        error.retry_after_s = retry_after_s(answer.headers.get("Retry-After"))
        return error

    def _broken(self, url: str, cause: BaseException) -> TransientStoreError:
        return TransientStoreError(f"the connection to {url} broke: {cause}", url=self._url)


def _authorities(verify: Any) -> str:
    """The file of certificate authorities that ``requests`` would take."""
    import certifi  # noqa: PLC0415 - requests' own; where there is none it does not come this far

    path = verify if isinstance(verify, str) else certifi.where()
    return path if Path(path).is_file() else certifi.where()
