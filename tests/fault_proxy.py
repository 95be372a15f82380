"""A line to a server that fails on demand: an HTTP-aware TCP proxy in this process.

It forwards requests byte for byte, ``Host`` included, so that signatures hold. Faults are added as rules: which
requests (a method, a part of the path, any predicate), from the how-manyth on, how many times, with what chance.
Every request is recorded, with its time, so that a test can say how many were sent and how long a client waited.

    line = fault_proxy(s3)
    line.proxy.add(Answer(503, retry_after_s=2), method="PUT", times=2)
    ... use line.fresh_url() with line.storage_options ...
    first, second, third = line.proxy.seen(method="PUT")
    assert second.at_s - first.at_s >= 2

Owns: the wire and its faults. Does not own: the servers behind it, faults above the wire (``testing.faults``).
"""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from io import BufferedReader

_CHUNK_BYTES = 64 * 1024
_MAX_HEAD_LINE_BYTES = 64 * 1024
_IDLE_S = 60.0
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class LineCutError(Exception):
    """A fault has cut the line: by a reset, or by an early end as of a server that is shutting down."""

    def __init__(self, *, reset: bool = True) -> None:
        super().__init__("reset" if reset else "closed")
        self.reset = reset


@dataclass
class Request:
    """What passed by: one request and what became of it."""

    method: str
    path: str
    """The path, still percent-encoded, without the query."""
    query: str
    headers: dict[str, str]
    """By lower-case name."""
    at_s: float
    """When its head had arrived, on ``time.monotonic``'s clock."""
    body_bytes: int = 0
    """How much of its body came."""
    status: int | None = None
    """What the client was answered, if it was."""
    server_status: int | None = None
    """What the server answered, if it was asked; differs from ``status`` where the answer was lost."""
    faults: list[Fault] = field(default_factory=list)
    """What was done to it."""


class Fault:
    """What goes wrong with one request. Each fault overrides the hook at which it strikes."""

    def before(self, request: Request, line: Line) -> None:
        """Strike when the head has arrived and nothing was forwarded."""

    def answer(self) -> bytes | None:
        """Return a whole answer to send instead of asking the server."""
        return None

    def upload(self, data: bytes, offset: int) -> bytes:
        """Return what to forward of a piece of the request's body that begins at ``offset``."""
        return data

    def applied(self, rest: Iterator[bytes]) -> None:
        """Strike when the server has answered and the client knows nothing of it; ``rest`` is the answer's body."""

    def download(self, data: bytes, offset: int) -> bytes:
        """Return what to forward of a piece of the answer's body that begins at ``offset``."""
        return data


@dataclass(frozen=True)
class Answer(Fault):
    """The server is not asked: the client gets this status, as from a balancer in front of it."""

    status: int
    retry_after_s: float | None = None
    body: bytes = b""

    def answer(self) -> bytes:
        lines = [f"HTTP/1.1 {self.status} Fault", f"Content-Length: {len(self.body)}", "Content-Type: application/xml"]
        if self.retry_after_s is not None:
            lines.append(f"Retry-After: {self.retry_after_s:g}")
        return "\r\n".join([*lines, "", ""]).encode() + self.body


@dataclass(frozen=True)
class ResetUpload(Fault):
    """The connection is reset when so many bytes of the request's body were forwarded (0: at its head)."""

    after_bytes: int = 0

    def before(self, request: Request, line: Line) -> None:
        if self.after_bytes == 0:
            raise LineCutError

    def upload(self, data: bytes, offset: int) -> bytes:
        return _until(data, offset, self.after_bytes, reset=True)


@dataclass(frozen=True)
class ResetDownload(Fault):
    """The connection is reset when so many bytes of the answer's body were forwarded."""

    after_bytes: int = 0

    def download(self, data: bytes, offset: int) -> bytes:
        return _until(data, offset, self.after_bytes, reset=True)


