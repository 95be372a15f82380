"""Checkpoints that are whole on this disk, and perhaps nowhere else: which of them a resume may take.

A record beside each checkpoint file that this machine wrote, ``<local_dir>/.artifactsync/local/<name>.json``, says what
its bytes are and which attempt, by the ``write_id`` of its claim, wrote it. So a process that is killed between the
local write and the commit loses nothing if the run goes on on the same machine.

Owns: these records, and the rule. Does not own: loading (``checkpoint.state_io``).

Invariant: a local checkpoint is taken only if the claim of its attempt lies in the run's journal (the same lineage: no
other run of that name), no later attempt has committed anything, it is newer than every commit, and its bytes have the
recorded sha256. A stale one, left by an attempt that others have overtaken, is never taken.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from artifactsync.errors import ArtifactSyncError, DamagedError
from artifactsync.journal.catalogue import Checkpoint, CheckpointFile
from artifactsync.journal.record import decode_metrics, encode_metrics
from artifactsync.naming.layout import HOUSE_FOLDER, check_relative, safe_local_path
from artifactsync.transfer.hashing import hash_file

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from artifactsync.journal.catalogue import Catalogue

FORMAT = 1
"""Version of the local records."""

_KEPT = 16  # records; a resume wants the newest, and looks at older ones only if that is damaged
_MAX_NAME = 120  # characters of a checkpoint's name in its record's name

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LocalCheckpoint:
    """A checkpoint on this disk."""

    checkpoint: Checkpoint
    """What it is; ``seq`` 0 and no ``committed_at``, as nothing is known of a commit."""
    claim_id: str
    """``write_id`` of its attempt's claim."""

    def verified_files(self, local_dir: Path) -> dict[str, Path]:
        """Its files, by path, each with the recorded bytes.

        Raises:
            DamagedError: one is missing, or differs.
        """
        found = {file.path: safe_local_path(local_dir, file.path) for file in self.checkpoint.files}
        for file in self.checkpoint.files:
            local = found[file.path]
            try:
                digest = hash_file(local)
            except ArtifactSyncError as error:
                raise DamagedError(f"{local} is not there any more", url=str(local)) from error
            if (digest.size_bytes, digest.sha256) != (file.size, file.sha256):
                raise DamagedError(f"{local} differs from what was written", url=str(local))
        return found


def write_local_record(local_dir: Path, checkpoint: Checkpoint, *, claim_id: str) -> None:
    """Record a checkpoint whose files are whole on this disk. Failing is harmless: then a resume takes a commit."""
    folder = _folder(local_dir)
    name = quote(checkpoint.name, safe="")[:_MAX_NAME] + ".json"
    temporary = folder / f".{name}.{os.getpid()}.tmp"
    fields = {
        "format": FORMAT,
        "claim": claim_id,
        "attempt": checkpoint.attempt,
        **{field: getattr(checkpoint, field) for field in ("name", "step", "epoch", "batch")},
        "metrics": encode_metrics(dict(checkpoint.metrics)),
        "files": [{"path": f.path, "size": f.size, "sha256": f.sha256} for f in checkpoint.files],
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(fields, file, sort_keys=True)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(folder / name)
        _forget_old(folder)
    except OSError as error:
        _log.debug("checkpoint %s is not recorded locally: %s", checkpoint.name, error)
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def resumable_locals(
    local_dir: Path,
    *,
    latest: Callable[[], Checkpoint | None],
    catalogue: Callable[[], Catalogue],
    run_name: str,
) -> list[LocalCheckpoint]:
    """The local checkpoints that are newer than every commit, of the same lineage, newest first; not verified.

    Args:
        local_dir: The run's local folder.
        latest: Says which committed checkpoint a resume takes; asked if there is a local one at all.
        catalogue: Reads the journal; asked if there is a local one that is newer.
        run_name: The run.
    """
    found = [local for file in _records(local_dir) if (local := _read(file, run_name=run_name)) is not None]
    if not found:
        return []
    commit = latest()
    newest_commit = (commit.attempt, commit.step) if commit else (0, -1)
    newer = [local for local in found if (local.checkpoint.attempt, local.checkpoint.step) > newest_commit]
    if not newer:
        return []
    journal = catalogue()
    ours = [
        local
        for local in newer
        if journal.claims.get(local.checkpoint.attempt) == local.claim_id
        and local.checkpoint.attempt >= journal.last_committed_attempt
    ]
    return sorted(ours, key=lambda local: (local.checkpoint.attempt, local.checkpoint.step), reverse=True)


def _read(file: Path, *, run_name: str) -> LocalCheckpoint | None:
    """A record, or None for one that cannot be read: a crash may have left it, or anybody changed it."""
    try:
        fields: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if fields["format"] != FORMAT:
            return None
        checkpoint = Checkpoint(
            name=str(fields["name"]),
            step=int(fields["step"]),
            epoch=int(fields["epoch"]),
            batch=int(fields["batch"]),
            attempt=int(fields["attempt"]),
            metrics=decode_metrics(fields["metrics"]),
            files=tuple(
                CheckpointFile(
                    path=check_relative(each["path"]),
                    key=f"{run_name}/{each['path']}",
                    size=int(each["size"]),
                    sha256=str(each["sha256"]),
                )
                for each in fields["files"]
            ),
            committed_at="",
            seq=0,
        )
        return LocalCheckpoint(checkpoint=checkpoint, claim_id=str(fields["claim"])) if checkpoint.files else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ArtifactSyncError) as error:
        _log.debug("local record %s cannot be read: %s", file, error)
        return None


def _folder(local_dir: Path) -> Path:
    return local_dir / HOUSE_FOLDER / "local"


def _records(local_dir: Path) -> list[Path]:
    return sorted(_folder(local_dir).glob("[!.]*.json"))


def _forget_old(folder: Path) -> None:
    """Keep the newest records alone. By the disk's time: it decides only what is forgotten."""
    aged = sorted(folder.glob("[!.]*.json"), key=lambda file: file.stat().st_mtime_ns, reverse=True)
    for file in aged[_KEPT:]:
        file.unlink(missing_ok=True)
