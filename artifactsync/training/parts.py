"""What users may leave out, and what they may give as one or as several.

Owns: the defaults of the Trainer's parts. Does not own: the parts, or how they are wired (``trainer``).
"""

from __future__ import annotations

import warnings
from typing import Any

import torch

from artifactsync.batch import placement
from artifactsync.errors import ConfigurationError
from artifactsync.loggers.logger import LoggerDestination
from artifactsync.loggers.metrics_file import MetricsFile
from artifactsync.transfer.remote_uploader_downloader import RemoteUploaderDownloader


def listed(value: Any) -> list[Any]:
    """One or several or none, as a list."""
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def loggers_of(given: Any, *, metrics_file: bool) -> tuple[list[RemoteUploaderDownloader], list[LoggerDestination]]:
    """The uploaders among the loggers, and where metrics go.

    Args:
        given: One or several or none.
        metrics_file: Whether rank 0 is to write a ``MetricsFile`` if there is none among them.

    Raises:
        ConfigurationError: one of them is neither.
    """
    uploaders = [each for each in listed(given) if isinstance(each, RemoteUploaderDownloader)]
    destinations = [each for each in listed(given) if not isinstance(each, RemoteUploaderDownloader)]
    for each in destinations:
        if not isinstance(each, LoggerDestination):
            raise ConfigurationError(
                f"{type(each).__name__} is no logger", hint="derive it from artifactsync.loggers.LoggerDestination"
            )
    if metrics_file and placement().rank == 0 and not any(isinstance(each, MetricsFile) for each in destinations):
        destinations.append(MetricsFile())
    return uploaders, destinations


def best_device() -> torch.device:
    """An accelerator if there is one; of several, that of this rank."""
    if torch.cuda.is_available():
        if placement().world_size > 1:
            torch.cuda.set_device(placement().local_rank % torch.cuda.device_count())
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def default_optimizer(model: torch.nn.Module) -> torch.optim.Optimizer:
    """SGD with learning rate 0.1, with a warning."""
    warnings.warn("no optimizers were given: SGD with learning rate 0.1 is used", UserWarning, stacklevel=3)
    return torch.optim.SGD(model.parameters(), lr=0.1)
