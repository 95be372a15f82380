"""Long answers land in the place that the thread that waits for them has given."""

from __future__ import annotations

import hashlib
import os
import socket
import threading

import pytest
from botocore.exceptions import ConnectionClosedError

from artifactsync.stores import open_store
from artifactsync.stores.http_answer import read_answer
from artifactsync.stores.http_lines import HttpLines
from artifactsync.stores.landing import landing, place_for
from artifactsync.stores.s3_wire import botocore_words
from artifactsync.transfer.download import download_file

BODY = os.urandom(300_000)
HEAD = b"HTTP/1.1 206 Partial Content\r\nETag: x\r\nContent-Length: 300000\r\n\r\n"


def _answer(data: bytes, place: bytearray | None) -> tuple[bytes, bool]:
    here, there = socket.socketpair()
    with here, there:
        sending = threading.Thread(target=lambda: (there.sendall(data), there.shutdown(socket.SHUT_WR)))
        sending.start()
        try:
            if place is None:
                answer, is_reusable = read_answer(here, "GET")
            else:
                with landing(memoryview(place)):
                    answer, is_reusable = read_answer(here, "GET")
        finally:
            sending.join()
    return answer.content, is_reusable


@pytest.mark.parametrize("size_bytes", [300_000, 300_001, 1 << 20])
def test_a_long_answer_lands_in_the_place(size_bytes: int) -> None:
    place = bytearray(size_bytes)
    content, is_reusable = _answer(HEAD + BODY, place)
    assert isinstance(content, memoryview)
    assert content.obj is place
    assert content == BODY
    assert is_reusable


@pytest.mark.parametrize(
    ("data", "expected", "size_bytes"),
    [
        (HEAD + BODY, BODY, 299_999),
        (HEAD + BODY, BODY, None),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", b"hi", 1000),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n186a0\r\n" + BODY[:100_000] + b"\r\n0\r\n\r\n",
            BODY[:100_000],
            1 << 20,
        ),
        (HEAD.replace(b"206", b"503") + BODY, BODY, 1 << 20),
    ],
    ids=["too long", "no place", "short", "chunked", "refusal"],
)
def test_others_are_bytes_of_their_own(data: bytes, expected: bytes, size_bytes: int | None) -> None:
    place = None if size_bytes is None else bytearray(size_bytes)
    content, _ = _answer(data, place)
    assert isinstance(content, bytes)
    assert content == expected
    assert not any(place or b"")


def test_the_place_is_of_one_thread_and_for_so_long() -> None:
    seen = []
    with landing(memoryview(bytearray(10))):
        assert place_for(10) is not None
        assert place_for(11) is None
        thread = threading.Thread(target=lambda: seen.append(place_for(10)))
        thread.start()
        thread.join()
    assert seen == [None]
    assert place_for(10) is None


def test_an_answer_that_breaks_off_is_an_error_also_in_a_place() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            line, _ = listener.accept()
            with line:
                line.recv(65536)
                line.sendall(HEAD + BODY[:200_000])

        thread = threading.Thread(target=serve)
        thread.start()
        lines = HttpLines(
            f"http://127.0.0.1:{listener.getsockname()[1]}",
            words=botocore_words(),
            ca_file="",
            connect_timeout_s=5,
            keep=1,
        )
        with landing(memoryview(bytearray(1 << 20))), pytest.raises(ConnectionClosedError):
            lines.send("GET", "/k", {}, b"", 5)
        thread.join()


def test_a_file_of_many_parts_from_a_real_server_is_right(request: pytest.FixtureRequest, tmp_path) -> None:  # type: ignore[no-untyped-def]
    server = request.getfixturevalue("s3")
    store = open_store(server.fresh_url(), server.storage_options)
    data = os.urandom(9_876_543)
    store.put("big", data)
    known = {"size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    for number, more in enumerate(({}, known)):
        path = tmp_path / str(number)
        assert download_file(store, "big", path, part_bytes=200_000, **more).sha256 == known["sha256"]  # type: ignore[arg-type]
        assert path.read_bytes() == data
    store.close()
