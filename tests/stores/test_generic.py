"""What the contract does not ask: which filesystems are believed, URLs, options, and errors of each library."""

from __future__ import annotations

import errno
import socket

import fsspec
import pytest
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from artifactsync import errors
from artifactsync.stores import open_store, probe
from artifactsync.stores.generic import GenericStore
from artifactsync.stores.generic_errors import translated
from artifactsync.stores.local import TEMPORARY_PREFIX
from artifactsync.testing.store_contract import PatternBody


def memory():
    return MemoryFileSystem(global_store=False, skip_instance_cache=True)


def s3fs_options(cloud):
    options = cloud.storage_options
    region = options.pop("region")
    return {**options, "client_kwargs": {"region_name": region}}


class TestProbe:
    def test_memory_has_no_atomic_create(self):
        found = probe(GenericStore(memory(), "/remote"), "probe")
        assert not found.put_if_absent
        assert "MemoryFileSystem has no atomic create-only write" in found.reason

    def test_local_links(self, tmp_path):
        assert probe(GenericStore(LocalFileSystem(), str(tmp_path)), "probe").put_if_absent

    def test_dir_can_what_is_below_it(self, tmp_path):
        assert probe(GenericStore(DirFileSystem(str(tmp_path), LocalFileSystem())), "probe").put_if_absent
        assert not probe(GenericStore(DirFileSystem("/a", memory()), "b"), "probe").put_if_absent

    def test_s3fs_sends_the_condition(self, s3):
        assert probe(GenericStore(s3.fresh_url(), storage_options=s3fs_options(s3)), "probe").put_if_absent

    def test_gcsfs_sends_the_condition(self, gcs):
        assert probe(GenericStore(gcs.fresh_url(), storage_options=gcs.storage_options), "probe").put_if_absent

    def test_an_unknown_filesystem_is_not_believed(self):
        class Strange(MemoryFileSystem):
            protocol = "strange"

            def mv(self, path1, path2, **kwargs):
                super().mv(path1, path2, **kwargs)

        store = GenericStore(Strange(global_store=False, skip_instance_cache=True), "/remote")
        with pytest.raises(errors.UnfencedStoreError):
            store.put_if_absent("a", b"1")


class TestUrls:
    def test_open_store_dispatches(self, tmp_path):
        store = open_store(f"dir::file://{tmp_path}")
        store.put("a/b", b"1")
        assert (tmp_path / "a/b").read_bytes() == b"1"

    def test_unknown_scheme(self):
        with pytest.raises(errors.ConfigurationError, match="no filesystem opens nowhere://bucket"):
            open_store("nowhere://bucket/prefix")

    def test_package_that_is_not_installed(self):
        with pytest.raises(errors.MissingPackageError) as caught:
            open_store("oss://bucket/prefix")
        assert "ossfs" in caught.value.hint
        with pytest.raises(errors.MissingPackageError) as caught:
            open_store("smb://host/share")
        assert caught.value.hint not in str(caught.value)

    def test_no_secret_in_the_url(self):
        with pytest.raises(errors.RemoteUnreachableError) as caught:
            GenericStore("ftp://me:hunter2@127.0.0.1:1/x")  # it connects at once
        assert "hunter2" not in f"{caught.value} {caught.value.url} {caught.value.hint}"
        assert "127.0.0.1" in str(caught.value)

    def test_options_that_the_filesystem_does_not_take(self, s3):
        store = GenericStore(s3.fresh_url(), storage_options={**s3fs_options(s3), "nonsense": 1})
        with pytest.raises(errors.ConfigurationError, match="nonsense"):
            store.put("a", b"1")

    @pytest.mark.parametrize(
        ("fs", "root", "url"),
        [
            (LocalFileSystem(), "/a/b/", "file:///a/b"),
            (memory(), "/remote", "memory://remote"),
            (memory(), "", "memory:"),
            (DirFileSystem("/outer", memory()), "inner", "dir://inner"),
        ],
    )
    def test_url_of_a_filesystem(self, fs, root, url):
        assert GenericStore(fs, root).url == url


