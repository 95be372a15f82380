"""A store as an fsspec filesystem: fsspec's own abstract suites, and what torch and others do with it."""

from __future__ import annotations

import io
import os
import zipfile

import pytest
import torch
from fsspec.tests import abstract

from artifactsync.errors import AlreadyExistsError, ConfigurationError, FileChangedError
from artifactsync.stores import PrefixStore, open_store
from artifactsync.stores.filesystem import StoreFileSystem
from artifactsync.stores.filesystem_files import FileBody
from artifactsync.testing import FaultyStore
from tests.testing.dict_store import DictStore


class Fixtures(abstract.AbstractFixtures):
    """fsspec's own conformance suites, on a right store that has no folders."""

    @pytest.fixture
    def fs(self):
        return StoreFileSystem(DictStore())

    @pytest.fixture
    def fs_path(self):
        return "suite"

    @pytest.fixture
    def supports_empty_directories(self):
        return False


class TestCopy(abstract.AbstractCopyTests, Fixtures):
    pass


class TestGet(abstract.AbstractGetTests, Fixtures):
    pass


class TestPut(abstract.AbstractPutTests, Fixtures):
    pass


class TestOpen(abstract.AbstractOpenTests, Fixtures):
    pass


class TestPipe(abstract.AbstractPipeTests, Fixtures):
    pass


@pytest.fixture(params=["dict", "local", "s3"])
def store(request, tmp_path):
    if request.param == "dict":
        yield DictStore()
        return
    s3 = request.getfixturevalue("s3") if request.param == "s3" else None
    store = open_store(s3.fresh_url(), s3.storage_options) if s3 else open_store(tmp_path / "remote")
    yield store
    store.close()


@pytest.fixture
def fs(store):
    return StoreFileSystem(store)


class TestFolders:
    def test_ls_info_find(self, fs):
        for path in ("a.txt", "logs/1", "logs/deep/er/2", "logs.txt"):
            fs.pipe_file(path, path.encode())
        assert fs.ls("", detail=False) == ["a.txt", "logs", "logs.txt"]
        assert fs.ls("/logs/", detail=False) == ["logs/1", "logs/deep"]
        assert fs.ls("a.txt", detail=False) == ["a.txt"]
        assert [(e["type"], e["size"]) for e in fs.ls("logs")] == [("file", 6), ("directory", 0)]
        assert fs.find("") == ["a.txt", "logs.txt", "logs/1", "logs/deep/er/2"]
        assert fs.find("logs", maxdepth=1) == ["logs/1"]
        assert fs.find("a.txt") == ["a.txt"]
        assert fs.find("nothing") == []
        assert fs.du("logs") == len("logs/1") + len("logs/deep/er/2")
        assert fs.glob("**/2") == ["logs/deep/er/2"]
        assert [root for root, _, _ in fs.walk("")] == ["", "logs", "logs/deep", "logs/deep/er"]
        assert fs.isdir("logs/deep")
        assert fs.isfile("logs/1")
        assert not fs.isdir("log")
        assert not fs.exists("log")
        assert fs.info("artifactsync-store://logs/1")["size"] == 6

    @pytest.mark.parametrize("call", ["info", "ls", "cat_file", "open", "modified"])
    def test_what_is_not_there(self, fs, call):
        with pytest.raises(FileNotFoundError):
            getattr(fs, call)("nothing")

    def test_opening_a_folder(self, fs):
        fs.pipe_file("folder/a", b"1")
        with pytest.raises(FileNotFoundError):
            fs.open("folder")

    def test_rm(self, fs):
        for path in ("a/1", "a/2", "b"):
            fs.pipe_file(path, b"x")
        fs.rm("a/1")
        assert fs.find("") == ["a/2", "b"]
        fs.rm("a", recursive=True)
        assert fs.ls("", detail=False) == ["b"]
        with pytest.raises(FileNotFoundError):
            fs.rm("nothing", recursive=True)

    def test_a_large_folder_is_jumped_over(self, monkeypatch):
        monkeypatch.setattr("artifactsync.stores.filesystem._PATIENCE_KEYS", 10)
        listed = []

        class Counting(DictStore):
            ordered_listing = True

            def list(self, prefix="", *, start_after=""):
                for info in super().list(prefix, start_after=start_after):
                    listed.append(info.key)
                    yield info

        store = Counting()
        for n in range(1000):
            store.put(f"run/traces/{n:04d}", b"")
        store.put("run/traces0", b"")
        store.put("run/z", b"")
        assert StoreFileSystem(store).ls("run", detail=False) == ["run/traces", "run/traces0", "run/z"]
        assert len(listed) < 20

    def test_the_jump_is_understood_by_s3(self, s3, monkeypatch):
        monkeypatch.setattr("artifactsync.stores.filesystem._PATIENCE_KEYS", 1)
        store = open_store(s3.fresh_url(), s3.storage_options)
        store.ordered_listing = True  # these keys are listed in order by every S3
        for key in ("a/1", "a/2", "a/3", "a0", "b"):
            store.put(key, b"")
        assert StoreFileSystem(store).ls("", detail=False) == ["a", "a0", "b"]
        store.close()


