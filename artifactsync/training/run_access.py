"""How a trainer comes to its run: the name, the remote, what it may write.

Owns: choosing and opening the run. Does not own: the run itself (``run``), or what is loaded (``load_path``).

Invariant: a run that has checkpoints is continued only when asked, and never started anew by accident.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch

from artifactsync.batch import placement
from artifactsync.checkpoint.local_run import LocalRun
from artifactsync.errors import ConfigurationError
from artifactsync.naming import resolve_run_name
from artifactsync.run import Run

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from artifactsync.transfer.remote_uploader_downloader import RemoteUploaderDownloader


def agreed_run_name(run_name: str | None, uploaders: Iterable[RemoteUploaderDownloader]) -> str:
    """The run's name, the same on every rank, bound to every uploader.

    Raises:
        RunNameError: it is not valid.
    """
    is_distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    name = resolve_run_name(run_name, agree=_rank_zero_s if is_distributed else None)
    for uploader in uploaders:
        uploader.bind_run_name(name)
    return name


def _rank_zero_s(choice: str) -> str:
    """Rank 0's choice, by a broadcast."""
    box = [choice]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]


def open_run(
    name: str,
    *,
    remote: str | os.PathLike[str] | None,
    local_root: str | os.PathLike[str] | None,
    storage_options: Mapping[str, Any] | None,
    uploaders: Iterable[RemoteUploaderDownloader],
    may_continue: bool,
    options: Mapping[str, Any],
) -> Run | LocalRun:
    """Open the run for writing.

    Args:
        name: The agreed name.
        remote: Where runs live; None takes that of an uploader, else ``ARTIFACTSYNC_REMOTE``, else the run is local.
        local_root: Local folder of all runs.
        storage_options: For the remote's file system; those of the uploader where its remote is taken.
        uploaders: Uploaders among the trainer's loggers.
        may_continue: Whether it is fine that the run has checkpoints already.
        options: More arguments of ``Run``.

    Raises:
        ConfigurationError: the run has checkpoints, and nothing was said of continuing it; several processes.
        ArtifactSyncError: the remote cannot be used (see ``Run``).
    """
    if remote is None:
        for uploader in uploaders:
            remote, storage_options = uploader.remote, storage_options or uploader._storage_options  # noqa: SLF001  (the same remote, opened the same way)
            break
    remote = remote or os.environ.get("ARTIFACTSYNC_REMOTE")
    if remote is None and placement().world_size > 1:
        raise ConfigurationError(
            f"this is one of {placement().world_size} processes, which save together on a remote, and there is none",
            hint="pass remote=; a folder that all of them see will do",
        )
    if remote is None:
        local = LocalRun(name, local_root=local_root)
        _refuse_to_repeat(local, may_continue=may_continue)
        return local
    shared = {"remote": remote, "local_root": local_root, "storage_options": storage_options}
    if not may_continue:
        _refuse_to_repeat(Run(name, read_only=True, **shared), may_continue=False)  # type: ignore[arg-type]  # one dict for both calls
    return Run(name, **shared, **options)  # type: ignore[arg-type]  # as above


def _refuse_to_repeat(run: Run | LocalRun, *, may_continue: bool) -> None:
    """Raise if the run has checkpoints and must not be continued; nothing is claimed before."""
    latest = None if may_continue else run.latest()
    if latest is not None:
        raise ConfigurationError(
            f"run {run.name!r} has checkpoints already, up to {latest.name!r}",
            hint="autoresume=True continues it, another run_name starts a new run, save_overwrite=True repeats it",
        )
