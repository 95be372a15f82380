"""The run's numbers in a form that programs read: one JSON object per line, mirrored under the run.

Owns: the format of ``metrics-rank{rank}.jsonl``. Does not own: the file's way to disk and remote (``file_logger``), or
who reads it (``artifactsync report``, and whoever likes ``jq``).

Invariant: every line is strict JSON, also with NaN and infinities in it, which JSON does not have: they are the words
``nan``, ``inf`` and ``-inf``.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from artifactsync.loggers.file_logger import FileLogger

if TYPE_CHECKING:
    from collections.abc import Mapping


class MetricsFile(FileLogger):
    """Writes ``{"step": 12, "metrics": {"loss/train/total": 0.35}}``; the Trainer adds one on rank 0 by itself.

    Other lines are ``{"hyperparameters": {…}}`` and, where a later attempt continues, ``{"attempt": 2, "resumed_at":
    12}``.

    Args:
        filename: Template of the file, below the local root; it begins with ``{run_name}/``.
        flush_interval: Write to the file after so many lines; checkpoints and the end write always.

    Raises:
        ConfigurationError: the interval is not positive, or the template cannot be filled.
    """

    def __init__(self, filename: str = "{run_name}/metrics-rank{rank}.jsonl", *, flush_interval: int = 100) -> None:
        super().__init__(
            filename,
            capture_stdout=False,
            capture_stderr=False,
            buffer_size=flush_interval,
            flush_interval=flush_interval,
        )

    def log_hyperparameters(self, parameters: Mapping[str, Any]) -> None:
        """Write them in one line."""
        self._write(_line({"hyperparameters": {name: _plain(value) for name, value in parameters.items()}}))

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Write one line."""
        self._write(_line({"step": step, "metrics": {name: _plain(value) for name, value in metrics.items()}}))

    def _write_continuation(self, step: int, attempt: int, note: str) -> None:
        self._write(_line({"attempt": attempt, "resumed_at": step, **({"note": note.strip("; ")} if note else {})}))


_line = json.JSONEncoder(allow_nan=False, default=str).encode  # made once: there is a line for every step


def _plain(value: Any) -> Any:
    """``value``, or its word if it is a number that JSON does not have."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
