"""Single requests to S3 with the whole answer in sight: status, headers, body.

Owns: addressing, and what an answer other than success means. Does not own: signing (``s3_signature``), connections
(``http_lines``), which requests (``s3``), patience (``retry``), large uploads (obstore; see
docs/design/005-retry-after.md for why these two ways).

Invariants: each request is sent once; ``Retry-After`` of a refusal reaches the error; every body goes with its
sha256, so that a damaged one is refused by the service.
"""

from __future__ import annotations

import base64
import hashlib
import re
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from artifactsync.errors import CredentialsError
from artifactsync.stores.object import CONNECT_TIMEOUT_S, SHORT_TIMEOUT_S
from artifactsync.stores.object_errors import Answer, from_botocore, printable_cause, region_of, retry_after_s, said_in
from artifactsync.stores.s3_signature import sign

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from artifactsync.errors import ArtifactSyncError
    from artifactsync.stores.credentials import S3Settings, SessionCredentials
    from artifactsync.stores.http_answer import HttpAnswer
    from artifactsync.stores.http_lines import HttpLines, Words
    from artifactsync.stores.proxy_lines import ProxyLines

_LONG_TIMEOUT_S = 900  # for one body: 8 MiB at 10 kB/s
_CONNECTIONS = 64  # kept; more threads than that open their own
_OK = range(200, 300)
_ERROR = re.compile(rb"\s*(<\?xml[^>]*>)?\s*<Error>")


@dataclass(frozen=True)
class Reply:
    """A success."""

    status: int
    headers: Mapping[str, str]
    """Case does not matter."""
    content: bytes


class S3Wire:
    """Requests to one bucket. Thread-safe; makes new connections in a forked child.

    Args:
        bucket: Its name.
        settings: Where and as whom.
        credentials: Asked before each request; None where requests are not signed.
        service_url: The service's address, as boto3 resolved it.
        is_virtual: Whether the bucket goes into the host name.
    """

    def __init__(
        self,
        bucket: str,
        settings: S3Settings,
        credentials: SessionCredentials | None,
        *,
        service_url: str,
        is_virtual: bool,
    ) -> None:
        self._url = f"s3://{bucket}"
        self._settings = settings
        self._credentials = credentials
        place = urlsplit(service_url)
        host = f"{bucket}.{place.netloc}" if is_virtual else place.netloc
        above = place.path.rstrip("/") + ("" if is_virtual else f"/{bucket}")
        self._service = f"{place.scheme}://{host}"
        self._base = quote(above, safe="/~%")
        self._lock = threading.Lock()
        self._lines: HttpLines | ProxyLines | None = None

    def send(
        self,
        method: str,
        key: str,
        *,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        is_create: bool = False,
        is_long: bool = False,
        also_fine: int | None = None,
    ) -> Reply:
        """Send one request, once.

        Args:
            method: Of HTTP.
            key: Of the object.
            body: All of it.
            headers: Beside those of the signature.
            is_create: A lost answer is an ``UnknownOutcomeError``.
            is_long: The body is large, or the service has long work to do: the patient time limit.
            also_fine: A status that is returned and not raised.

        Raises:
            ArtifactSyncError: see ``stores.object_errors``.
        """
        timeout_s = _LONG_TIMEOUT_S if is_long else SHORT_TIMEOUT_S
        try:
            lines = self._open_lines()
            answer = lines.send(*self._request(lines.host, method, key, body, headers), timeout_s)
        except _botocore_errors() as error:
            raise self._told(error, key, is_create=is_create) from printable_cause(error)
        return self._reply(method, key, answer, is_create=is_create, also_fine=also_fine)

    def begin(
        self,
        method: str,
        key: str,
        *,
        body: bytes = b"",
        sha256: str = "",
        headers: Mapping[str, str] | None = None,
        also_fine: int | None = None,
    ) -> Callable[[], Reply] | None:
        """Send one short request, once, and leave its answer for later.

        Args:
            method: As of ``send``; and so are the others.
            key: Of the object.
            body: All of it; at most a few dozen KiB.
            sha256: Of the body, in lower-case hex; empty: not known.
            headers: Beside those of the signature.
            also_fine: A status that is returned and not raised.

        Returns:
            What waits for the answer, once, and returns or raises as ``send``; None if no connection is free.

        Raises:
            ArtifactSyncError: it could not be sent.
        """
        lines = self._lines
        if lines is None or not lines.has_free():  # before the work of signing
            return None
        try:
            request = self._request(lines.host, method, key, body, headers, sha256)
            sent = lines.begin(*request, SHORT_TIMEOUT_S)
        except _botocore_errors() as error:
            raise self._told(error, key) from printable_cause(error)
        if sent is None:
            return None

        def reply() -> Reply:
            try:
                answer = sent.answer()
            except _botocore_errors() as error:
                raise self._told(error, key) from printable_cause(error)
            return self._reply(method, key, answer, also_fine=also_fine)

        return reply

    def close(self) -> None:
        """Close the connections."""
        with self._lock:
            lines, self._lines = self._lines, None
        if lines is not None:
            lines.close()

    def _request(
        self, host: str, method: str, key: str, body: bytes, headers: Mapping[str, str] | None, sha256: str = ""
    ) -> tuple[str, str, dict[str, str], bytes]:
        """Method, target, headers and body as they are sent."""
        target = f"{self._base}/{quote(key, safe='/~')}"
        sha256 = sha256 or hashlib.sha256(body).hexdigest()
        fields = {"Host": host, "Accept-Encoding": "identity", **(headers or {})}
        if body and self._settings.checksum_algorithm:
            fields["x-amz-checksum-sha256"] = base64.b64encode(bytes.fromhex(sha256)).decode()
        fields |= self._signature(method, target, fields, sha256)
        return method, target, fields, body

    def _reply(
        self, method: str, key: str, answer: HttpAnswer, *, is_create: bool = False, also_fine: int | None = None
    ) -> Reply:
        """What an answer means."""
        url = f"{self._url}/{key}"
        content = answer.content
        promised = answer.headers.get("Content-Length") or ""
        if method != "HEAD" and promised.isdigit() and int(promised) != len(content):  # urllib3 has let such through
            raise Answer(url=url, detail="the connection broke off", is_create=is_create).error()
        is_fine = answer.status_code in _OK or answer.status_code == also_fine
        if is_fine and not (method == "PUT" and _ERROR.match(content)):  # a copy that fails late says so below a 200
            return Reply(answer.status_code, answer.headers, content)
        raise refusal(answer.status_code, answer.headers, content, url=url, is_create=is_create)

    def _told(self, error: Exception, key: str, *, is_create: bool = False) -> ArtifactSyncError:
        return from_botocore(error, url=f"{self._url}/{key}", is_create=is_create)

    def _signature(self, method: str, path: str, headers: Mapping[str, str], body_sha256: str) -> dict[str, str]:
        if self._credentials is None:
            return {}
        keys = self._credentials()
        if not keys["access_key_id"]:
            raise CredentialsError(f"no AWS credentials found for {self._url}", url=self._url)
        return sign(method, path, headers, keys=keys, region=self._settings.region, body_sha256=body_sha256)

    def _open_lines(self) -> HttpLines | ProxyLines:
        lines = self._lines
        if lines is not None:
            return lines
        from botocore.httpsession import get_cert_path  # noqa: PLC0415 loads the cloud library
        from botocore.utils import get_environ_proxies  # noqa: PLC0415

        from artifactsync.stores.http_lines import HttpLines  # noqa: PLC0415
        from artifactsync.stores.proxy_lines import ProxyLines  # noqa: PLC0415

        with self._lock:
            if self._lines is None:
                ca_file = self._settings.ca_bundle or get_cert_path(verify=True)
                proxies = get_environ_proxies(self._service)
                how: Any = {"ca_file": ca_file, "connect_timeout_s": CONNECT_TIMEOUT_S, "keep": _CONNECTIONS}
                if proxies:
                    self._lines = ProxyLines(self._service, proxies=proxies, **how)
                else:
                    self._lines = HttpLines(self._service, words=botocore_words(), **how)
            return self._lines