@dataclass(frozen=True)
class Truncate(Fault):
    """The answer ends early and in good order after so many bytes of its body; its head promised more."""

    after_bytes: int = 0

    def download(self, data: bytes, offset: int) -> bytes:
        return _until(data, offset, self.after_bytes, reset=False)


@dataclass(frozen=True)
class FlipDownload(Fault):
    """One byte of the answer's body arrives wrong."""

    at_byte: int = 0

    def download(self, data: bytes, offset: int) -> bytes:
        return _flip(data, self.at_byte - offset)


@dataclass(frozen=True)
class FlipUpload(Fault):
    """One byte of the request's body arrives wrong at the server."""

    at_byte: int = 0

    def upload(self, data: bytes, offset: int) -> bytes:
        return _flip(data, self.at_byte - offset)


@dataclass(frozen=True)
class LoseAnswer(Fault):
    """The server has done what was asked, and the connection is reset before the client learns it."""

    def applied(self, rest: Iterator[bytes]) -> None:
        for _ in rest:
            pass
        raise LineCutError


@dataclass(frozen=True)
class Delay(Fault):
    """The request waits on the line."""

    seconds: float

    def before(self, request: Request, line: Line) -> None:
        line.closed.wait(self.seconds)


@dataclass(frozen=True)
class Hold(Fault):
    """The request waits on the line until the test lets it go."""

    released: threading.Event = field(default_factory=threading.Event)

    def before(self, request: Request, line: Line) -> None:
        while not (self.released.wait(0.05) or line.closed.is_set()):
            pass


@dataclass(frozen=True)
class BlackHole(Fault):
    """The connection was accepted, everything is read, and nothing is ever answered."""

    def before(self, request: Request, line: Line) -> None:
        line.swallow()
        raise LineCutError


@dataclass
class Rule:
    """When a fault strikes."""

    fault: Fault
    matches: Callable[[Request], bool]
    skip: int
    times: int | None
    probability: float
    hits: int = 0
    """How often it has struck."""

    def strikes(self, request: Request, chance: random.Random) -> bool:
        if not self.matches(request) or (self.times is not None and self.hits >= self.times):
            return False
        if self.skip:
            self.skip -= 1
            return False
        if self.probability < 1 and chance.random() >= self.probability:
            return False
        self.hits += 1
        return True


