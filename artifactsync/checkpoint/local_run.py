"""A run without a remote: what ``Trainer`` uses when none is given.

Owns: the part of ``Run``'s interface that saving and resuming need, on one local folder. Does not own: durability
beyond this disk, or protection against a second writer: that is what a remote is for.

Invariant: a checkpoint is listed only after its file is whole; the list is one appended line each.
"""

from __future__ import annotations

import json
import os
import threading
import time
from concurrent.futures import Future
from datetime import datetime, timezone
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from artifactsync.errors import DamagedError, MissingBytesError, WaitTimeoutError
from artifactsync.journal.catalogue import CheckpointFile
from artifactsync.journal.pending import Label, SupersededError
from artifactsync.naming import safe_local_path, validate_run_name
from artifactsync.naming.layout import HOUSE_FOLDER
from artifactsync.run import Checkpoint, PendingCheckpoint
from artifactsync.transfer.hashing import hash_file

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from artifactsync.checkpoint.saving import BackPressure
    from artifactsync.journal.local_checkpoints import LocalCheckpoint
    from artifactsync.run import LocalFile


class LocalRun:
    """A run in a local folder only.

    Args:
        run_name: Its name.
        local_root: Folder of all runs; else ``ARTIFACTSYNC_LOCAL_ROOT``, else ``runs``.
        backpressure: As for ``Run``.
    """

    def __init__(
        self, run_name: str, *, local_root: str | os.PathLike[str] | None = None, backpressure: BackPressure = "wait"
    ) -> None:
        self.name = validate_run_name(run_name)
        root = local_root or os.environ.get("ARTIFACTSYNC_LOCAL_ROOT") or "runs"
        self.local_dir = Path(root) / self.name
        self.remote = None
        self.backpressure = backpressure
        self._list = self.local_dir / HOUSE_FOLDER / "local.jsonl"
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._failures: list[BaseException] = []
        self.attempt = max((checkpoint.attempt for checkpoint in self.checkpoints()), default=0) + 1

    def checkpoints(self) -> list[Checkpoint]:
        """The checkpoints whose files are still there, oldest first."""
        try:
            lines = self._list.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return []
        read = [_decode(line, seq) for seq, line in enumerate(lines)]
        return [c for c in read if c is not None and all(self._local(f).is_file() for f in c.files)]

    def latest(self) -> Checkpoint | None:
        """The checkpoint that a resume takes."""
        return max(self.checkpoints(), key=lambda c: (c.attempt, c.step, c.seq), default=None)

    def ensure_local(self, checkpoint: Checkpoint) -> dict[str, Path]:
        """The files of a checkpoint, verified by hash.

        Raises:
            DamagedError: the bytes differ from what was written.
        """
        for file in checkpoint.files:
            local = self._local(file)
            if not local.is_file():
                raise MissingBytesError(
                    f"{local} is not there any more", hint="use an older checkpoint", url=str(local)
                )
            if hash_file(local).sha256 != file.sha256:
                raise DamagedError(
                    f"{local} differs from what was written", hint="use an older checkpoint", url=str(local)
                )
        return {file.path: self._local(file) for file in checkpoint.files}

    def save_prepared(
        self,
        prepare: Callable[[], Sequence[LocalFile]],
        *,
        step: int,
        name: str | None = None,
        epoch: int | None = None,
        batch: int | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> PendingCheckpoint:
        """List a checkpoint once its files are written."""
        epoch, batch = epoch or 0, step if batch is None else batch
        label = Label(name=name or f"ep{epoch}-ba{batch}", step=step, epoch=epoch, batch=batch, metrics=metrics or {})
        future: Future[Checkpoint] = Future()
        future.set_running_or_notify_cancel()
        thread = threading.Thread(target=self._publish, args=(prepare, label, future), name="artifactsync-list")
        self._threads = [other for other in self._threads if other.is_alive()] + [thread]
        thread.start()
        return PendingCheckpoint(label, future)

    def record_local(self, *_: Any, **__: Any) -> None:
        """The list says it already."""

    def local_checkpoints(self) -> list[LocalCheckpoint]:
        """None beyond the list."""
        return []

    def push(self, path: str | os.PathLike[str], **_: Any) -> None:
        """Nothing is mirrored without a remote."""

    def wait(self, timeout: float | None = None) -> None:
        """Wait until everything is on disk; raises what failed.

        Raises:
            WaitTimeoutError: it is not after ``timeout`` seconds; it goes on.
        """
        give_up_at = None if timeout is None else time.monotonic() + timeout
        for thread in self._threads:
            thread.join(None if give_up_at is None else max(0.0, give_up_at - time.monotonic()))
        if still := sum(thread.is_alive() for thread in self._threads):
            raise WaitTimeoutError(
                f"{still} checkpoint(s) of run {self.name!r} are not on disk yet", hint="wait longer"
            )
        failures, self._failures = self._failures, []
        if failures:
            raise failures[0]

    def finish(self, state: str = "completed") -> None:
        """Nobody else asks how it ended."""

    def close(self, timeout: float | None = None, **_: Any) -> None:
        """As ``wait``."""
        self.wait(timeout)

    def _local(self, file: CheckpointFile) -> Path:
        return safe_local_path(self.local_dir, file.path)

    def _publish(self, prepare: Callable[[], Sequence[LocalFile]], label: Label, future: Future[Checkpoint]) -> None:
        try:
            files = [{"path": f.path, "key": f.path, "size": f.size_bytes, "sha256": _sha256(f)} for f in prepare()]
            line = json.dumps(
                {
                    **{field: getattr(label, field) for field in ("name", "step", "epoch", "batch")},
                    "attempt": self.attempt,
                    "metrics": dict(label.metrics),
                    "files": files,
                    "committed_at": datetime.now(timezone.utc).isoformat(),
                }
            )
            checkpoint = self._append(line)
        except BaseException as error:  # noqa: BLE001  (told by wait and by the pending checkpoint)
            if not isinstance(error, SupersededError):
                self._failures.append(error)
            future.set_exception(error)
        else:
            future.set_result(checkpoint)

    def _append(self, line: str) -> Checkpoint:
        with self._lock:
            self._list.parent.mkdir(parents=True, exist_ok=True)
            with self._list.open("a+", encoding="utf-8") as file:
                file.seek(0)
                before = file.read()
                is_torn = bool(before) and not before.endswith("\n")  # a crash ended within a line: it stays alone
                file.write(("\n" if is_torn else "") + line + "\n")
                file.flush()
                os.fsync(file.fileno())
                seq = len(before.splitlines())
        checkpoint = _decode(line, seq)
        assert checkpoint is not None, "just written"
        return checkpoint


def _sha256(file: LocalFile) -> str:
    if file.writing is not None:
        return file.writing.wait_until_whole().sha256
    return file.sha256 or hash_file(file.local).sha256


def _decode(line: str, seq: int) -> Checkpoint | None:
    """A checkpoint from its line; None for a line that a crash left unfinished."""
    try:
        fields = json.loads(line)
    except ValueError:
        return None
    return Checkpoint(
        **{
            **fields,
            "metrics": MappingProxyType(fields["metrics"]),
            "files": tuple(CheckpointFile(**file) for file in fields["files"]),
            "seq": seq,
        }
    )
