from __future__ import annotations

import hashlib
import os
import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from artifactsync.errors import FileChangedError, ObjectNotFoundError
from artifactsync.transfer.hashing import FileBody, FileDigest, hash_file


def test_hash_file_is_sha256(make_file):
    path = make_file("a", 10_000_000)
    expected = FileDigest(10_000_000, hashlib.sha256(path.read_bytes()).hexdigest())
    assert hash_file(path) == expected
    with path.open("rb") as file:
        file.seek(77)
        assert hash_file(file.fileno()) == expected
        assert file.tell() == 77


@pytest.mark.parametrize("what", ["missing", "folder", "below a file", "pipe"])
def test_what_is_no_file_is_refused(tmp_path, make_file, what):
    path = {
        "missing": tmp_path / "no",
        "folder": tmp_path,
        "below a file": make_file("f") / "x",
        "pipe": tmp_path / "pipe",
    }[what]
    if what == "pipe":
        os.mkfifo(path)
    with pytest.raises(ObjectNotFoundError) as caught:
        FileBody(path)
    assert str(path) in caught.value.message
    assert caught.value.hint


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(size=st.integers(0, 5000), chunk_bytes=st.integers(1, 2000), growing=st.booleans())
def test_chunks_are_the_file_in_exact_pieces(make_file, size, chunk_bytes, growing):
    path = make_file("c", size)
    os.utime(path, (1, 1))
    with FileBody(path, growing=growing) as body:
        for _ in range(2):  # a body can be read again
            chunks = list(body.chunks(chunk_bytes))
            assert b"".join(chunks) == path.read_bytes()
            assert all(len(chunk) == chunk_bytes for chunk in chunks[:-1])
        assert body.size_bytes == size
        assert body.digest == hash_file(path)


def _append(path):
    with path.open("ab") as file:
        file.write(b"more")


def _rewrite(path):
    path.write_bytes(bytes(path.stat().st_size))


def _cut(path):
    os.truncate(path, 1500)


@pytest.mark.parametrize("change", [_append, _rewrite, _cut])
def test_a_change_while_reading_is_found_before_the_last_chunk(make_file, change):
    path = make_file("f", 3000)
    with FileBody(path) as body:
        chunks = body.chunks(1000)
        given_out = [next(chunks)]
        change(path)
        with pytest.raises(FileChangedError, match="changed while it was read"):
            given_out.extend(chunks)
        assert len(given_out) < 3
        assert body.digest is None


def test_a_rewrite_in_the_same_tick_of_the_file_clock_is_found(make_file):
    path = make_file("f", 2000)
    for _ in range(30):  # mtimes tick every few milliseconds: many of these rewrites fall into one tick
        path.write_bytes(os.urandom(2000))
        with FileBody(path) as body:
            chunks = body.chunks(1000)
            next(chunks)
            path.write_bytes(os.urandom(2000))
            with pytest.raises(FileChangedError):
                list(chunks)


def test_a_growing_file_is_sent_as_long_as_it_was(make_file):
    path = make_file("log", 3000)
    before = path.read_bytes()
    with FileBody(path, growing=True) as body:
        chunks = body.chunks(1000)
        got = [next(chunks)]
        _append(path)
        got.extend(chunks)
    assert b"".join(got) == before


def test_a_growing_file_that_shrinks_has_changed(make_file):
    path = make_file("log", 3000)
    with FileBody(path, growing=True) as body:
        _cut(path)
        with pytest.raises(FileChangedError, match="ended after 1500 of 3000"):
            list(body.chunks(1000))


def test_a_long_file_is_hashed_by_a_thread_that_ends_with_the_reading(tmp_path):
    data = bytes(range(256)) * 4096
    path = tmp_path / "long"
    path.write_bytes(data)

    def hashing():
        return [thread for thread in threading.enumerate() if thread.name == "artifactsync-hash"]

    with FileBody(path) as body:
        assert b"".join(body.chunks(1000)) == data
        assert body.digest == FileDigest(len(data), hashlib.sha256(data).hexdigest())
        broken_off = body.chunks(1000)
        next(broken_off)
        assert len(hashing()) == 1
        broken_off.close()
    assert not hashing()
