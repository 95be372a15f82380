from __future__ import annotations

import os
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

import pytest

from artifactsync.stores import open_store
from artifactsync.stores.local import TEMPORARY_PREFIX
from artifactsync.stores.unfinished import abort_unfinished, list_unfinished
from artifactsync.testing import FaultyStore

if TYPE_CHECKING:
    from pathlib import Path

NOW = datetime.now(timezone.utc)


@pytest.mark.parametrize("server", ["s3", "moto_s3"])
def test_multipart_uploads_are_found_and_given_up(request: pytest.FixtureRequest, server: str) -> None:
    cloud = request.getfixturevalue(server)
    url = cloud.fresh_url()
    store = FaultyStore(open_store(url, cloud.storage_options))
    assert list_unfinished(store) == []
    inner = store._store.store.store  # PrefixStore(RetryStore(S3ObjectStore))
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    client = inner._boto()
    for name in ("demo/c/half.pt", "demolition/half.pt", "other/half.pt"):
        client.create_multipart_upload(Bucket=bucket, Key=f"{prefix}/{name}")
    found = list_unfinished(store, "demo/")
    assert [upload.key for upload in found] == ["demo/c/half.pt"]
    if server == "s3":  # moto says 2010 of each
        assert abs(found[0].started_at - NOW) < timedelta(hours=1)
    abort_unfinished(store, found[0])
    abort_unfinished(store, found[0])  # gone already
    assert list_unfinished(store, "demo/") == []
    assert {upload.key for upload in list_unfinished(store)} == {"demolition/half.pt", "other/half.pt"}
    for upload in list_unfinished(store):
        abort_unfinished(store, upload)


def test_temporary_files_are_found_and_removed(tmp_path: Path) -> None:
    store = open_store(tmp_path / "remote")
    assert list_unfinished(store, "demo/") == []
    store.put("demo/c/whole.pt", b"whole")
    half = tmp_path / "remote" / "demo" / "c" / f"{TEMPORARY_PREFIX}1"
    half.write_bytes(b"half")
    os.utime(half, (1_000_000_000, 1_000_000_000))
    (tmp_path / "remote" / f"{TEMPORARY_PREFIX}2").touch()
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / f"{TEMPORARY_PREFIX}3").touch()
    (tmp_path / "remote" / "demo" / "link").symlink_to(outside)
    (found,) = list_unfinished(store, "demo/")
    assert found.key == f"demo/c/{TEMPORARY_PREFIX}1"
    assert found.started_at.year == 2001
    abort_unfinished(store, found)
    abort_unfinished(store, found)
    assert not half.exists()
    assert store.get("demo/c/whole.pt") == b"whole"
    assert len(list_unfinished(store)) == 1
    assert (outside / f"{TEMPORARY_PREFIX}3").exists()


def test_a_store_without_such_uploads_has_none() -> None:
    assert list_unfinished(open_store("memory://unfinished")) == []
