"""Training state into committed checkpoints and back: snapshot, write, load, resume. torch begins here."""

from __future__ import annotations

from artifactsync.checkpoint.load import load_file, restore
from artifactsync.checkpoint.resume import Resumed
from artifactsync.checkpoint.rng import RngState
from artifactsync.checkpoint.snapshot import Snapshot, SnapshotBuffers, take_snapshot
from artifactsync.checkpoint.write import WrittenFile, write_snapshot

__all__ = [
    "Resumed",
    "RngState",
    "Snapshot",
    "SnapshotBuffers",
    "WrittenFile",
    "load_file",
    "restore",
    "take_snapshot",
    "write_snapshot",
]
