"""Kept-alive HTTP/1.1 connections to one server, with as little between a request and the socket as can be.

Owns: connecting, TLS, one request and its answer, and which connections are kept; behind a proxy by botocore's session.
Does not own: what an answer means (``s3_wire``).

Why not urllib3: of the 0.2 ms of a core that a small request took, it took two thirds (docs/design/005-retry-after.md),
with the interpreter lock held, and training waits for that.

Invariants: each request is sent once. A connection is kept only after an answer that was read to its end; one on which
the server has said anything unasked, its end above all, is not used again.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import select
import socket
import ssl
import threading
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from botocore.exceptions import (
    ConnectionClosedError,
    ConnectTimeoutError,
    EndpointConnectionError,
    HTTPClientError,
    ReadTimeoutError,
    SSLError,
)

from artifactsync.stores.http_answer import HttpAnswer, read_answer

if TYPE_CHECKING:
    from collections.abc import Mapping

_DEFAULT_PORTS = {"http": 80, "https": 443}
_TOGETHER_BYTES = 256 * 1024  # head and body up to this length go to the kernel in one call


class HttpLines:
    """Connections to the server of ``url``. Thread-safe; a forked child makes its own.

    Args:
        url: Its scheme, host and port count.
        ca_file: Certificate authorities in PEM.
        connect_timeout_s: For the connection and the TLS handshake.
        keep: So many idle connections are kept.
    """

    def __init__(self, url: str, *, ca_file: str, connect_timeout_s: float, keep: int) -> None:
        place = urlsplit(url)
        self._url = url
        self._host = place.hostname or ""
        self._port = place.port or _DEFAULT_PORTS[place.scheme]
        shown = f"[{self._host}]" if ":" in self._host else self._host
        self.host = shown if self._port == _DEFAULT_PORTS[place.scheme] else f"{shown}:{self._port}"
        """For the header ``Host``."""
        self._is_tls = place.scheme == "https"
        self._ca_file = ca_file
        self._tls: ssl.SSLContext | None = None
        self._connect_timeout_s = connect_timeout_s
        self._lock = threading.Lock()
        self._idle: deque[socket.socket] = deque(maxlen=keep)
        self._keep = keep
        self._pid = os.getpid()
        weakref.finalize(self, _close_all, self._idle)  # for who forgets to close

    def send(self, method: str, target: str, headers: Mapping[str, str], body: bytes, timeout_s: float) -> HttpAnswer:
        """Send one request, once, and read its answer.

        Args:
            method: Of HTTP.
            target: Path and query.
            headers: All but ``Content-Length``.
            body: May be empty.
            timeout_s: Longest silence.

        Raises:
            botocore.exceptions.BotoCoreError: no answer, in botocore's words.
        """
        fields = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        if fields.count("\n") != len(headers) or fields.count("\r") != len(headers):
            raise HTTPClientError(error=ValueError("a header has a line break in it"))
        head = f"{method} {target} HTTP/1.1\r\n{fields}Content-Length: {len(body)}\r\n\r\n".encode()
        line = self._take() or self._connect()
        try:
            if line.gettimeout() != timeout_s:  # setting it asks the kernel
                line.settimeout(timeout_s)
            answer, is_reusable = self._exchange(line, method, head, body)
        except BaseException as error:
            line.close()
            if isinstance(error, TimeoutError):
                raise ReadTimeoutError(endpoint_url=self._url, error=error) from error
            if isinstance(error, (OSError, http.client.HTTPException, EOFError)):
                raise ConnectionClosedError(endpoint_url=self._url, error=error) from error
            raise
        if is_reusable:
            self._give(line)
        else:
            line.close()
        return answer

    def close(self) -> None:
        """Close the idle connections."""
        _close_all(self._idle)

    def _exchange(self, line: socket.socket, method: str, head: bytes, body: bytes) -> tuple[HttpAnswer, bool]:
        was_sent = True
        try:
            if len(body) <= _TOGETHER_BYTES:
                line.sendall(head + body)
            else:
                line.sendall(head)
                line.sendall(body)
        except (BrokenPipeError, ConnectionResetError):
            was_sent = False  # a refusal in mid-body: its answer may be there all the same
        answer, is_whole = read_answer(line, method)
        return answer, was_sent and is_whole

    def _connect(self) -> socket.socket:
        try:
            line = socket.create_connection((self._host, self._port), self._connect_timeout_s)
        except TimeoutError as error:
            raise ConnectTimeoutError(endpoint_url=self._url, error=error) from error
        except OSError as error:
            raise EndpointConnectionError(endpoint_url=self._url, error=error) from error
        try:
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return self._tls_context().wrap_socket(line, server_hostname=self._host) if self._is_tls else line
        except TimeoutError as error:
            line.close()
            raise ConnectTimeoutError(endpoint_url=self._url, error=error) from error
        except ssl.SSLError as error:
            line.close()
            raise SSLError(endpoint_url=self._url, error=error) from error
        except OSError as error:
            line.close()
            raise EndpointConnectionError(endpoint_url=self._url, error=error) from error

    def _tls_context(self) -> ssl.SSLContext:
        with self._lock:
            if self._tls is None:
                self._tls = ssl.create_default_context(cafile=self._ca_file)
            return self._tls

    def _take(self) -> socket.socket | None:
        """An idle connection on which nothing has come; the latest one first."""
        while (line := self._pop()) is not None:
            if not _has_something(line):
                return line
            line.close()
        return None

    def _pop(self) -> socket.socket | None:
        if self._pid != os.getpid():  # what is here belongs to the parent, and closing the copies does not end them
            self._lock, self._pid = threading.Lock(), os.getpid()
            _close_all(self._idle)
        try:
            return self._idle.pop()
        except IndexError:
            return None

    def _give(self, line: socket.socket) -> None:
        if len(self._idle) < self._keep:
            self._idle.append(line)
        else:
            line.close()


class ProxyLines:
    """The same through the proxies of the environment, by botocore's session. Thread-safe.

    Args:
        url: Scheme and host of the server.
        proxies: By scheme.
        ca_file: As above.
        connect_timeout_s: As above.
        keep: As above.
    """

    def __init__(
        self, url: str, *, proxies: Mapping[str, str], ca_file: str, connect_timeout_s: float, keep: int
    ) -> None:
        self._url = url
        self.host = HttpLines(url, ca_file=ca_file, connect_timeout_s=connect_timeout_s, keep=1).host
        """For the header ``Host``."""
        self._how = {"verify": ca_file, "proxies": dict(proxies), "max_pool_connections": keep}
        self._connect_timeout_s = connect_timeout_s
        self._lock = threading.Lock()
        self._sessions: dict[tuple[int, float], Any] = {}  # by process and patience

    def send(self, method: str, target: str, headers: Mapping[str, str], body: bytes, timeout_s: float) -> HttpAnswer:
        """See ``HttpLines.send``."""
        from botocore.awsrequest import AWSPreparedRequest, HeadersDict  # noqa: PLC0415 - for the few behind a proxy

        fields = HeadersDict({**headers, "Content-Length": str(len(body))})
        request = AWSPreparedRequest(method, self._url + target, fields, body, stream_output=False)
        answer = self._session(timeout_s).send(request)
        return HttpAnswer(answer.status_code, answer.headers, bytes(answer.content))

    def close(self) -> None:
        """Close the connections."""
        with self._lock:
            for session in self._sessions.values():
                session.close()
            self._sessions = {}

    def _session(self, timeout_s: float) -> Any:
        from botocore.httpsession import URLLib3Session  # noqa: PLC0415

        key = (os.getpid(), timeout_s)
        with self._lock:
            if key not in self._sessions:
                self._sessions[key] = URLLib3Session(
                    timeout=(self._connect_timeout_s, timeout_s),
                    socket_options=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)],
                    **self._how,
                )
            return self._sessions[key]


def _close_all(lines: deque[socket.socket]) -> None:
    while lines:
        with contextlib.suppress(IndexError):
            lines.pop().close()


def _has_something(line: socket.socket) -> bool:
    """Whether the server has sent something, or its end, on an idle connection."""
    watch = select.poll()
    watch.register(line, select.POLLIN)
    return bool(watch.poll(0))