class TestFiles:
    def test_read_seek_ranges(self, fs):
        data = os.urandom(300_000)
        fs.pipe_file("f", data)
        with fs.open("f", "rb", block_size=1000) as file:
            assert file.seek(-10, io.SEEK_END) == 299_990
            assert file.read() == data[-10:]
            file.seek(1234)
            assert file.read(5000) == data[1234:6234]
        assert fs.cat_file("f", start=-7) == data[-7:]
        assert fs.cat_file("f", start=10, end=-10) == data[10:-10]
        assert fs.cat_file("f", 5, 5) == b""
        assert fs.cat_ranges(["f", "f"], [0, 10], [5, 20]) == [data[:5], data[10:20]]
        assert fs.head("f", 3) == data[:3]
        assert fs.tail("f", 3) == data[-3:]

    def test_text(self, fs):
        with fs.open("t.txt", "w", encoding="utf-16", newline="\r\n") as file:
            file.write("grüß\n")
        assert fs.cat_file("t.txt").decode("utf-16") == "grüß\r\n"
        with fs.open("t.txt", "r", encoding="utf-16") as file:
            assert file.read() == "grüß\n"
        assert fs.read_text("t.txt", encoding="utf-16") == "grüß\n"

    def test_nothing_is_visible_before_close(self, fs):
        file = fs.open("f", "wb")
        file.write(b"x" * 100)
        assert not fs.exists("f")
        file.close()
        file.close()
        assert fs.cat_file("f") == b"x" * 100
        with pytest.raises(ValueError, match="closed"):
            file.write(b"more")

    @pytest.mark.parametrize("mode", ["wb", "w", "ab", "xb"])
    def test_nothing_is_published_of_a_block_that_failed(self, fs, mode):
        if mode != "xb":
            fs.pipe_file("f", b"old")

        def write_half():
            with fs.open("f", mode) as file:
                file.write("half" if mode == "w" else b"half")
                raise RuntimeError("half way")

        with pytest.raises(RuntimeError, match="half way"):
            write_half()
        assert fs.find("") == ([] if mode == "xb" else ["f"])
        if mode != "xb":
            assert fs.cat_file("f") == b"old"

    def test_writers_that_seek(self, fs):
        with fs.open("f.zip", "wb") as file, zipfile.ZipFile(file, "w") as archive:
            archive.writestr("a.txt", "a" * 1000)
        with fs.open("f.zip") as file, zipfile.ZipFile(file) as archive:
            assert archive.read("a.txt") == b"a" * 1000
        with fs.open("f", "wb") as file:
            assert file.seekable()
            file.write(b"0123456789")
            file.seek(2)
            file.write(b"xx")
            file.truncate(6)
        assert fs.cat_file("f") == b"01xx45"

    def test_append(self, fs):
        for part in (b"1\n", b"2\n"):
            with fs.open("log", "ab") as file:
                file.write(part)
        with fs.open("log", "a") as file:
            file.write("3\n")
        assert fs.cat_file("log") == b"1\n2\n3\n"

    def test_create(self, fs):
        fs.pipe_file("once", b"1", mode="create")
        with pytest.raises(AlreadyExistsError):
            fs.pipe_file("once", b"2", mode="create")
        with pytest.raises(FileExistsError), fs.open("once", "xb") as file:
            file.write(b"3")
        assert fs.cat_file("once") == b"1"

    def test_create_is_decided_at_the_end(self, fs):
        file = fs.open("once", "xb")
        file.write(b"late")
        fs.pipe_file("once", b"first")
        with pytest.raises(AlreadyExistsError):
            file.close()
        assert fs.cat_file("once") == b"first"

    def test_modes_that_cannot_be(self, fs):
        with pytest.raises(ConfigurationError, match=r"r\+b"):
            fs.open("f", "r+b")

    def test_transactions(self, fs):
        with fs.transaction, fs.open("a", "wb") as file:
            file.write(b"1")
        assert fs.cat_file("a") == b"1"
        with pytest.raises(ZeroDivisionError), fs.transaction:
            fs.pipe_file("b", bytes(1 // 0))
        assert not fs.exists("b")

    def test_large_writes_go_over_the_disk_and_back(self, fs, tmp_path):
        data = os.urandom(9 * 2**20 + 5)
        with fs.open("large", "wb") as file:
            for start in range(0, len(data), 2**20):
                file.write(memoryview(data)[start : start + 2**20])
        fs.get_file("large", tmp_path / "down" / "large")
        assert (tmp_path / "down" / "large").read_bytes() == data
        fs.put_file(tmp_path / "down" / "large", "again")
        fs.cp_file("again", "copy")
        assert fs.cat_file("copy") == data
        assert fs.modified("copy") is not None

    def test_torch(self, fs):
        state = {"w": torch.arange(1000), "step": 7}
        with fs.open("ckpt/model.pt", "wb") as file:
            torch.save(state, file)
        with fs.open("ckpt/model.pt", "rb") as file:
            loaded = torch.load(file, weights_only=True)
        assert torch.equal(loaded["w"], state["w"])
        assert loaded["step"] == 7


class TestDamage:
    def test_a_download_that_breaks_off_leaves_nothing(self, tmp_path):
        store = DictStore()
        store.put("a", bytes(9 * 2**20))

        def die(call):
            if call.operation == "get" and call.number == 2:
                raise ConnectionError

        with pytest.raises(ConnectionError):
            StoreFileSystem(FaultyStore(store, on_call=die)).get_file("a", tmp_path / "a")
        assert list(tmp_path.iterdir()) == []

    def test_an_upload_of_a_file_that_changes(self, tmp_path):
        path = tmp_path / "log"
        path.write_bytes(bytes(100))

        class Growing(DictStore):
            def put(self, key, body):
                chunks = body.chunks(10)
                next(chunks)
                with path.open("ab") as file:
                    file.write(b"more")
                return super().put(key, b"".join(chunks))

        store = Growing()
        with pytest.raises(FileChangedError, match="log"):
            StoreFileSystem(store).put_file(path, "log")
        assert store.objects == {}

    def test_a_file_that_shrinks(self, tmp_path):
        path = tmp_path / "log"
        path.write_bytes(bytes(100))
        with path.open("rb") as file, pytest.raises(FileChangedError, match="shorter"):
            list(FileBody(file, 101).chunks(1000))


def test_two_filesystems_do_not_share():
    whole = StoreFileSystem(DictStore())
    part = StoreFileSystem(PrefixStore(whole.store, "run"))
    part.pipe_file("a", b"1")
    assert whole.find("") == ["run/a"]
    assert part.find("") == ["a"]
