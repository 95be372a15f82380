"""TensorBoard event files, mirrored under the run; a resumed run continues its curves.

Owns: the event files of a run. Does not own: reading them (TensorBoard).

Invariant: each attempt writes a file of its own, which only grows, and whose first event tells TensorBoard to forget
the steps that come now. When a run is resumed, the files of earlier attempts are cut to what the checkpoint knows of
them, here and on the remote. So every step is there once, for a TensorBoard that was open all the time too.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from artifactsync.errors import ConfigurationError, DestinationError
from artifactsync.loggers.destination import LogContext, LoggerDestination, service_package

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping

    from artifactsync.run import Pushed

_PREFIX = "events.out.tfevents.artifactsync."
_MIRROR_S = 30.0
"""Least time between two mirrorings outside of checkpoints."""
_READ_BYTES = 1 << 20


class TensorboardLogger(LoggerDestination):
    """Writes scalars that ``tensorboard --logdir tensorboard_logs`` shows as the run ``{run_name}``.

    On the remote they lie at ``{run_name}/tensorboard/{run_name}/``, so that ``--logdir`` with the folder
    ``tensorboard`` of a run that was pulled shows the same name.

    Args:
        log_dir: Local folder of all runs; ``tensorboard_logs`` if None.
        flush_interval: Write to the file after so many calls; checkpoints and the end write always.
        rank_zero_only: Only rank 0 writes; else each rank is a run of its own, ``{run_name}/rank{rank}``.

    Raises:
        ConfigurationError: the interval is not positive.
    """

    def __init__(
        self,
        log_dir: str | os.PathLike[str] | None = None,
        flush_interval: int = 100,
        rank_zero_only: bool = True,
    ) -> None:
        if flush_interval < 1:
            raise ConfigurationError(f"flush_interval is {flush_interval}", hint="it counts calls, from 1")
        self._root = Path("tensorboard_logs" if log_dir is None else log_dir)
        self._flush_interval = flush_interval
        self._rank_zero_only = rank_zero_only
        self.path: Path | None = None
        """The event file of this attempt, once logging has begun."""
        self._context: LogContext | None = None
        self._folder, self._remote_folder = self._root, ""
        self._events: Any = None
        self._record_writer: Any = None
        self._file: io.BufferedWriter | None = None
        self._hash = hashlib.sha256()
        self._size_bytes = 0
        self._earlier: dict[str, tuple[int, str]] = {}
        self._calls, self._mirrored_at = 0, time.monotonic()

    def open(self, context: LogContext) -> None:
        """Find the folder.

        Raises:
            MissingPackageError: TensorBoard is not installed.
        """
        if self._rank_zero_only and context.rank:
            return
        name = type(self).__name__
        self._events = service_package("tensorboard.compat.proto.event_pb2", logger=name, extra="tensorboard")
        writer = service_package("tensorboard.summary.writer.record_writer", logger=name, extra="tensorboard")
        self._record_writer = writer.RecordWriter
        own = context.run_name if self._rank_zero_only else f"{context.run_name}/rank{context.rank}"
        self._context = context
        self._folder, self._remote_folder = self._root / own, f"tensorboard/{own}"

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Note which event files the checkpoint knows, and how long they were."""
        self._earlier = {name: (int(size), str(sha256)) for name, (size, sha256) in state["files"].items()}

    def start(self, *, resumed_at: int | None) -> None:
        """Cut the files of earlier attempts, and begin one of this.

        Raises:
            DestinationError: the folder cannot be written.
        """
        context = self._context
        if context is None:
            return
        if resumed_at is None:
            self._earlier = {}
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            context.bring(self._remote_folder, self._folder)
            own = self._own_name(context.attempt)
            self._cut_earlier()
            self.path = self._folder / own
            self._file = self.path.open("xb")
        except OSError as error:
            raise DestinationError(
                f"cannot write TensorBoard's files in {self._folder}: {error.strerror}", hint="choose another log_dir"
            ) from error
        self._write(file_version="brain.Event:2")
        forgotten = 0 if resumed_at is None else resumed_at + 1
        self._write(step=forgotten, session_log={"status": 1})  # START: steps from here on are forgotten

    def log_hyperparameters(self, parameters: Mapping[str, Any]) -> None:
        """Write them as a text, in TensorBoard's tab of texts."""
        if self._file is None:
            return
        text = "\n".join(f"    {name}: {json.dumps(value, default=str)}" for name, value in parameters.items())
        self._write_summary(
            0,
            {
                "tag": "hyperparameters",
                "metadata": {"plugin_data": {"plugin_name": "text"}},
                "tensor": {"dtype": 7, "tensor_shape": {}, "string_val": [text.encode()]},  # DT_STRING
            },
        )

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Write one event."""
        if self._file is None:
            return
        self._write_summary(step, *({"tag": name, "simple_value": value} for name, value in metrics.items()))
        self._calls += 1
        if self._calls % self._flush_interval == 0:
            self._file.flush()
            if time.monotonic() - self._mirrored_at >= _MIRROR_S:
                self.flush()

    def flush(self) -> Iterable[Pushed]:
        """Write down what is held back, and mirror it."""
        if self._file is None or self.path is None:
            return ()
        self._file.flush()
        self._mirrored_at = time.monotonic()
        return self._mirror(self.path)

    def close(self) -> None:
        """Write down everything, mirror and close the file."""
        if self._file is not None:
            self.flush()
            self._file.close()
            self._file = None

    def state_dict(self) -> dict[str, Any]:
        """The event files of the run, with length and hash."""
        if self._file is None or self.path is None:
            return {}
        self._file.flush()
        files = {**self._earlier, self.path.name: (self._size_bytes, self._hash.hexdigest())}
        return {"files": {name: list(known) for name, known in files.items()}}

    def _own_name(self, attempt: int) -> str:
        """Sorted after every file of an earlier attempt: TensorBoard reads files in the order of their names."""
        taken = {path.name for path in self._folder.glob(f"{_PREFIX}*")} | set(self._earlier)
        numbers = [int(parts[0]) for name in taken if (parts := name.removeprefix(_PREFIX).split("."))[0].isdigit()]
        return f"{_PREFIX}{max([attempt, *(number + 1 for number in numbers)]):06d}.{self._folder.name}"

    def _cut_earlier(self) -> None:
        """Bring every earlier file to the length that the checkpoint knows: 0 for one that it does not know."""
        for path in sorted(self._folder.glob(f"{_PREFIX}*")):
            size_bytes, sha256 = self._earlier.get(path.name, (0, hashlib.sha256().hexdigest()))
            if not _cut(path, size_bytes, sha256):  # of another history than the checkpoint, or not whole
                self._restore(path, size_bytes, sha256)
            self._mirror(path)

    def _restore(self, path: Path, size_bytes: int, sha256: str) -> None:
        assert self._context is not None
        is_back = self._context.fetch(f"{self._remote_folder}/{path.name}", path, size_bytes, sha256)
        if not (is_back and _cut(path, size_bytes, sha256)):
            self._earlier.pop(path.name, None)
            path.write_bytes(b"")

    def _mirror(self, path: Path) -> tuple[Pushed, ...]:
        assert self._context is not None
        pushed = self._context.mirror(path, remote_path=f"{self._remote_folder}/{path.name}")
        return () if pushed is None else (pushed,)

    def _write_summary(self, step: int, *values: dict[str, Any]) -> None:
        self._write(step=step, summary={"value": list(values)})

    def _write(self, **fields: Any) -> None:
        assert self._file is not None
        buffer = io.BytesIO()
        event = self._events.Event(wall_time=time.time(), **fields)
        self._record_writer(buffer).write(event.SerializeToString())
        data = buffer.getvalue()
        self._file.write(data)
        self._hash.update(data)
        self._size_bytes += len(data)


def _cut(path: Path, size_bytes: int, sha256: str) -> bool:
    """Cut a file to ``size_bytes`` if those bytes have that hash; says whether they have."""
    digest, left = hashlib.sha256(), size_bytes
    with path.open("r+b") as file:
        while left and (data := file.read(min(left, _READ_BYTES))):
            digest.update(data)
            left -= len(data)
        if left or digest.hexdigest() != sha256:
            return False
        file.truncate(size_bytes)
    return True
