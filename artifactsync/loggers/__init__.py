"""Where metrics go: a file mirrored under the run, the terminal, TensorBoard, W&B, Comet, MLflow."""

from __future__ import annotations

from artifactsync.loggers.cometml_logger import CometMLLogger
from artifactsync.loggers.console_logger import ConsoleLogger
from artifactsync.loggers.destination import LogContext, LoggerDestination
from artifactsync.loggers.file_logger import FileLogger
from artifactsync.loggers.logger import Logger
from artifactsync.loggers.metrics_file import MetricsFile
from artifactsync.loggers.mlflow_logger import MLFlowLogger
from artifactsync.loggers.run_context import context_of_run
from artifactsync.loggers.tensorboard_logger import TensorboardLogger
from artifactsync.loggers.wandb_logger import WandBLogger

__all__ = [
    "CometMLLogger",
    "ConsoleLogger",
    "FileLogger",
    "LogContext",
    "Logger",
    "LoggerDestination",
    "MLFlowLogger",
    "MetricsFile",
    "TensorboardLogger",
    "WandBLogger",
    "context_of_run",
]
