"""A training loop that can be interrupted anywhere: trainer, state, time, events, callbacks."""

from __future__ import annotations

from artifactsync.training.callback import Callback
from artifactsync.training.callbacks import CheckpointSaver, ProgressBar
from artifactsync.training.event import Event
from artifactsync.training.state import State
from artifactsync.training.time import Time, Timestamp, TimeUnit
from artifactsync.training.trainer import Trainer

__all__ = ["Callback", "CheckpointSaver", "Event", "ProgressBar", "State", "Time", "TimeUnit", "Timestamp", "Trainer"]
