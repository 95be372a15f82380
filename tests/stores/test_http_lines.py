"""One HTTP/1.1 connection at a time, against sockets that answer as they are told."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import TYPE_CHECKING

import pytest
from botocore.exceptions import (
    ConnectionClosedError,
    EndpointConnectionError,
    HTTPClientError,
    ReadTimeoutError,
)

from artifactsync.stores.http_lines import HttpLines, ProxyLines

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"


class Server:
    """Answers each request with the next of its words; None ends the connection."""

    def __init__(self, words: list[bytes | None]) -> None:
        self._words = words
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.connections = 0
        self.requests: list[bytes] = []
        self.was_closed = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while self._words:
            try:
                line, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            with line:
                while self._words and (request := self._request(line)):
                    self.requests.append(request)
                    word = self._words.pop(0)
                    if word is None:
                        break
                    line.sendall(word)
                    if b"Connection: close" in word or b"Content-Length: 99" in word:
                        break
            self.was_closed.set()

    def _request(self, line: socket.socket) -> bytes:
        data = b""
        while b"\r\n\r\n" not in data:
            more = line.recv(65536)
            if not more:
                return b""
            data += more
        head, _, body = data.partition(b"\r\n\r\n")
        wanted = next(int(each.split(b":")[1]) for each in head.split(b"\r\n") if each.startswith(b"Content-Length"))
        while len(body) < wanted:
            body += line.recv(1 << 20)
        return head + b"\r\n\r\n" + body

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


@pytest.fixture
def serve() -> Iterator[Callable[..., tuple[Server, HttpLines]]]:
    with contextlib.ExitStack() as stack:

        def start(*words: bytes | None) -> tuple[Server, HttpLines]:
            server = Server(list(words))
            stack.callback(server.close)
            lines = HttpLines(f"http://127.0.0.1:{server.port}", ca_file="", connect_timeout_s=5, keep=4)
            stack.callback(lines.close)
            return server, lines

        yield start


def test_a_connection_is_used_again(serve: Callable[..., tuple[Server, HttpLines]]) -> None:
    server, lines = serve(OK, OK)
    for body in (b"", b"x" * 1_000_000):
        answer = lines.send("PUT", "/k", {"Host": lines.host}, body, 5)
        assert (answer.status_code, answer.content, answer.headers["content-length"]) == (200, b"hi", "2")
    assert server.connections == 1
    assert server.requests[1].endswith(b"\r\n\r\n" + b"x" * 1_000_000)


def test_a_connection_that_the_server_has_ended_is_not(serve: Callable[..., tuple[Server, HttpLines]]) -> None:
    server, lines = serve(OK.replace(b"\r\n\r\n", b"\r\nX: Connection: close\r\n\r\n"), OK)
    lines.send("GET", "/k", {}, b"", 5)
    assert server.was_closed.wait(5)
    assert lines.send("GET", "/k", {}, b"", 5).content == b"hi"
    assert server.connections == 2


def test_chunks_and_answers_without_a_body_are_read_to_their_end(
    serve: Callable[..., tuple[Server, HttpLines]],
) -> None:
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    server, lines = serve(chunked, b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n", b"HTTP/1.1 204 No\r\n\r\n", OK)
    assert lines.send("GET", "/k", {}, b"", 5).content == b"abc"
    assert lines.send("HEAD", "/k", {}, b"", 5).headers["Content-Length"] == "7"
    assert lines.send("DELETE", "/k", {}, b"", 5).status_code == 204
    assert lines.send("GET", "/k", {}, b"", 5).content == b"hi"
    assert server.connections == 1


@pytest.mark.parametrize("word", [None, b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nhi"])
def test_an_answer_that_breaks_off_is_an_error_and_nothing_is_sent_again(
    word: bytes | None, serve: Callable[..., tuple[Server, HttpLines]]
) -> None:
    server, lines = serve(word, OK)
    with pytest.raises(ConnectionClosedError):
        lines.send("PUT", "/k", {}, b"x", 5)
    assert len(server.requests) == 1
    assert lines.send("PUT", "/k", {}, b"x", 5).content == b"hi"


def test_silence_is_a_timeout(serve: Callable[..., tuple[Server, HttpLines]]) -> None:
    _, lines = serve(b"", OK)
    with pytest.raises(ReadTimeoutError):
        lines.send("GET", "/k", {}, b"", 0.05)


def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    lines = HttpLines(f"http://127.0.0.1:{port}", ca_file="", connect_timeout_s=5, keep=4)
    with pytest.raises(EndpointConnectionError):
        lines.send("GET", "/k", {}, b"", 5)


def test_no_header_brings_a_second_one() -> None:
    lines = HttpLines("http://127.0.0.1:1", ca_file="", connect_timeout_s=5, keep=4)
    with pytest.raises(HTTPClientError, match="line break"):
        lines.send("GET", "/k", {"X": "a\r\nY: b"}, b"", 5)


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("http://h:80", "h"),
        ("https://h", "h"),
        ("http://h:8080", "h:8080"),
        ("https://[::1]:443", "[::1]"),
        ("http://[::1]:9", "[::1]:9"),
    ],
)
def test_the_host_header_leaves_out_the_default_port(url: str, host: str) -> None:
    assert HttpLines(url, ca_file="", connect_timeout_s=5, keep=4).host == host


def test_through_a_proxy(serve: Callable[..., tuple[Server, HttpLines]]) -> None:
    proxy, _ = serve(OK)
    lines = ProxyLines(
        "http://store.invalid:9000",
        proxies={"http": f"http://127.0.0.1:{proxy.port}"},
        ca_file="",
        connect_timeout_s=5,
        keep=4,
    )
    assert lines.send("PUT", "/k", {"Host": lines.host}, b"x", 5).content == b"hi"
    assert proxy.requests[0].startswith(b"PUT http://store.invalid:9000/k HTTP/1.1\r\n")
    assert proxy.requests[0].lower().count(b"\nhost: store.invalid:9000") == 1
    lines.close()
