"""``Run``: everything of one training run, by its name; and the runs under a remote."""

from __future__ import annotations

from artifactsync.journal.catalogue import Checkpoint, CheckpointFile
from artifactsync.journal.contents import Artifact
from artifactsync.journal.publication import LocalFile, PendingCheckpoint
from artifactsync.journal.retention import RetentionPolicy
from artifactsync.journal.retire import PruneReport
from artifactsync.journal.runs import RunSummary
from artifactsync.journal.status import RunStatus
from artifactsync.run.pushed import Pushed
from artifactsync.run.remotes import list_runs, remote_of
from artifactsync.run.view import RunView
from artifactsync.run.writer import Run

__all__ = [
    "Artifact",
    "Checkpoint",
    "CheckpointFile",
    "LocalFile",
    "PendingCheckpoint",
    "PruneReport",
    "Pushed",
    "RetentionPolicy",
    "Run",
    "RunStatus",
    "RunSummary",
    "RunView",
    "list_runs",
    "remote_of",
]
