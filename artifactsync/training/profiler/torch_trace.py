"""torch's own profiler over the same batches: operators, kernels, memory.

Owns: when it starts and stops, and its files. Does not own: their contents, which are torch's.

Invariant: a trace appears under its name when it is whole.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch
from torch.profiler import ProfilerActivity

from artifactsync.errors import DestinationError
from artifactsync.loggers.logger import check_path_template
from artifactsync.naming import render_path
from artifactsync.training.profiler.kept_traces import KeptTraces

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


class TorchTrace:
    """Records with ``torch.profiler``.

    Args:
        folder: Template of the folder, below the local root.
        filename: Template of a file in it, filled in at the end of the cycle.
        options: ``record_shapes``, ``profile_memory``, ``with_stack``, ``with_flops`` of ``torch.profiler.profile``.
        num_traces_to_keep: As for ``JSONTraceHandler``.

    Raises:
        TemplateError: the templates cannot be filled, or leave the run's folder.
        ConfigurationError: ``num_traces_to_keep`` makes no sense.
    """

    def __init__(self, folder: str, filename: str, options: Mapping[str, bool], *, num_traces_to_keep: int) -> None:
        self.kept = KeptTraces(num_traces_to_keep)
        """The files of this process."""
        self.template = check_path_template(f"{folder.rstrip('/')}/{filename}")
        self._options: dict[str, Any] = dict(options)
        self._profile: Any = None
        self._is_recording = False

    def left(self, local_dir: Path, values: Mapping[str, Any]) -> list[Path]:
        """Traces of earlier attempts on this disk."""
        rendered = render_path(f"{self.template.rpartition('/')[0]}/x", **values)
        folder = local_dir.joinpath(*rendered.removeprefix(f"{values['run_name']}/").split("/")).parent
        return sorted(folder.glob("[!.]*")) if folder.is_dir() else []

    def prepare(self) -> None:
        """Warm up: what torch does before it records is done."""
        if self._profile is not None:
            return
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        self._profile = torch.profiler.profile(activities=activities, **self._options)
        self._profile.prepare_trace()

    def start(self) -> None:
        """Record from here, unless it does already."""
        self.prepare()
        if not self._is_recording:
            self._profile.start_trace()
            self._is_recording = True

    def stop(self) -> Any:
        """End recording; returns what was recorded, if anything was."""
        done, self._profile = self._profile, None
        was_recording, self._is_recording = self._is_recording, False
        if done is None:
            return None
        if not was_recording:
            done.start_trace()  # what was prepared can be ended in no other way
        done.stop_trace()
        return done if was_recording else None

    def write(self, local_dir: Path, values: Mapping[str, Any]) -> Path | None:
        """End recording, and write the trace.

        Raises:
            DestinationError: it cannot be written.
        """
        done = self.stop()
        if done is None:
            return None
        rendered = render_path(self.template, **values)
        path = local_dir.joinpath(*rendered.removeprefix(f"{values['run_name']}/").split("/"))
        suffix = ".gz" if path.name.endswith(".gz") else ".json"  # torch compresses by the name's end
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp{suffix}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            done.export_chrome_trace(str(temporary))
            temporary.replace(path)
        except (OSError, RuntimeError) as error:
            temporary.unlink(missing_ok=True)
            raise DestinationError(
                f"cannot write the trace {path}: {error}", hint="choose another local_root", url=str(path)
            ) from error
        return path
