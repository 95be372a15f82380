"""What the processes of the fault runs do with a run, step by step, with bytes that anybody can compute again.

Owns: the scenarios, and which bytes each file must have. Does not own: who dies when (``victim``), what must hold
afterwards (``inspection``).

Every attempt writes other bytes at the same paths, as a training that is not bit-reproducible would: bytes of two
attempts that got mixed up are seen. ``config.json`` alone is always the same, so that files are shared.
"""

from __future__ import annotations

import functools
import hashlib
import os
import random
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from artifactsync import Run
from artifactsync.journal.retention import RetentionPolicy
from artifactsync.run import LocalFile
from artifactsync.stores import open_store
from artifactsync.stores.prefix import PrefixStore
from artifactsync.transfer.being_written import FileBeingWritten
from artifactsync.transfer.patience import Patience

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from artifactsync.journal.catalogue import Checkpoint
    from artifactsync.stores.protocol import Store
    from artifactsync.stores.retry import RetryPolicy

NAME = "demo"
KEEP = RetentionPolicy(keep_last=2)
PATIENCE = Patience(base_delay_s=0.01, max_delay_s=0.1)
_LOG_LINES = 40
_WAIT_S = 90.0
_SIZES_BYTES = {"rank0.pt": 30_000, "large.pt": 17 * 2**20, "": 90_000}  # a large one goes in parts everywhere


@dataclass(frozen=True)
class Remote:
    """Where runs live; can be sent to another process."""

    url: str
    storage_options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def target(self) -> Remote:
        """Another remote beside it, to copy to."""
        return Remote(f"{self.url}-copy", self.storage_options)

    def open(self, retry: RetryPolicy | None = None) -> Store:
        """A view of its own; the connections below it are this process's and stay open: opening them costs 0.2 s."""
        scheme, separator, path = self.url.partition("://")
        if not separator or scheme == "memory":
            return open_store(self.url, retry=retry)
        bucket, _, prefix = path.partition("/")
        which = (scheme, bucket, tuple(sorted(self.storage_options.items())), retry)
        with _lock:
            if which not in _connections:
                _connections[which] = open_store(f"{scheme}://{bucket}", self.storage_options, retry=retry)
            return _View(_connections[which], prefix)


class _View(PrefixStore):
    def close(self) -> None:
        """The connections stay."""


_connections: dict[Any, Store] = {}
_lock = threading.Lock()


@dataclass(frozen=True)
class Stage:
    """What a scenario plays with."""

    store: Store
    """Closed by the run that is opened on it."""
    folder: Path
    """Local; nobody else's."""
    open: Callable[[], Store]
    """Another view of the same remote, for a scenario that opens more than one run."""
    open_target: Callable[[], Store] | None = None
    """A view of ``Remote.target``, for a scenario that copies."""
    committed: Callable[[Checkpoint], None] = lambda checkpoint: None
    """Told of every checkpoint of which ``result()`` said that it is committed."""

    def run(self, **options: Any) -> Run:
        return Run(NAME, remote=self.store, local_root=self.folder / "runs", patience=PATIENCE, **options)

    def again(self, local: str, **options: Any) -> Run:
        return Run(NAME, remote=self.open(), local_root=self.folder / local, patience=PATIENCE, **options)


@functools.lru_cache(maxsize=24)
def bytes_of(path: str, *, attempt: int) -> bytes:
    """The bytes that ``attempt`` writes at ``path``."""
    if path.endswith("config.json"):
        return b'{"layers": 12}\n' * 100
    if path.startswith("logs"):
        return b"".join(b"step %3d of attempt %d\n" % (n, attempt) for n in range(_LOG_LINES))
    draw = random.Random(f"{attempt}/{path}")
    return draw.randbytes(next(size for end, size in _SIZES_BYTES.items() if path.endswith(end)))


def paths_of(step: int, *, is_large: bool = False) -> list[str]:
    """The files of the checkpoint at ``step``."""
    second = "large.pt" if is_large else "optim.pt"
    return [*(f"checkpoints/ep0-ba{step}-{what}" for what in ("rank0.pt", second)), "checkpoints/config.json"]


def write(run: Run, path: str, data: bytes) -> Path:
    file = run.local_dir / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    return file


def push_log(run: Run, half: int) -> None:
    """Let a log grow by its first (0) or second (1) half, and push it."""
    path = f"logs/a{run.attempt}.txt"
    log = bytes_of(path, attempt=run.attempt)
    middle = len(log) // 2
    file = write(run, path, b"") if half == 0 else run.local_dir / path
    with file.open("ab") as growing:
        growing.write(log[middle:] if half else log[:middle])
    run.push(file, growing=True)


