"""The store contract, on every store and every adapter, against real servers on loopback."""

from __future__ import annotations

import pytest
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from artifactsync.stores import open_store
from artifactsync.stores.generic import GenericStore
from artifactsync.testing import StoreContract


class TestGcs(StoreContract):
    """fake-gcs-server. It forgets preconditions of resumable uploads (> 8 MiB); test_gcs has what it cannot show."""

    create_once_bytes = 8 * 2**20

    @pytest.fixture
    def store(self, gcs):
        store = open_store(gcs.fresh_url(), gcs.storage_options)
        yield store
        store.close()


class TestLocal(StoreContract):
    has_nested_keys = False

    @pytest.fixture
    def store(self, tmp_path):
        return open_store(tmp_path / "remote")


class TestGenericLocal(StoreContract):
    has_nested_keys = False

    @pytest.fixture
    def store(self, tmp_path):
        return GenericStore(LocalFileSystem(), str(tmp_path / "remote"))


class TestGenericMemory(StoreContract):
    has_put_if_absent = False  # MemoryFileSystem looks first and writes then
    has_nested_keys = False

    @pytest.fixture
    def store(self):
        return GenericStore(MemoryFileSystem(global_store=False, skip_instance_cache=True), "/remote")


class TestGenericDir(StoreContract):
    has_nested_keys = False

    @pytest.fixture
    def store(self, tmp_path):
        return GenericStore(DirFileSystem(str(tmp_path), LocalFileSystem()), "remote")


class TestGenericS3fs(StoreContract):
    secrets = ("test-secret",)

    @pytest.fixture
    def store(self, s3):
        options = s3.storage_options
        options["client_kwargs"] = {"region_name": options.pop("region")}
        return GenericStore(s3.fresh_url(), storage_options=options)


@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")  # gcsfs sends up to 5 MiB that way
class TestGenericGcsfs(StoreContract):
    create_once_bytes = 4 * 2**20

    @pytest.fixture
    def store(self, gcs):
        return GenericStore(gcs.fresh_url(), storage_options=gcs.storage_options)