def botocore_words() -> Words:
    """For what happens on a connection: botocore's errors, so that all ways to S3 tell it alike."""
    import botocore.exceptions as words  # noqa: PLC0415 loads the cloud library

    from artifactsync.stores.http_lines import Words  # noqa: PLC0415

    return Words(
        late=lambda url, error: words.ConnectTimeoutError(endpoint_url=url, error=error),
        unreachable=lambda url, error: words.EndpointConnectionError(endpoint_url=url, error=error),
        untrusted=lambda url, error: words.SSLError(endpoint_url=url, error=error),
        silent=lambda url, error: words.ReadTimeoutError(endpoint_url=url, error=error),
        broken=lambda url, error: words.ConnectionClosedError(endpoint_url=url, error=error),
        unfit=lambda _, error: words.HTTPClientError(error=error),
    )


def _botocore_errors() -> tuple[type[Exception], ...]:
    """What connecting, signing and sending raise."""
    import botocore.exceptions  # noqa: PLC0415 loads the cloud library

    return botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError


def refusal(
    status: int, headers: Mapping[str, str], content: bytes, *, url: str, is_create: bool = False
) -> ArtifactSyncError:
    """The error that an answer other than success means. A 200 with an error in its body is one."""
    text = content[:8192].decode("utf-8", "replace")
    return Answer(
        url=url,
        status=status if status not in _OK else 500,
        code=said_in(text, "Code"),
        detail=said_in(text, "Message"),
        region=said_in(text, "Region") or headers.get("x-amz-bucket-region") or region_of(said_in(text, "Endpoint")),
        is_create=is_create,
        retry_after_s=retry_after_s(headers.get("Retry-After")),
    ).error()
