from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest

from artifactsync.journal.log import JournalLog
from artifactsync.stores import open_store
from artifactsync.stores.retry import RetryPolicy

if TYPE_CHECKING:
    from artifactsync.stores.protocol import Store

_numbers = itertools.count()

IMPATIENT = RetryPolicy(max_attempts=6, deadline_s=5.0, base_delay_s=0.001, max_delay_s=0.01)


@pytest.fixture
def store() -> Store:
    return open_store(f"memory://journal-{next(_numbers)}")


@pytest.fixture
def log(store: Store) -> JournalLog:
    return JournalLog(store, "demo", policy=IMPATIENT)
