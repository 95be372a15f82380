"""One HTTP/1.1 connection at a time, against sockets that answer as they are told."""

from __future__ import annotations

import contextlib
import datetime as dt
import ipaddress
import os
import socket
import ssl
import threading
import time
from typing import TYPE_CHECKING

import pytest
from botocore.exceptions import (
    ConnectionClosedError,
    EndpointConnectionError,
    HTTPClientError,
    ReadTimeoutError,
)
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from artifactsync.stores.ahead import NotYetError
from artifactsync.stores.http_lines import HttpLines, SentRequest
from artifactsync.stores.proxy_lines import ProxyLines
from artifactsync.stores.s3_wire import botocore_words

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from typing_extensions import Self

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
            with line, contextlib.suppress(ConnectionResetError):  # of who waits no longer
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
            lines = HttpLines(
                f"http://127.0.0.1:{server.port}", words=botocore_words(), ca_file="", connect_timeout_s=5, keep=4
            )
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
    lines = HttpLines(f"http://127.0.0.1:{port}", words=botocore_words(), ca_file="", connect_timeout_s=5, keep=4)
    with pytest.raises(EndpointConnectionError):
        lines.send("GET", "/k", {}, b"", 5)


def test_no_header_brings_a_second_one() -> None:
    lines = HttpLines("http://127.0.0.1:1", words=botocore_words(), ca_file="", connect_timeout_s=5, keep=4)
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
    assert HttpLines(url, words=botocore_words(), ca_file="", connect_timeout_s=5, keep=4).host == host


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


def _hold(lines: HttpLines, count: int) -> list[SentRequest]:
    """Begin requests, and wait for connections that are made behind."""
    begun: list[SentRequest] = []
    end_s = time.monotonic() + 10
    while len(begun) < count:
        assert time.monotonic() < end_s
        sent = lines.begin("GET", "/a", {"Host": lines.host}, b"", 5)
        if sent is None:
            begun.pop(0).answer()
        else:
            begun.append(sent)
    return begun


class Slow:
    """Answers on every connection, each time after a while."""

    def __init__(self, pause_s: float = 0.01) -> None:
        self.pause_s = pause_s
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.lines = HttpLines(
            f"http://127.0.0.1:{self._listener.getsockname()[1]}",
            words=botocore_words(),
            ca_file="",
            connect_timeout_s=5,
            keep=4,
        )
        self.open = self.most = 0
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                line, _ = self._listener.accept()
                with self._lock:
                    self.open += 1
                    self.most = max(self.most, self.open)
                threading.Thread(target=self._serve, args=(line,), daemon=True).start()

    def _serve(self, line: socket.socket) -> None:
        with line, contextlib.suppress(OSError):
            while line.recv(65536):
                time.sleep(self.pause_s)
                line.sendall(OK)
        with self._lock:
            self.open -= 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.lines.close()
        self._listener.close()


def test_nothing_is_begun_without_a_free_connection(serve: Callable[..., tuple[Server, HttpLines]]) -> None:
    server, lines = serve(OK, OK)
    assert not lines.has_free()
    assert lines.begin("GET", "/a", {"Host": lines.host}, b"", 5) is None
    lines.send("GET", "/a", {"Host": lines.host}, b"", 5)
    assert lines.has_free()
    sent = lines.begin("GET", "/b", {"Host": lines.host}, b"", 5)
    assert not lines.has_free()
    assert sent is not None
    assert sent.answer().content == b"hi"
    assert lines.has_free()
    assert server.connections == 1


def test_connections_are_made_behind_up_to_as_many_as_are_kept() -> None:
    with Slow() as server:
        server.lines.send("GET", "/a", {"Host": server.lines.host}, b"", 5)
        begun = _hold(server.lines, 4)
        for _ in range(40):
            assert server.lines.begin("GET", "/a", {"Host": server.lines.host}, b"", 5) is None
            assert begun[0].answer().status_code == 200
            sent = server.lines.begin("GET", "/a", {"Host": server.lines.host}, b"", 5)
            assert sent is not None
            begun = [*begun[1:], sent]
        for sent in begun:
            sent.answer()
        assert server.most == 4


