"""Every checkpoint and log of a training run, in your own bucket under its run name.

Names load on first touch: ``import artifactsync`` loads neither torch nor any cloud's library.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from artifactsync._version import __version__
from artifactsync.errors import ArtifactSyncError

if TYPE_CHECKING:
    from artifactsync.batch import StopSignal
    from artifactsync.checkpoint import Resumed
    from artifactsync.loggers import (
        CometMLLogger,
        ConsoleLogger,
        FileLogger,
        MLFlowLogger,
        TensorboardLogger,
        WandBLogger,
    )
    from artifactsync.naming import format_name, generate_run_name
    from artifactsync.run import Checkpoint, PendingCheckpoint, RetentionPolicy, Run, list_runs
    from artifactsync.training import Callback, CheckpointSaver, Event, State, Time, Timestamp, Trainer
    from artifactsync.training.profiler import Profiler
    from artifactsync.transfer.remote_uploader_downloader import ObjectStoreLogger, RemoteUploaderDownloader
    from artifactsync.transfer.upload import Upload, UploadStatus

__all__ = [
    "ArtifactSyncError",
    "Callback",
    "Checkpoint",
    "CheckpointSaver",
    "CometMLLogger",
    "ConsoleLogger",
    "Event",
    "FileLogger",
    "MLFlowLogger",
    "ObjectStoreLogger",
    "PendingCheckpoint",
    "Profiler",
    "RemoteUploaderDownloader",
    "Resumed",
    "RetentionPolicy",
    "Run",
    "State",
    "StopSignal",
    "TensorboardLogger",
    "Time",
    "Timestamp",
    "Trainer",
    "Upload",
    "UploadStatus",
    "WandBLogger",
    "__version__",
    "format_name",
    "generate_run_name",
    "list_runs",
]

_HOMES = {
    "Callback": "training",
    "Checkpoint": "run",
    "CheckpointSaver": "training",
    "CometMLLogger": "loggers",
    "ConsoleLogger": "loggers",
    "Event": "training",
    "FileLogger": "loggers",
    "MLFlowLogger": "loggers",
    "ObjectStoreLogger": "transfer.remote_uploader_downloader",
    "PendingCheckpoint": "run",
    "Profiler": "training.profiler",
    "RemoteUploaderDownloader": "transfer.remote_uploader_downloader",
    "Resumed": "checkpoint",
    "RetentionPolicy": "run",
    "Run": "run",
    "State": "training",
    "StopSignal": "batch",
    "TensorboardLogger": "loggers",
    "Time": "training",
    "Timestamp": "training",
    "Trainer": "training",
    "Upload": "transfer.upload",
    "UploadStatus": "transfer.upload",
    "WandBLogger": "loggers",
    "format_name": "naming",
    "generate_run_name": "naming",
    "list_runs": "run",
}
_NEED_TORCH = frozenset({"checkpoint", "training", "loggers"})


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(f"{__name__}.{home}")
    except ModuleNotFoundError as error:
        if home.partition(".")[0] in _NEED_TORCH and (error.name or "").partition(".")[0] in {"torch", "numpy"}:
            from artifactsync.errors import MissingPackageError  # noqa: PLC0415 - rare

            raise MissingPackageError(
                f"artifactsync.{name} needs torch, which is not installed",
                hint="pip install 'artifactsync[torch]'",
            ) from error
        raise
    value = globals()[name] = getattr(module, name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
