"""Which remote is meant, and which runs lie there."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from artifactsync.errors import ConfigurationError
from artifactsync.journal.runs import RunSummary
from artifactsync.journal.runs import list_runs as _list_runs
from artifactsync.stores import open_store

if TYPE_CHECKING:
    from collections.abc import Mapping


def list_runs(
    remote: str | os.PathLike[str] | None = None, storage_options: Mapping[str, Any] | None = None
) -> list[RunSummary]:
    """The runs under a remote, the one with the newest commit first.

    Args:
        remote: Root URI, else ``ARTIFACTSYNC_REMOTE``.
        storage_options: What fsspec's file system for the remote takes.
    """
    store = open_store(remote_of(remote), storage_options)
    try:
        return _list_runs(store)
    finally:
        store.close()


def remote_of(remote: str | os.PathLike[str] | None) -> str | os.PathLike[str]:
    """The given remote, else that of the environment.

    Raises:
        ConfigurationError: there is none.
    """
    found = remote or os.environ.get("ARTIFACTSYNC_REMOTE")
    if not found:
        raise ConfigurationError(
            "no remote is given", hint="pass remote='s3://bucket/prefix', or set ARTIFACTSYNC_REMOTE"
        )
    return found
