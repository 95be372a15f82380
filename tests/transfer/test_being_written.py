from __future__ import annotations

import hashlib
import os
import threading
from collections import deque
from pathlib import Path

import pytest

from artifactsync.errors import DiskFullError, FileChangedError, UploadError
from artifactsync.stores import open_store
from artifactsync.transfer.being_written import FileBeingWritten
from artifactsync.transfer.patience import Patience
from artifactsync.transfer.queue import UploadQueue

DATA = os.urandom(20 * 2**20 + 17)
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def writer(tmp_path):
    """A file, and what writes to it."""
    fd = os.open(tmp_path / "hidden", os.O_RDWR | os.O_CREAT)
    yield _Writer(fd, tmp_path)
    os.close(fd)


class _Writer:
    def __init__(self, fd, folder):
        self.fd, self.folder = fd, folder
        self.source = FileBeingWritten(fd, str(folder / "x.pt"), len(DATA))

    def write(self, start, end):
        os.write(self.fd, DATA[start:end])
        self.source.advance(end - start)

    def finish(self):
        (self.folder / "hidden").rename(self.folder / "x.pt")
        self.source.finish(SHA256)


def test_the_last_chunk_waits_until_the_file_is_whole(writer):
    asked = threading.Event()
    chunks = writer.source.open(lambda count: asked.set() if count == 0 else None).chunks(8 * 2**20)
    writer.write(0, 9 * 2**20)
    assert next(chunks) == DATA[: 8 * 2**20]
    writer.write(9 * 2**20, len(DATA))
    assert next(chunks) == DATA[8 * 2**20 : 16 * 2**20]
    last = []
    thread = threading.Thread(target=lambda: last.append(next(chunks)))
    thread.start()
    assert asked.wait(10)  # it waits, though every byte is written
    assert last == []
    writer.finish()
    thread.join(10)
    assert last == [DATA[16 * 2**20 :]]
    assert next(chunks, None) is None


def test_an_upload_begins_before_the_file_ends(writer, s3):
    store = open_store(s3.fresh_url(), s3.storage_options)
    with UploadQueue(store) as queue:
        upload = queue.submit("run/x.pt", writer.folder / "x.pt", writing=writer.source)
        writer.write(0, 16 * 2**20)
        while upload.moved_bytes < 8 * 2**20:
            assert not upload.done()
        writer.write(16 * 2**20, len(DATA))
        assert not list(store.list("run/"))
        writer.finish()
        assert upload.result(30).sha256 == SHA256
    assert store.get("run/x.pt") == DATA
    store.close()


def test_what_cannot_be_written_becomes_no_object_and_is_not_tried_again(writer, s3):
    store = open_store(s3.fresh_url(), s3.storage_options)
    queue = UploadQueue(store, patience=Patience(base_delay_s=0.01))
    upload = queue.submit("run/x.pt", writer.folder / "x.pt", writing=writer.source)
    writer.write(0, 17 * 2**20)
    writer.source.fail(DiskFullError("no space left", hint="free some"))
    with pytest.raises(UploadError, match="could not be written: no space left") as caught:
        upload.result(30)
    assert caught.value.hint == "free some"
    assert upload.attempts == 1
    queue.close()
    assert list(store.list("")) == []
    store.close()


def test_a_remote_that_fails_gets_it_again_from_the_file(writer, s3, fault_proxy):
    cloud = fault_proxy(s3)
    store = open_store(s3.fresh_url(), cloud.storage_options)
    with UploadQueue(store, patience=Patience(base_delay_s=0.01, max_delay_s=0.1)) as queue:
        cloud.proxy.cut()
        upload = queue.submit("run/x.pt", writer.folder / "x.pt", writing=writer.source)
        writer.write(0, len(DATA))
        writer.finish()
        (writer.folder / "x.pt").unlink()  # its bytes are held
        cloud.proxy.heal()
        assert upload.result(60).sha256 == SHA256
    assert store.get("run/x.pt") == DATA
    store.close()


def test_a_change_after_the_end_is_found(writer):
    writer.write(0, len(DATA))
    writer.finish()
    with (writer.folder / "x.pt").open("r+b") as file:
        file.write(b"edited")
    with pytest.raises(FileChangedError, match="was changed after"):
        list(writer.source.open(lambda count: None).chunks(8 * 2**20))


def test_a_closed_queue_does_not_wait_for_a_writer_that_never_ends(writer):
    queue = UploadQueue(open_store("memory://"))
    upload = queue.submit("x", writer.folder / "x.pt", writing=writer.source)
    queue.abort()
    with pytest.raises(UploadError, match="closed before"):
        upload.result(30)


def test_of_files_that_wait_by_the_hundred_few_descriptors_are_held_and_each_is_sent_as_it_was(tmp_path):
    sources = []
    for number in range(100):
        file = tmp_path / f"{number}.pt"
        file.write_bytes(b"%d" % number)
        fd = os.open(file, os.O_RDWR)
        source = FileBeingWritten(fd, str(file), file.stat().st_size)
        os.close(fd)
        source.finish("its hash")
        sources.append(source)
    assert _open_files(tmp_path) <= 32
    for number, source in enumerate(sources):
        with source.open(lambda _: None) as body:
            assert b"".join(body.chunks(10)) == b"%d" % number
    assert _open_files(tmp_path) <= 32
    del body, source
    sources.clear()
    assert _open_files(tmp_path) == 0


@pytest.mark.parametrize("how", ["replaced", "removed", "changed"])
def test_another_file_of_that_name_is_never_sent_in_its_place(tmp_path, how, monkeypatch):
    monkeypatch.setattr("artifactsync.transfer.being_written._spare", deque())
    file = tmp_path / "x.pt"
    file.write_bytes(b"old")
    fd = os.open(file, os.O_RDWR)
    source = FileBeingWritten(fd, str(file), 3)
    os.close(fd)
    source.finish("its hash")
    (tmp_path / "new").write_bytes(b"new")
    if how == "changed":
        file.write_bytes(b"new")
        os.utime(file, ns=(1, 1))
    elif how == "replaced":
        (tmp_path / "new").replace(file)
    else:
        file.unlink()
    with pytest.raises(UploadError, match="was replaced or removed before it was sent"):
        source.open(lambda _: None)


def _open_files(folder):
    """How many descriptors are held of files there: others of this process come and go beside the test."""
    targets = (os.path.realpath(descriptor) for descriptor in Path("/proc/self/fd").iterdir())
    return sum(Path(target).is_relative_to(folder) for target in targets)