def test_none_are_made_where_none_is_missing() -> None:
    with Slow() as server:
        for _ in range(20):
            server.lines.send("GET", "/a", {"Host": server.lines.host}, b"", 5)
            sent = server.lines.begin("GET", "/a", {"Host": server.lines.host}, b"", 5)
            assert sent is not None
            sent.answer()
        assert server.most == 1


def test_a_lost_answer_ends_its_connection_and_is_an_error(serve: Callable[..., tuple[Server, HttpLines]]) -> None:
    server, lines = serve(OK, None, OK)
    lines.send("GET", "/a", {"Host": lines.host}, b"", 5)
    sent = lines.begin("GET", "/b", {"Host": lines.host}, b"", 5)
    assert sent is not None
    with pytest.raises(ConnectionClosedError):
        sent.answer()
    assert not lines.has_free()
    assert lines.send("GET", "/c", {"Host": lines.host}, b"", 5).content == b"hi"
    assert server.connections == 2


def test_a_forked_child_uses_no_connection_of_its_parent() -> None:
    with Slow() as server:
        server.lines.send("GET", "/a", {"Host": server.lines.host}, b"", 5)
        for sent in _hold(server.lines, 3):
            sent.answer()
        child = os.fork()
        if not child:
            is_well = server.lines.begin("GET", "/a", {"Host": server.lines.host}, b"", 5) is None
            is_well = is_well and server.lines.send("GET", "/a", {"Host": server.lines.host}, b"", 5).content == b"hi"
            os._exit(0 if is_well else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert server.lines.has_free()


def test_hanging_answers_are_over_at_their_time_all_together() -> None:
    with Slow(pause_s=0.01) as server:
        server.lines.send("GET", "/a", {"Host": server.lines.host}, b"", 5)
        for sent in _hold(server.lines, 4):
            sent.answer()
        server.pause_s = 60
        began_s = time.monotonic()
        begun = [server.lines.begin("GET", "/a", {"Host": server.lines.host}, b"", 1.2) for _ in range(4)]
        for sent in begun:
            assert sent is not None
            try:
                sent.answer()
            except NotYetError:
                begun.append(sent)  # it is looked at again, behind the others
            except ReadTimeoutError:
                pass
        assert time.monotonic() - began_s < 2.5  # of four, a second each


def test_a_connection_that_was_idle_for_long_is_not_used(
    serve: Callable[..., tuple[Server, HttpLines]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("artifactsync.stores.http_lines._IDLE_S", 0.0)
    _, lines = serve(OK, OK)
    lines.send("GET", "/a", {"Host": lines.host}, b"", 5)
    assert lines.begin("GET", "/a", {"Host": lines.host}, b"", 5) is None
    assert lines._open == 0


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1, its own authority, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = dt.datetime.now(dt.timezone.utc)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    ca_file, key_file = folder / "ca.pem", folder / "key.pem"
    pem = serialization.Encoding.PEM
    ca_file.write_bytes(made.public_bytes(pem))
    how = (serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    key_file.write_bytes(key.private_bytes(pem, *how))
    return ca_file, key_file


@pytest.mark.parametrize("is_ended", [False, True])
def test_a_new_connection_of_tls_is_looked_at_before_its_first_use(tmp_path: Path, is_ended: bool) -> None:
    ca_file, key_file = make_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(ca_file, key_file)
    lines = HttpLines("https://127.0.0.1:1", words=botocore_words(), ca_file=str(ca_file), connect_timeout_s=5, keep=4)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        lines._port = listener.getsockname()[1]
        served: list[ssl.SSLSocket] = []

        def serve() -> None:
            served.append(context.wrap_socket(listener.accept()[0], server_side=True))

        answering = threading.Thread(target=serve)
        answering.start()
        lines._connect_behind()
        answering.join()
        if is_ended:
            served[0].close()
            time.sleep(0.05)
        line = lines._take()
        assert (line is None) == is_ended
        if line is not None:
            line.close()
        served[0].close()
    lines.close()


def test_a_request_that_is_dropped_unread_ends_its_connection() -> None:
    with Slow() as server:
        server.lines.send("GET", "/a", {"Host": server.lines.host}, b"", 5)
        sent = server.lines.begin("GET", "/a", {"Host": server.lines.host}, b"", 5)
        assert sent is not None
        assert server.lines._open == 1
        del sent
        assert server.lines._open == 0
        assert server.lines.send("GET", "/a", {"Host": server.lines.host}, b"", 5).content == b"hi"
