"""Where metrics go: a file mirrored under the run, and the terminal."""

from __future__ import annotations

from artifactsync.loggers.console_logger import ConsoleLogger
from artifactsync.loggers.file_logger import FileLogger
from artifactsync.loggers.logger import LogContext, Logger, LoggerDestination
from artifactsync.loggers.metrics_file import MetricsFile

__all__ = ["ConsoleLogger", "FileLogger", "LogContext", "Logger", "LoggerDestination", "MetricsFile"]
