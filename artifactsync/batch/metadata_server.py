"""Asking a machine's metadata server: plain HTTP to one fixed address, no proxy, short timeouts.

Owns: one connection, and that waiting for an answer can be broken off. Does not own: what is asked
(``notice_sources``), or how often (``notice``).

Invariant: nothing but :class:`MetadataUnavailableError` leaves it, and no answer is read beyond a limit.
"""

from __future__ import annotations

import socket
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from artifactsync.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

CONNECT_TIMEOUT_S = 1.0
"""A metadata server answers within a millisecond, or is not there."""

_MAX_ANSWER_BYTES = 256 * 1024


class MetadataUnavailableError(Exception):
    """The server did not answer; nobody but the watcher sees it."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the server said."""

    status: int
    body: str
    headers: Mapping[str, str]
    """Names in lower case."""


class MetadataServer:
    """One metadata server.

    Args:
        address: ``http://host``, ``http://host:port``, or ``host:port``.

    Raises:
        ConfigurationError: that is no such address.
    """

    def __init__(self, address: str) -> None:
        parts = urlsplit(address if "://" in address else f"http://{address}")
        try:
            port = parts.port or 80
        except ValueError:
            port = 0
        if parts.scheme != "http" or not parts.hostname or not port:
            raise ConfigurationError(
                f"{address!r} is no address of a metadata server", hint="for example http://169.254.169.254"
            )
        self._host, self._port = parts.hostname, port
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._is_closed = False

    def ask(
        self, method: str, path: str, headers: Mapping[str, str], *, timeout_s: float = CONNECT_TIMEOUT_S
    ) -> Answer:
        """Send one request.

        Args:
            method: ``GET`` or ``PUT``.
            path: With its query.
            headers: Those that the server wants to see.
            timeout_s: Seconds that the answer may take, once connected.

        Raises:
            MetadataUnavailableError: no answer, or it was broken off by :meth:`close`.
        """
        import http.client  # noqa: PLC0415  (slow to import, and most never need it)

        connection = http.client.HTTPConnection(self._host, self._port, timeout=CONNECT_TIMEOUT_S)
        try:
            connection.connect()
            connection.sock.settimeout(timeout_s)
            self._hold(connection.sock)
            connection.request(method, path, headers={"Connection": "close", **headers})
            response = connection.getresponse()
            body = response.read(_MAX_ANSWER_BYTES).decode("utf-8", errors="replace")
            named = {name.lower(): value for name, value in response.getheaders()}
            return Answer(status=response.status, body=body, headers=named)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise MetadataUnavailableError(f"{type(error).__name__}: {error}") from error
        finally:
            self._hold(None)
            connection.close()

    def close(self) -> None:
        """Break off the request that is waiting, and every later one. Idempotent, from any thread."""
        with self._lock:
            self._is_closed = True
            self._break_off()

    def _hold(self, held: socket.socket | None) -> None:
        with self._lock:
            self._socket = held
            if self._is_closed:
                self._break_off()

    def _break_off(self) -> None:
        if self._socket is not None:
            try:
                self._socket.shutdown(socket.SHUT_RDWR)
            except OSError:  # it has ended by itself
                return
