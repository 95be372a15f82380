"""Kept-alive HTTP/1.1 connections to one server, with as little between a request and the socket as can be.

Owns: connecting, TLS, one request and its answer, and which connections are kept. Does not own: proxies
(``proxy_lines``), what an answer means (``s3_wire``, ``gcs_ahead``), in which words it is told that there is none, how
many requests one thread has under way (``transfer.ahead``).

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
import struct
import threading
import time
import weakref
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from artifactsync.stores.ahead import NotYetError
from artifactsync.stores.http_answer import READ_BYTES, HttpAnswer, read_answer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_DEFAULT_PORTS = {"http": 80, "https": 443}
_TOGETHER_BYTES = 256 * 1024  # head and body up to this length go to the kernel in one call
_SLOW_S = 0.001  # with more requests under way less would be waited for an answer that takes longer than this
_IDLE_S = 30.0  # a connection that was not used for longer may be forgotten by a firewall, without a word
_PATIENCE_S = 1.0  # an answer that has not begun by then does not keep its reader from reading others
_FEW = 4  # so many keep a server busy whose answers are quick
_CONNECTING = 8  # connections made behind at a time


@dataclass(frozen=True)
class Words:
    """The errors that are raised, each made of the server's URL and of the cause."""

    late: Callable[[str, BaseException], Exception]
    """The connection took too long."""
    unreachable: Callable[[str, BaseException], Exception]
    """It was not made."""
    untrusted: Callable[[str, BaseException], Exception]
    """TLS failed."""
    silent: Callable[[str, BaseException], Exception]
    """The answer took too long."""
    broken: Callable[[str, BaseException], Exception]
    """The connection broke before the answer was whole."""
    unfit: Callable[[str, BaseException], Exception]
    """The request cannot be sent as it is."""


