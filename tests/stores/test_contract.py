"""The store contract, on every store and every adapter, against real servers on loopback."""

from __future__ import annotations

import pytest

from artifactsync.stores import open_store
from artifactsync.testing import StoreContract


class TestGcs(StoreContract):
    """fake-gcs-server. It forgets the preconditions of resumable uploads (> 8 MiB); test_gcs has what it cannot show."""

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
