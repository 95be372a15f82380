"""Fresh remotes of a backend, by its name."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from tests.crash.scenario import Remote

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

_NUMBERS = itertools.count(1)


class Remotes:
    """An endless supply of empty remotes.

    Args:
        backend: ``memory``, ``local``, or a fixture of ``tests.conftest``: ``s3``, ``moto_s3``, ``gcs``.
        request: Of the test, for the fixture.
        folder: Where local ones lie.
    """

    def __init__(self, backend: str, request: pytest.FixtureRequest, folder: Path) -> None:
        self._folder = folder
        self._backend = backend
        self.cloud = None if backend in {"memory", "local"} else request.getfixturevalue(backend)
        if self.cloud:
            self.cloud.fresh_url()  # makes the bucket, once and for all threads

    def fresh(self) -> Remote:
        number = next(_NUMBERS)
        if self.cloud:
            return Remote(self.cloud.fresh_url(), self.cloud.storage_options)
        if self._backend == "memory":
            return Remote(f"memory://crash-{number}")
        return Remote(str(self._folder / f"remote-{number}"))