class HttpLines:
    """Connections to the server of ``url``. Thread-safe; a forked child makes its own.

    Args:
        url: Its scheme, host and port count.
        words: What is raised where no answer comes.
        ca_file: Certificate authorities in PEM.
        connect_timeout_s: For the connection and the TLS handshake.
        keep: So many idle connections are kept.
    """

    def __init__(self, url: str, *, words: Words, ca_file: str, connect_timeout_s: float, keep: int) -> None:
        place = urlsplit(url)
        self._words = words
        self._url = url
        self._host = place.hostname or ""
        self._port = place.port or _DEFAULT_PORTS[place.scheme]
        self.host = host_field(url)
        """For the header ``Host``."""
        self._is_tls = place.scheme == "https"
        self._ca_file = ca_file
        self._tls: ssl.SSLContext | None = None
        self._connect_timeout_s = connect_timeout_s
        self._lock = threading.Lock()
        self._idle: deque[tuple[socket.socket, float]] = deque(maxlen=keep)  # and since when
        self._new: deque[tuple[socket.socket, float]] = deque()  # made behind, and never used
        self._keep = keep
        self._open = self._connecting = 0
        self._is_short = self._is_closed = False
        self._pid = os.getpid()
        for lines in (self._idle, self._new):
            weakref.finalize(self, _close_all, lines)  # for who forgets to close

    def send(self, method: str, target: str, headers: Mapping[str, str], body: bytes, timeout_s: float) -> HttpAnswer:
        """Send one request, once, and read its answer.

        Args:
            method: Of HTTP.
            target: Path and query.
            headers: All but ``Content-Length``.
            body: May be empty.
            timeout_s: Longest silence.

        Raises:
            Exception: no answer, in the words that were given.
        """
        head = self._head(method, target, headers, body)
        line = self._take() or self._connect()
        was_sent = self._put(line, head, body, timeout_s)
        return self.read(line, method, was_sent=was_sent)

    def has_free(self) -> bool:
        """Whether ``begin`` may find a free connection; that one is missing is remembered."""
        self._is_short = self._is_short or not (self._idle or self._new)
        return bool(self._idle or self._new)

    def begin(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes, timeout_s: float
    ) -> SentRequest | None:
        """Send one request, once, over a connection that is free, and leave its answer for later.

        So one thread has many requests under way. While their answers are slow to come, more connections are made
        behind, until there are as many as are kept.

        Args:
            method: As of ``send``; and so are the others.
            target: Path and query.
            headers: All but ``Content-Length``.
            body: Short enough for the kernel to take it at once.
            timeout_s: Longest silence.

        Returns:
            Where the answer is to be had; None if no connection is free, and nothing was sent.

        Raises:
            Exception: as ``send``.
        """
        head = self._head(method, target, headers, body)
        line = self._take()
        if line is None:
            self._is_short = True
            return None
        was_sent = self._put(line, head, body, min(_PATIENCE_S, timeout_s))
        return SentRequest(self, line, method, timeout_s, was_sent=was_sent)

    def hear(self, line: socket.socket, end_s: float) -> bytes:
        """Wait a while for the first bytes of an answer. For ``SentRequest``.

        Raises:
            NotYetError: there are none so far, and it is not ``end_s`` yet.
        """
        left_s = end_s - time.monotonic()
        try:
            if left_s < _PATIENCE_S:  # or each of many that hang would take a second more than its time
                line.settimeout(max(left_s, 0.001))
            return line.recv(READ_BYTES)
        except BaseException as error:
            if isinstance(error, TimeoutError) and time.monotonic() < end_s:
                self.widen(is_slow=True)
                raise NotYetError from None
            self._drop(line, is_abrupt=True)
            self._tell(error)
            raise

    def read(self, line: socket.socket, method: str, *, was_sent: bool, begun: bytes | None = None) -> HttpAnswer:
        """Read the answer on a connection. For ``SentRequest``."""
        try:
            answer, is_whole = read_answer(line, method, begun)
        except BaseException as error:
            self._drop(line, is_abrupt=True)
            self._tell(error)
            raise
        if was_sent and is_whole:
            self._give(line)
        else:
            self._drop(line)
        return answer

    def abandon(self, line: socket.socket) -> None:
        """End a connection whose answer nobody wants. For ``SentRequest``."""
        self._drop(line, is_abrupt=True)

    def widen(self, *, is_slow: bool) -> None:
        """Connect behind if one was missing: as many again as there are, within the bounds. For ``SentRequest``."""
        if not self._is_short or self._is_closed or not (is_slow or self._open < _FEW):
            return
        self._is_short = False
        with self._lock:
            room = min(_CONNECTING - self._connecting, self._keep - self._open - self._connecting)
            count = max(0, min(room, max(1, self._open)))
            self._connecting += count
        started = 0
        try:
            for started in range(count):  # noqa: B007 - how many were, should one not
                threading.Thread(target=self._connect_behind, name="artifactsync-connect", daemon=True).start()
        except RuntimeError:  # the interpreter is ending and starts no more threads
            with self._lock:
                self._connecting -= count - started

    def close(self) -> None:
        """Close the idle connections."""
        self._is_closed = True
        _close_all(self._idle)
        _close_all(self._new)

    def _head(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> bytes:
        fields = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
        if fields.count("\n") != len(headers) or fields.count("\r") != len(headers):
            raise self._words.unfit(self._url, ValueError("a header has a line break in it"))
        return f"{method} {target} HTTP/1.1\r\n{fields}Content-Length: {len(body)}\r\n\r\n".encode()

    def _put(self, line: socket.socket, head: bytes, body: bytes, timeout_s: float) -> bool:
        """Send; False if it was refused in mid-body, and the answer may be there all the same."""
        try:
            if line.gettimeout() != timeout_s:  # setting it asks the kernel
                line.settimeout(timeout_s)
            if len(body) <= _TOGETHER_BYTES:
                line.sendall(head + body)
            else:
                line.sendall(head)
                line.sendall(body)
        except (BrokenPipeError, ConnectionResetError):
            return False
        except BaseException as error:
            self._drop(line)
            self._tell(error)
            raise
        return True

    def _tell(self, error: BaseException) -> None:
        """Raise the word for an error of a connection, if it is one."""
        if isinstance(error, TimeoutError):
            raise self._words.silent(self._url, error) from error
        if isinstance(error, (OSError, http.client.HTTPException, EOFError)):
            raise self._words.broken(self._url, error) from error

    def _connect_behind(self) -> None:
        try:
            with contextlib.suppress(Exception):  # whoever needs a connection will see
                self._new.append((self._connect(), time.monotonic()))
        finally:
            with self._lock:
                self._connecting -= 1
            if self._is_closed:
                _close_all(self._new)

    def _connect(self) -> socket.socket:
        try:
            line = socket.create_connection((self._host, self._port), self._connect_timeout_s)
        except TimeoutError as error:
            raise self._words.late(self._url, error) from error
        except OSError as error:
            raise self._words.unreachable(self._url, error) from error
        try:
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._is_tls:
                line = self._tls_context().wrap_socket(line, server_hostname=self._host)
        except TimeoutError as error:
            line.close()
            raise self._words.late(self._url, error) from error
        except ssl.SSLError as error:
            line.close()
            raise self._words.untrusted(self._url, error) from error
        except OSError as error:
            line.close()
            raise self._words.unreachable(self._url, error) from error
        with self._lock:
            self._open += 1
        return line

    def _tls_context(self) -> ssl.SSLContext:
        with self._lock:
            if self._tls is None:
                self._tls = ssl.create_default_context(cafile=self._ca_file)
            return self._tls

    def _take(self) -> socket.socket | None:
        """A free connection on which nothing has come; the one that was used last first."""
        for lines in (self._idle, self._new):
            while (found := self._pop(lines)) is not None:
                line, since_s = found
                is_fresh = time.monotonic() - since_s < _IDLE_S
                if is_fresh and (_is_silent(line) if lines is self._new else not _has_something(line)):
                    return line
                self._drop(line)
        return None

    def _pop(self, lines: deque[tuple[socket.socket, float]]) -> tuple[socket.socket, float] | None:
        if self._pid != os.getpid():  # what is here belongs to the parent, and closing the copies does not end them
            self._lock, self._pid = threading.Lock(), os.getpid()
            self._open = self._connecting = 0
            _close_all(self._idle)
            _close_all(self._new)
        try:
            return lines.pop()
        except IndexError:
            return None

    def _give(self, line: socket.socket) -> None:
        if len(self._idle) < self._keep:
            self._idle.append((line, time.monotonic()))
        else:
            self._drop(line)

    def _drop(self, line: socket.socket, *, is_abrupt: bool = False) -> None:
        if is_abrupt:  # what was not sent yet of a request that is given up must not arrive after a later one
            with contextlib.suppress(OSError):
                line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        line.close()
        with self._lock:
            self._open -= 1


class SentRequest:
    """A request that was sent, and whose answer was not read yet. One that is dropped unread ends its connection.

    Args:
        lines: Where the connection came from, and goes back to.
        line: The connection.
        method: Of HTTP.
        timeout_s: Longest wait for the answer to begin.
        was_sent: Whether all of the request was.
    """

    def __init__(self, lines: HttpLines, line: socket.socket, method: str, timeout_s: float, *, was_sent: bool) -> None:
        self._lines, self._line, self._method, self._was_sent = lines, line, method, was_sent
        self._timeout_s = timeout_s
        self._is_read = False
        self._end_s = time.monotonic() + timeout_s

    def __del__(self) -> None:
        if not self._is_read:
            self._lines.abandon(self._line)

    def answer(self) -> HttpAnswer:
        """Wait for the answer and read it; not again after that.

        Raises:
            NotYetError: it has not begun for a while: call again, before or after other answers.
            Exception: as ``HttpLines.send``.
        """
        began_s = time.monotonic()
        try:
            begun = self._lines.hear(self._line, self._end_s)
        except NotYetError:
            raise
        except BaseException:
            self._is_read = True
            raise
        self._is_read = True
        is_slow = time.monotonic() - began_s > _SLOW_S
        if self._method == "GET":  # other answers come in one piece
            self._line.settimeout(self._timeout_s)
        answer = self._lines.read(self._line, self._method, was_sent=self._was_sent, begun=begun)
        self._lines.widen(is_slow=is_slow)
        return answer


def host_field(url: str) -> str:
    """The header ``Host`` for requests to the server of ``url``; without the port that is usual."""
    place = urlsplit(url)
    host, usual = place.hostname or "", _DEFAULT_PORTS[place.scheme]
    shown = f"[{host}]" if ":" in host else host
    return shown if place.port in (None, usual) else f"{shown}:{place.port}"


def _is_silent(line: socket.socket) -> bool:
    """Whether the server has said nothing on a connection that was never used, but for tickets of TLS."""
    if not isinstance(line, ssl.SSLSocket):
        return not _has_something(line)
    line.settimeout(0)
    try:
        line.recv(1)
    except ssl.SSLWantReadError:
        return True
    except OSError:
        return False
    return False


def _close_all(lines: deque[tuple[socket.socket, float]]) -> None:
    while lines:
        with contextlib.suppress(IndexError):
            lines.pop()[0].close()


def _has_something(line: socket.socket) -> bool:
    """Whether the server has sent something, or its end, on an idle connection."""
    watch = select.poll()
    watch.register(line, select.POLLIN)
    return bool(watch.poll(0))
