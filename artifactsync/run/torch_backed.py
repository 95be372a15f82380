"""The half of ``Run`` that needs torch plugs in from above by name, so that this room imports nothing above it."""

from __future__ import annotations

import importlib
import sys
from typing import Any

from artifactsync.errors import MissingPackageError


def state_io() -> Any:
    """The module that saves and resumes training state.

    Raises:
        MissingPackageError: torch is not installed.
    """
    try:
        return importlib.import_module("artifactsync.checkpoint.state_io")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in {"torch", "numpy"}:
            raise
        raise MissingPackageError(
            "Run.save and Run.resume need torch, which is not installed",
            hint="pip install 'artifactsync[torch]', or use save_files",
        ) from error


def process_group(run_name: str) -> Any:
    """Words between ranks through torch's process group; None where there is none (torch is not imported for it)."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return None
    return importlib.import_module("artifactsync.checkpoint.group").GroupChannel(run_name)