class TestLocal:
    def test_unfinished_files_are_hidden_and_refused(self, tmp_path):
        store = GenericStore(LocalFileSystem(), str(tmp_path))
        store.put("folder/a", b"1")
        (tmp_path / "folder" / f"{TEMPORARY_PREFIX}x").write_bytes(b"half")
        assert [i.key for i in store.list()] == ["folder/a"]
        with pytest.raises(errors.UnsafeKeyError):
            store.put(f"folder/{TEMPORARY_PREFIX}x", b"1")

    def test_nothing_is_left_of_a_broken_put(self, tmp_path):
        store = GenericStore(LocalFileSystem(), str(tmp_path))
        with pytest.raises(errors.FileChangedError):
            store.put("folder/a", PatternBody(10**6, changes_at_bytes=10**6))
        assert [p for p in tmp_path.rglob("*") if p.is_file()] == []

    def test_empty_folders_are_no_folders_and_go_with_their_last_file(self, tmp_path):
        store = GenericStore(LocalFileSystem(), str(tmp_path))
        (tmp_path / "empty/deeper").mkdir(parents=True)
        store.put("a/b/c", b"1")
        assert store.list_folders() == ["a"]
        store.delete(["a/b/c"])
        assert not (tmp_path / "a").exists()
        store.put("a", b"now a file")
        assert store.get("a") == b"now a file"

    def test_a_file_is_never_moved_into_a_folder_of_its_name(self, tmp_path):
        store = GenericStore(LocalFileSystem(), str(tmp_path))
        store.put("a/b", b"1")
        with pytest.raises(errors.DestinationError):
            store.put("a", b"2")
        assert [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")] == ["a", "a/b"]

    def test_read_only_folder(self, tmp_path):
        class ReadOnly(LocalFileSystem):
            def makedirs(self, path, exist_ok=False):
                raise PermissionError(errno.EACCES, "Permission denied", path)

        with pytest.raises(errors.PermissionDeniedError):
            GenericStore(ReadOnly(), str(tmp_path)).put("a/b", b"1")


class TestListingCaches:
    def test_s3fs_sees_what_another_client_put(self, s3):
        url = s3.fresh_url()
        options = {**s3fs_options(s3), "use_listings_cache": True, "skip_instance_cache": True}
        mine, theirs = (GenericStore(url, storage_options=options) for _ in range(2))
        mine.put("a", b"1")
        assert [i.key for i in mine.list()] == ["a"]
        theirs.put("b/c", b"22")
        assert [i.key for i in mine.list()] == ["a", "b/c"]
        assert mine.head("b/c").size_bytes == 2
        assert mine.list_folders() == ["b"]
        theirs.delete(["a"])
        with pytest.raises(errors.ObjectNotFoundError):
            mine.head("a")


class TestBuckets:
    def test_a_missing_bucket_is_told(self, moto_s3):
        store = GenericStore(moto_s3.missing_bucket(), storage_options=s3fs_options(moto_s3))
        with pytest.raises(errors.BucketNotFoundError):
            store.put("a", b"1")

    def test_wrong_credentials(self, s3):
        options = {**s3fs_options(s3), "key": "nobody", "secret": "wrong-secret", "skip_instance_cache": True}
        with pytest.raises(errors.AccessError) as caught:
            GenericStore(s3.fresh_url(), storage_options=options).put("a", b"1")
        assert "wrong-secret" not in str(caught.value)


class StatusError(Exception):
    def __init__(self, status):
        self.status = status


class ClientError(Exception):
    """As botocore's."""

    def __init__(self, status, code="X"):
        self.response = {"ResponseMetadata": {"HTTPStatusCode": status}, "Error": {"Code": code}}


class NoCredentialsError(Exception):
    pass


class ServerDisconnectedError(Exception):
    pass


def caused(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "put", "create"),
    [
        (FileNotFoundError("x"), errors.ObjectNotFoundError, errors.ObjectNotFoundError),
        (FileExistsError("x"), errors.DestinationError, errors.AlreadyExistsError),
        (caused(OSError(22, "x"), ClientError(412)), errors.DestinationError, errors.AlreadyExistsError),
        (StatusError(412), errors.DestinationError, errors.AlreadyExistsError),
        (StatusError("404"), errors.ObjectNotFoundError, errors.ObjectNotFoundError),
        (StatusError(401), errors.CredentialsError, errors.CredentialsError),
        (StatusError(403), errors.PermissionDeniedError, errors.PermissionDeniedError),
        (StatusError(429), errors.TransientStoreError, errors.TransientStoreError),
        (StatusError(503), errors.TransientStoreError, errors.UnknownOutcomeError),
        (caused(OSError(16, "x"), ClientError(503)), errors.TransientStoreError, errors.UnknownOutcomeError),
        (PermissionError("x"), errors.PermissionDeniedError, errors.PermissionDeniedError),
        (
            caused(PermissionError("x"), ClientError(403, "ExpiredToken")),
            errors.CredentialsError,
            errors.CredentialsError,
        ),
        (OSError("Forbidden: gs://b/o"), errors.PermissionDeniedError, errors.PermissionDeniedError),
        (NoCredentialsError(), errors.CredentialsError, errors.CredentialsError),
        (OSError(errno.ENOSPC, "x"), errors.DiskFullError, errors.DiskFullError),
        (NotADirectoryError(errno.ENOTDIR, "x"), errors.DestinationError, errors.DestinationError),
        (ConnectionRefusedError("x"), errors.RemoteUnreachableError, errors.RemoteUnreachableError),
        (socket.gaierror("x"), errors.RemoteUnreachableError, errors.RemoteUnreachableError),
        (ConnectionResetError("x"), errors.TransientStoreError, errors.UnknownOutcomeError),
        (fsspec.asyn.FSTimeoutError(), errors.TransientStoreError, errors.UnknownOutcomeError),
        (ServerDisconnectedError(), errors.TransientStoreError, errors.UnknownOutcomeError),
        (RuntimeError("This class is not fork-safe"), errors.StoreError, errors.UnknownOutcomeError),
    ],
    ids=lambda value: getattr(value, "__name__", repr(value)),
)
def test_errors(error, put, create):
    for is_create, expected in ((False, put), (True, create)):
        ours = translated(error, url="x://root/key", is_create=is_create)
        assert type(ours) is expected
        assert ours.url == "x://root/key"
