"""Metrics as lines on the terminal.

Owns: when a line is printed, and how it looks. Does not own: the progress bar (``training.callbacks``).
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, TextIO

from artifactsync.errors import ConfigurationError
from artifactsync.loggers.logger import LogContext, LoggerDestination

if TYPE_CHECKING:
    from collections.abc import Mapping


class ConsoleLogger(LoggerDestination):
    """Prints ``[ba 100] loss/train/total 0.3512`` every so many batches.

    Args:
        log_interval: Print the training metrics of every so many batches; evaluations are printed always.
        stream: Where to; stderr if None, as it was when the line is printed.

    Raises:
        ConfigurationError: the interval is not positive.
    """

    def __init__(self, log_interval: int = 100, *, stream: TextIO | None = None) -> None:
        if log_interval < 1:
            raise ConfigurationError(f"log_interval is {log_interval}", hint="it counts batches, from 1")
        self._log_interval = log_interval
        self._stream = stream

    def open(self, context: LogContext) -> None:
        """Say which run this is."""
        self._print(f"run {context.run_name}, attempt {context.attempt}")

    def start(self, *, resumed_at: int | None) -> None:
        """Say where a resumed run continues."""
        if resumed_at is not None:
            self._print(f"continuing after batch {resumed_at}")

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Print one line if it is time."""
        is_training = all("/train/" in name for name in metrics)
        if not is_training or step % self._log_interval == 0:
            self._print(f"[ba {step}] " + "  ".join(f"{name} {value:.4g}" for name, value in metrics.items()))

    def _print(self, line: str) -> None:
        print(line, file=self._stream or sys.stderr, flush=True)
