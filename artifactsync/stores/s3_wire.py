"""Single requests to S3 with the whole answer in sight: status, headers, body.

Owns: addressing, signing (botocore's signer), connections (botocore's), and what an answer other than success means.
Does not own: which requests (``s3``), patience (``retry``), large uploads (obstore; see docs/design/005-retry-after.md
for why these two ways).

Invariants: each request is sent once; ``Retry-After`` of a refusal reaches the error; every body goes with its
sha256, so that a damaged one is refused by the service.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import socket
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode, urlsplit

from artifactsync.errors import CredentialsError
from artifactsync.stores.object import CONNECT_TIMEOUT_S, SHORT_TIMEOUT_S
from artifactsync.stores.object_errors import Answer, from_botocore, printable_cause, region_of, retry_after_s, said_in

if TYPE_CHECKING:
    from collections.abc import Mapping

    from artifactsync.errors import ArtifactSyncError
    from artifactsync.stores.credentials import S3Settings, SessionCredentials

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
        self._base = f"{place.scheme}://{host}{above}"
        self._lock = threading.Lock()
        self._sessions: tuple[Any, Any] | None = None
        self._pid = 0

    def send(
        self,
        method: str,
        key: str,
        *,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
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
            query: Parameters.
            is_create: A lost answer is an ``UnknownOutcomeError``.
            is_long: The body is large, or the service has long work to do: the patient time limit.
            also_fine: A status that is returned and not raised.

        Raises:
            ArtifactSyncError: see ``stores.object_errors``.
        """
        import botocore.exceptions  # noqa: PLC0415 loads the cloud library
        from botocore.awsrequest import AWSRequest  # noqa: PLC0415

        url = f"{self._url}/{key}"
        target = f"{self._base}/{quote(key, safe='/~')}" + (f"?{urlencode(query)}" if query else "")
        fields = {"Accept-Encoding": "identity", **(headers or {})}
        digest = hashlib.sha256(body)
        if body and self._settings.checksum_algorithm:
            fields["x-amz-checksum-sha256"] = base64.b64encode(digest.digest()).decode()
        request = AWSRequest(method=method, url=target, data=body, headers=fields)
        try:
            self._sign(request, digest.hexdigest())
            answer = self._session(is_long=is_long).send(request.prepare())
        except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as error:
            raise from_botocore(error, url=url, is_create=is_create) from printable_cause(error)
        content = bytes(answer.content)
        promised = answer.headers.get("Content-Length", "")
        if method != "HEAD" and promised.isdigit() and int(promised) != len(content):  # urllib3 has let such through
            raise Answer(url=url, detail="the connection broke off", is_create=is_create).error()
        is_fine = answer.status_code in _OK or answer.status_code == also_fine
        if is_fine and not (method == "PUT" and _ERROR.match(content)):  # a copy that fails late says so below a 200
            return Reply(answer.status_code, answer.headers, content)
        raise refusal(answer.status_code, answer.headers, content, url=url, is_create=is_create)

    def close(self) -> None:
        """Close the connections."""
        with self._lock:
            for session in self._sessions or ():
                session.close()
            self._sessions = None

    def _sign(self, request: Any, body_sha256: str) -> None:
        from botocore.auth import S3SigV4Auth  # noqa: PLC0415 loads the cloud library
        from botocore.credentials import ReadOnlyCredentials  # noqa: PLC0415

        if self._credentials is None:
            return
        keys = self._credentials()
        if not keys["access_key_id"]:
            raise CredentialsError(f"no AWS credentials found for {self._url}", url=self._url)
        frozen = ReadOnlyCredentials(keys["access_key_id"], keys["secret_access_key"], keys["token"])
        signer = S3SigV4Auth(frozen, "s3", self._settings.region)
        signer.payload = lambda _: body_sha256  # it is known, and one pass over the bytes is enough
        signer.add_auth(request)

    def _session(self, *, is_long: bool) -> Any:
        from botocore.httpsession import URLLib3Session  # noqa: PLC0415 loads the cloud library
        from botocore.utils import get_environ_proxies  # noqa: PLC0415

        with self._lock:
            if self._sessions is None or self._pid != os.getpid():  # a forked child must not share connections
                short, patient = (
                    URLLib3Session(
                        verify=self._settings.ca_bundle or True,
                        proxies=get_environ_proxies(self._base),
                        timeout=(CONNECT_TIMEOUT_S, read_timeout_s),
                        max_pool_connections=_CONNECTIONS,
                        socket_options=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)],
                    )
                    for read_timeout_s in (SHORT_TIMEOUT_S, _LONG_TIMEOUT_S)
                )
                self._sessions, self._pid = (short, patient), os.getpid()
            return self._sessions[is_long]


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