class FaultProxy:
    """The proxy: listens on a free port of loopback until closed.

    Args:
        upstream_url: The server behind it, ``http://127.0.0.1:PORT``.
        seed: Of the chances. Requests in parallel draw in the order of their arrival.
    """

    def __init__(self, upstream_url: str, *, seed: int = 0) -> None:
        parts = urlsplit(upstream_url)
        self.upstream = (parts.hostname or "", parts.port or 80)
        self.bytes_per_s: float | None = None
        """The line's bandwidth, both ways and all connections together; None: no limit."""
        self.latency_s = 0.0
        """What each request waits on the line."""
        self._chance = random.Random(seed)
        self._rules: list[Rule] = []
        self._requests: list[Request] = []
        self._changed = threading.Condition()
        self._free_at_s = 0.0
        self._lines: set[Line] = set()
        self._down = False
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._accepting = threading.Thread(target=self._accept, name="fault-proxy", daemon=True)
        self._accepting.start()

    def add(
        self,
        fault: Fault,
        *,
        method: str | None = None,
        contains: str | None = None,
        when: Callable[[Request], bool] | None = None,
        skip: int = 0,
        times: int | None = None,
        probability: float = 1.0,
    ) -> Rule:
        """Let a fault strike the requests that match everything given.

        Args:
            fault: What happens.
            method: Only requests of this method.
            contains: Only requests with this in their path or query.
            when: Only requests of which this is true.
            skip: How many matching requests go by unharmed first.
            times: How many it strikes; all when None.
            probability: The chance of each.
        """
        rule = Rule(fault, _matcher(method, contains, when), skip, times, probability)
        with self._changed:
            self._rules.append(rule)
        return rule

    def heal(self) -> None:
        """Remove every rule and limit; the record stays."""
        with self._changed:
            self._rules.clear()
        self.bytes_per_s, self.latency_s, self._down = None, 0.0, False

    def cut(self) -> None:
        """Reset every connection, and each new one at once, until ``heal``."""
        self._down = True
        for line in self._open_lines():
            line.close()

    def forget(self) -> None:
        """Empty the record."""
        with self._changed:
            self._requests.clear()

    def seen(
        self, *, method: str | None = None, contains: str | None = None, when: Callable[[Request], bool] | None = None
    ) -> list[Request]:
        """Return the recorded requests that match, in the order of their arrival."""
        matches = _matcher(method, contains, when)
        with self._changed:
            return [request for request in self._requests if matches(request)]

    def wait_for(self, count: int = 1, *, timeout_s: float = 20.0, **matching: str) -> list[Request]:
        """Wait until so many matching requests (``method=``, ``contains=``) have come, and return them.

        Raises:
            TimeoutError: They have not.
        """
        matches = _matcher(matching.get("method"), matching.get("contains"), None)
        with self._changed:
            if not self._changed.wait_for(lambda: sum(map(matches, self._requests)) >= count, timeout_s):
                raise TimeoutError(f"no {count} requests of {matching} in {timeout_s} s: {self._requests}")
            return [request for request in self._requests if matches(request)]

    def close(self) -> None:
        """End the proxy and its connections."""
        with contextlib.suppress(OSError):  # wakes accept(); the peer may see it as closed already
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join()
        for line in self._open_lines():
            line.close()
            line.join()

    def record(self, request: Request) -> None:
        """Note a request, and choose the faults that strike it."""
        with self._changed:
            request.faults = [rule.fault for rule in self._rules if rule.strikes(request, self._chance)]
            self._requests.append(request)
            self._changed.notify_all()

    def pass_bytes(self, count: int, stop: threading.Event) -> None:
        """Wait for as long as the line needs for so many bytes."""
        if self.bytes_per_s is None:
            return
        with self._changed:
            now = time.monotonic()
            self._free_at_s = max(now, self._free_at_s) + count / self.bytes_per_s
            wait_s = self._free_at_s - now
        stop.wait(wait_s)

    def leave(self, line: Line) -> None:
        """Forget a connection that has ended."""
        with self._changed:
            self._lines.discard(line)

    def _open_lines(self) -> list[Line]:
        with self._changed:
            return list(self._lines)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            line = Line(self, client)
            if self._down:
                line.close()
                client.close()
                continue
            with self._changed:
                self._lines.add(line)
            line.thread.start()


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


class _PartError(Exception):
    """Only this part of a piece goes through, then the line is cut."""

    def __init__(self, data: bytes, *, reset: bool) -> None:
        super().__init__()
        self.data, self.reset = data, reset


def _through(hooks: list[Callable[[bytes, int], bytes]], data: bytes, offset: int) -> tuple[bytes, LineCutError | None]:
    """Return what the faults leave of a piece, and the cut that follows it, if one does."""
    try:
        for hook in hooks:
            data = hook(data, offset)
    except _PartError as part:
        return part.data, LineCutError(reset=part.reset)
    return data, None


def _until(data: bytes, offset: int, end: int, *, reset: bool) -> bytes:
    if offset + len(data) < end:
        return data
    raise _PartError(data[: end - offset], reset=reset)


def _flip(data: bytes, index: int) -> bytes:
    if not 0 <= index < len(data):
        return data
    return data[:index] + bytes([data[index] ^ 0x01]) + data[index + 1 :]


def _matcher(
    method: str | None, contains: str | None, when: Callable[[Request], bool] | None
) -> Callable[[Request], bool]:
    return lambda request: (
        (method is None or request.method == method)
        and (contains is None or contains in f"{request.path}?{request.query}")
        and (when is None or when(request))
    )


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
