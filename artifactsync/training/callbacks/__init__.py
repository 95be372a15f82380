"""Callbacks that come with artifactsync."""

from __future__ import annotations

from artifactsync.training.callbacks.checkpoint_saver import CheckpointSaver
from artifactsync.training.callbacks.progress_bar import ProgressBar
from artifactsync.training.callbacks.weights_exporter import WeightsExporter

__all__ = ["CheckpointSaver", "ProgressBar", "WeightsExporter"]
