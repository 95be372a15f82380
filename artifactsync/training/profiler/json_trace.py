"""Traces in Chrome's trace-event format, which Perfetto and chrome://tracing open.

Owns: the events of the batches being profiled, and the files they go to. Does not own: what is an event of training
(``profiler``).

Invariant: a file under its final name is a whole JSON document; events of a batch that is over survive the death of
the process in a hidden file beside it, from which the next attempt on this disk makes a whole one.

Source: "Trace Event Format", Google, as of 2016; https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU
"""

from __future__ import annotations

import json
import os
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TextIO

from artifactsync.errors import DestinationError
from artifactsync.loggers.logger import check_path_template
from artifactsync.naming import render_path
from artifactsync.training.profiler.kept_traces import KeptTraces

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

_PARTIAL = ".partial"
_MICROSECONDS = 1e6


class JSONTraceHandler:
    """Collects spans, instants and counters, and writes a file for each recorded cycle.

    Args:
        folder: Template of the folder, below the local root; it begins with ``{run_name}/``.
        filename: Template of a file in it, filled in at the end of the cycle.
        num_traces_to_keep: Newest files that stay on this disk once they are durable; -1 keeps all. The remote has all.

    Raises:
        TemplateError: the templates cannot be filled, or leave the run's folder.
        ConfigurationError: ``num_traces_to_keep`` makes no sense.
    """

    def __init__(
        self,
        folder: str = "{run_name}/traces",
        filename: str = "ep{epoch}-ba{batch}-rank{rank}.json",
        *,
        num_traces_to_keep: int = -1,
    ) -> None:
        self.kept = KeptTraces(num_traces_to_keep)
        """The files of this process."""
        self.template = check_path_template(f"{folder.rstrip('/')}/{filename}")
        self._folder_template = check_path_template(f"{folder.rstrip('/')}/x")
        self._lock = threading.Lock()  # counters come from a thread of their own
        self._events: list[dict[str, Any]] = []
        self._saved: list[str] = []  # lines of earlier batches of the cycle
        self._file: TextIO | None = None
        self._partial: Path | None = None
        self._wall_minus_clock_s = time.time() - time.perf_counter()
        self._pid = 0
        self._local_dir: Path | None = None
        self._values: dict[str, Any] = {}

    def open(self, local_dir: Path, values: Mapping[str, Any]) -> list[Path]:
        """The run is known; returns what is to be mirrored: the traces of earlier attempts on this disk.

        Among them are those that are made whole here from what a killed process left.

        Args:
            local_dir: The run's local folder.
            values: For the templates: ``run_name``, ``rank`` and the like.
        """
        self._local_dir, self._values, self._pid = local_dir, dict(values), int(values["rank"])
        folder = self._place(self._folder_template, {}).parent
        self._partial = folder / f".rank{values['rank']}.{os.getpid()}{_PARTIAL}"
        left = sorted(folder.glob(f".rank{values['rank']}.*{_PARTIAL}")) if folder.is_dir() else []
        for file in left:
            self._recover(file)
        return sorted(folder.glob(f"*rank{values['rank']}*.json")) if values["attempt"] > 1 else []

    def span(self, name: str, began_s: float, ended_s: float, **about: Any) -> None:
        """Something that took a while, on this thread; times are ``time.perf_counter()``."""
        self._add(
            {"ph": "X", "cat": "training", "name": name, "dur": (ended_s - began_s) * _MICROSECONDS}, began_s, about
        )

    def instant(self, name: str, **about: Any) -> None:
        """Something that happened now."""
        self._add({"ph": "i", "s": "p", "cat": "training", "name": name}, time.perf_counter(), about)

    def counters(self, name: str, values: Mapping[str, float]) -> None:
        """Numbers as they are now, drawn as curves."""
        self._add({"ph": "C", "cat": "system", "name": name}, time.perf_counter(), values)

    def batch_is_over(self) -> None:
        """Put what is recorded where it survives this process."""
        with self._lock:
            lines = [json.dumps(event, allow_nan=False, default=str) for event in self._events]
            self._events.clear()
            if not lines or self._partial is None:
                return
            self._saved += lines
            with suppress(OSError):  # a full disk: the trace may still fit at the end, which tells
                if self._file is None:
                    self._partial.parent.mkdir(parents=True, exist_ok=True)
                    self._file = self._partial.open("w", encoding="utf-8")
                self._file.writelines(line + "\n" for line in lines)
                self._file.flush()

    def forget(self) -> None:
        """Throw away what is recorded: it was a warm-up."""
        with self._lock:
            self._events.clear()

    def write(self, placeholders: Mapping[str, Any]) -> Path | None:
        """Write the cycle's file; None if nothing was recorded.

        Raises:
            DestinationError: it cannot be written.
        """
        self.batch_is_over()
        with self._lock:
            lines, self._saved = self._saved, []
            if self._file is not None:
                self._file.close()
                self._file = None
        if not lines:
            return None
        path = self._place(self.template, placeholders)
        _write_whole(path, self._document(lines))
        if self._partial is not None:
            self._partial.unlink(missing_ok=True)
        return path

    def _add(self, event: dict[str, Any], at_s: float, about: Mapping[str, Any]) -> None:
        event |= {"ts": (at_s + self._wall_minus_clock_s) * _MICROSECONDS, "pid": self._pid}
        event["tid"] = threading.get_native_id()
        if about:
            event["args"] = dict(about)
        with self._lock:
            self._events.append(event)

    def _document(self, lines: Iterable[str]) -> str:
        title = f"{self._values['run_name']} rank {self._pid}"
        named = [
            {"ph": "M", "name": "process_name", "pid": self._pid, "args": {"name": title}},
            {"ph": "M", "name": "process_sort_index", "pid": self._pid, "args": {"sort_index": self._pid}},
        ]
        events = ",\n".join([*(json.dumps(event) for event in named), *lines])
        return f'{{"displayTimeUnit":"ms","traceEvents":[\n{events}\n]}}\n'

    def _place(self, template: str, placeholders: Mapping[str, Any]) -> Path:
        assert self._local_dir is not None, "open() comes first"
        values = {**dict.fromkeys(("epoch", "batch"), 0), **self._values, **placeholders}
        rendered = render_path(template, **values)
        return self._local_dir.joinpath(*rendered.removeprefix(f"{self._values['run_name']}/").split("/"))

    def _recover(self, file: Path) -> None:
        """Make a whole trace of the lines that a process left which is no more."""
        pid = file.name.removesuffix(_PARTIAL).rpartition(".")[2]
        if not pid.isdigit() or (int(pid) != os.getpid() and _is_running(int(pid))):
            return
        lines = []
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            with suppress(ValueError):  # the last line may be cut
                if isinstance(json.loads(line), dict):
                    lines.append(line)
        whole = file.with_name(f"recovered-rank{self._pid}-{file.stat().st_mtime_ns}.json")
        if lines:
            _write_whole(whole, self._document(lines))
        file.unlink(missing_ok=True)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _write_whole(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise DestinationError(
            f"cannot write the trace {path}: {error.strerror}", hint="choose another local_root", url=str(path)
        ) from error
