"""One client's connection through the fault proxy: HTTP/1.1 on both sides, bytes forwarded as they are.

Owns: sockets, framing, the order in which faults get to see a request. Does not own: which faults (``line_faults``),
the listener and the record (``fault_proxy``).

Invariant: what no fault touches arrives unchanged and in the same framing, but for an ``Expect: 100-continue``, which
is answered here, and the links of Google's JSON answers, which lead here.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from typing import TYPE_CHECKING

from tests.line_faults import LineCutError, PartError, Request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from io import BufferedReader

    from tests.fault_proxy import FaultProxy

_CHUNK_BYTES = 64 * 1024
_MAX_HEAD_LINE_BYTES = 64 * 1024
_IDLE_S = 60.0
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Line:
    """One client's connection: its requests are served one after the other, each by a new one to the server."""

    def __init__(self, proxy: FaultProxy, client: socket.socket) -> None:
        self.closed = threading.Event()
        self.thread = threading.Thread(target=self._serve, name="fault-proxy-line", daemon=True)
        self._proxy = proxy
        self._client = client
        self._server: socket.socket | None = None
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def close(self) -> None:
        """Reset the connection, from any other thread than its own, which lets the socket go."""
        self.closed.set()
        self._prepare_reset()
        with contextlib.suppress(OSError):
            self._client.shutdown(socket.SHUT_RD)
        if (server := self._server) is not None:
            with contextlib.suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)

    def join(self) -> None:
        """Wait until its thread has ended, whatever it is doing."""
        self.thread.join(0.5)
        with contextlib.suppress(OSError):  # it is stuck in sending to a client that does not read
            self._client.shutdown(socket.SHUT_RDWR)
        self.thread.join()

    def swallow(self) -> None:
        """Read and drop what the client sends, until it leaves or the line is closed."""
        with contextlib.suppress(OSError):
            while not self.closed.is_set() and self._client.recv(_CHUNK_BYTES):
                pass

    def _serve(self) -> None:
        try:
            with self._client, self._client.makefile("rb") as incoming:
                try:
                    while not self.closed.is_set() and self._serve_one(incoming):
                        pass
                except LineCutError as cut:
                    if cut.reset:
                        self._prepare_reset()
                except (OSError, ValueError):  # the client left, or the server did
                    self._prepare_reset()
        finally:
            self._proxy.leave(self)

    def _prepare_reset(self) -> None:
        with contextlib.suppress(OSError):
            self._client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def _serve_one(self, incoming: BufferedReader) -> bool:
        """Serve one request and say whether another may follow."""
        head = _read_head(incoming)
        if head is None:
            return False
        if self.closed.is_set():  # SHUT_RD lets through what comes later
            raise LineCutError
        request = _parse(head)
        self._proxy.record(request)
        if self._proxy.latency_s:
            self.closed.wait(self._proxy.latency_s)
        for fault in request.faults:
            fault.before(request, self)
        stays = request.headers.get("connection", "").lower() != "close"
        waits = request.headers.get("expect", "").lower() == "100-continue"
        answer = next((answer for fault in request.faults if (answer := fault.answer()) is not None), None)
        if answer is not None:
            if not waits:
                for piece in _body(incoming, request.headers):
                    request.body_bytes += len(piece)
            request.status = int(answer.split(b" ", 2)[1])
            self._client.sendall(answer)
            return stays and not waits
        if waits:
            self._client.sendall(_CONTINUE)
        with socket.create_connection(self._proxy.upstream, timeout=_IDLE_S) as server:
            self._server = server
            was_sent = self._send_up(server, head, request, incoming)
            with server.makefile("rb") as reply:
                return self._send_down(request, reply) and stays and was_sent

    def _send_up(self, server: socket.socket, head: list[bytes], request: Request, incoming: BufferedReader) -> bool:
        """Forward a request; False if the server did not want all of it, and has answered instead."""
        kept = [line for line in head if not line.lower().startswith(b"expect:")]
        is_chunked = _is_chunked(request.headers)
        try:
            server.sendall(b"".join(kept))
            for piece in _body(incoming, request.headers):
                data, cut = _through([fault.upload for fault in request.faults], piece, request.body_bytes)
                request.body_bytes += len(piece)
                self._proxy.pass_bytes(len(data), self.closed)
                server.sendall(_frame(data, is_chunked=is_chunked))
                if cut:
                    raise cut
            if is_chunked:
                server.sendall(b"0\r\n\r\n")
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def _send_down(self, request: Request, reply: BufferedReader) -> bool:
        """Forward an answer and say whether the connection can go on."""
        while True:
            head = _read_head(reply)
            if head is None:
                raise LineCutError
            status = int(head[0].split(b" ", 2)[1])
            if status >= 200:
                break
        request.server_status = status
        headers = _headers(head)
        has_body = request.method != "HEAD" and status not in {204, 304}
        pieces = _body(reply, headers, until_closed=True) if has_body else iter(())
        if headers.get("content-type", "").startswith("application/json") and "alt=media" not in request.query:
            pieces = self._turn_links(pieces)
        for fault in request.faults:
            fault.applied(pieces)
        request.status = status
        self._client.sendall(b"".join(head))
        offset, is_chunked = 0, _is_chunked(headers)
        for piece in pieces:
            data, cut = _through([fault.download for fault in request.faults], piece, offset)
            offset += len(piece)
            self._proxy.pass_bytes(len(data), self.closed)
            self._client.sendall(_frame(data, is_chunked=is_chunked))
            if cut:
                raise cut
        if is_chunked and has_body:
            self._client.sendall(b"0\r\n\r\n")
        return not has_body or is_chunked or "content-length" in headers

    def _turn_links(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        """Let the links in an answer of Google's JSON API lead here: its clients download by ``mediaLink``."""
        there = "http://{}:{}".format(*self._proxy.upstream).encode()
        here = self._proxy.url.encode()
        assert len(there) == len(here), "the answer's length must stay"
        yield b"".join(pieces).replace(there, here)


def _through(hooks: list[Callable[[bytes, int], bytes]], data: bytes, offset: int) -> tuple[bytes, LineCutError | None]:
    """Return what the faults leave of a piece, and the cut that follows it, if one does."""
    try:
        for hook in hooks:
            data = hook(data, offset)
    except PartError as part:
        return part.data, LineCutError(reset=part.reset)
    return data, None


def _read_head(source: BufferedReader) -> list[bytes] | None:
    """Return the lines of a head, the empty one included; None at the end of the connection."""
    lines = []
    while True:
        line = source.readline(_MAX_HEAD_LINE_BYTES)
        if not line.endswith(b"\n"):
            return None
        lines.append(line)
        if line == b"\r\n":
            return lines


def _headers(head: list[bytes]) -> dict[str, str]:
    pairs = (line.decode("latin-1").partition(":") for line in head[1:-1])
    return {name.strip().lower(): value.strip() for name, _, value in pairs}


def _parse(head: list[bytes]) -> Request:
    method, target, _ = head[0].decode("latin-1").split(" ", 2)
    path, _, query = target.partition("?")
    return Request(method, path, query, _headers(head), time.monotonic())


def _is_chunked(headers: dict[str, str]) -> bool:
    return "chunked" in headers.get("transfer-encoding", "").lower()


def _frame(data: bytes, *, is_chunked: bool) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data) if is_chunked and data else data


def _body(source: BufferedReader, headers: dict[str, str], *, until_closed: bool = False) -> Iterator[bytes]:
    """Yield a body's own bytes, whatever its framing.

    Raises:
        LineCutError: It ended early.
    """
    if _is_chunked(headers):
        while size := int(source.readline(_MAX_HEAD_LINE_BYTES).split(b";")[0], 16):
            yield from _exactly(source, size)
            source.readline()
        while source.readline(_MAX_HEAD_LINE_BYTES) not in {b"\r\n", b""}:
            pass
    elif "content-length" in headers:
        yield from _exactly(source, int(headers["content-length"]))
    elif until_closed:
        while data := source.read1(_CHUNK_BYTES):
            yield data


def _exactly(source: BufferedReader, count: int) -> Iterator[bytes]:
    while count:
        data = source.read1(min(count, _CHUNK_BYTES))
        if not data:
            raise LineCutError
        count -= len(data)
        yield data
