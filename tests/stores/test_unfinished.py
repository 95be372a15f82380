from __future__ import annotations

from datetime import datetime, timezone
from typing import TYPE_CHECKING

import pytest

from artifactsync.errors import TransientStoreError
from artifactsync.stores.prefix import PrefixStore
from artifactsync.stores.retry import RetryPolicy, RetryStore
from artifactsync.stores.unfinished import UnfinishedUpload, abort_unfinished, list_unfinished
from tests.testing.dict_store import DictStore

if TYPE_CHECKING:
    from collections.abc import Iterator


class Forgetful(DictStore):
    """Knows one unfinished upload, and fails every other time."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0
        self.aborted: list[str] = []

    def unfinished_uploads(self, prefix: str = "") -> Iterator[UnfinishedUpload]:
        yield UnfinishedUpload(key="runs/demo/a.pt", upload_id="u", started_at=datetime.now(timezone.utc))
        self._fail_every_other_time()

    def abort_upload(self, upload: UnfinishedUpload) -> None:
        self._fail_every_other_time()
        self.aborted.append(upload.key)

    def _fail_every_other_time(self) -> None:
        self.asked += 1
        if self.asked % 2:
            raise TransientStoreError("503")


def test_they_are_asked_for_as_patiently_as_anything_else() -> None:
    inner = Forgetful()
    store = PrefixStore(RetryStore(inner, RetryPolicy(base_delay_s=0.001)), "runs")
    (upload,) = list_unfinished(store, "demo/")
    assert upload.key == "demo/a.pt"
    abort_unfinished(store, upload)
    assert inner.aborted == ["runs/demo/a.pt"]
    assert inner.asked == 4


def test_without_patience_the_error_comes_through() -> None:
    with pytest.raises(TransientStoreError):
        list_unfinished(Forgetful())