def save_step(run: Run, step: int, *, is_large: bool = False) -> Checkpoint:
    paths = paths_of(step, is_large=is_large)
    files = [write(run, path, bytes_of(path, attempt=run.attempt)) for path in paths]
    return run.save_files(files, step=step, metrics={"loss": 1 / step}).result(_WAIT_S)


def resume_step(run: Run) -> int:
    """Have the newest checkpoint here, as a resume does; returns its step, 0 if there is none."""
    latest = run.latest()
    if latest is None:
        return 0
    for path, file in run.ensure_local(latest).items():
        assert file.read_bytes() == bytes_of(path, attempt=latest.attempt), f"{path} came back with other bytes"
    return latest.step


def save(stage: Stage) -> None:
    """Resume, and save twice."""
    with stage.run() as run:
        step = resume_step(run)
        for next_step in (step + 1, step + 2):
            stage.committed(save_step(run, next_step))


def save_large(stage: Stage) -> None:
    """Resume, and save files that go in parts."""
    with stage.run() as run:
        stage.committed(save_step(run, resume_step(run) + 1, is_large=True))


def overlap(stage: Stage) -> None:
    """Resume, and save files whose upload begins before they are whole, as ``Run.save`` does it."""
    with stage.run() as run:
        step = resume_step(run) + 1
        paths = paths_of(step)
        files = [write_behind(run, path, bytes_of(path, attempt=run.attempt)) for path in paths]
        pending = run.save_prepared(lambda: files, step=step, metrics={"loss": 1 / step})
        stage.committed(pending.result(_WAIT_S))


def write_behind(run: Run, path: str, data: bytes) -> LocalFile:
    """Write a file on a thread of its own, piece by piece, to a hidden name and then to its own."""
    file = run.local_dir / path
    file.parent.mkdir(parents=True, exist_ok=True)
    hidden = file.with_name(f".{file.name}.tmp")
    fd = os.open(hidden, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    source = FileBeingWritten(fd, str(file), len(data))

    def fill() -> None:
        for start in range(0, len(data), 16_384):
            source.advance(os.write(fd, data[start : start + 16_384]))
        os.fsync(fd)
        os.close(fd)
        hidden.replace(file)
        source.finish(hashlib.sha256(data).hexdigest())

    threading.Thread(target=fill).start()
    return LocalFile(path=path, local=file, size_bytes=len(data), writing=source)


def upload(stage: Stage) -> None:
    """Push files and a log that grows."""
    with stage.run() as run:
        for part in (0, 1):
            push_log(run, part)
            trace = f"traces/a{run.attempt}-{part}.bin"
            run.push(write(run, trace, bytes_of(trace, attempt=run.attempt)))
            run.wait(_WAIT_S)


def prune(stage: Stage) -> None:
    """Give up old checkpoints beside nobody, as a maintenance process; then once more as the run's writer."""
    Run(NAME, remote=stage.store, read_only=True).prune(KEEP)
    with stage.again("runs") as run:
        stage.committed(save_step(run, resume_step(run) + 1))
        run.prune(KEEP)


def pull(stage: Stage) -> None:
    """Bring everything to a folder."""
    Run(NAME, remote=stage.store, read_only=True).pull(stage.folder / "pulled")


def copy(stage: Stage) -> None:
    """Copy the run to another remote."""
    assert stage.open_target
    Run(NAME, remote=stage.store, read_only=True).copy_to(stage.open_target())


def remove(stage: Stage) -> None:
    """Remove the run."""
    Run(NAME, remote=stage.store, read_only=True).remove()


def career(stage: Stage) -> None:
    """What one writer does: resume, save, push, prune, save, finish."""
    with stage.run() as run:
        step = resume_step(run)
        stage.committed(save_step(run, step + 1))
        push_log(run, 0)
        run.prune(KEEP)
        push_log(run, 1)
        stage.committed(save_step(run, step + 2))


def life(stage: Stage) -> None:
    """All of it: claim, save, push, prune, finish, a second attempt, pull."""
    with stage.run() as run:
        for step in (1, 2, 3):
            stage.committed(save_step(run, step))
            if step < 3:
                push_log(run, step - 1)
        run.prune(KEEP)
    with stage.again("elsewhere") as run:
        stage.committed(save_step(run, resume_step(run) + 1))
    reader = stage.again("reader", read_only=True)
    reader.pull(stage.folder / "pulled")


SCENARIOS: dict[str, Callable[[Stage], None]] = {
    "save": save,
    "save large": save_large,
    "overlap": overlap,
    "upload": upload,
    "prune": prune,
    "pull": pull,
    "copy": copy,
    "remove": remove,
    "career": career,
    "life": life,
}
