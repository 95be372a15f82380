"""A plain text log of the run, mirrored under the run and continued after a resume.

Owns: the log file and its format. Does not own: what is logged.

Invariant: the file only grows, but for one cut at the start of a resumed attempt, back to where it was at the
checkpoint: so no step is in it twice, and none is missing.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, TextIO

from artifactsync.errors import ConfigurationError, DestinationError
from artifactsync.loggers.logger import LogContext, LoggerDestination, check_path_template
from artifactsync.naming import render_path

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from artifactsync.run import Pushed

_MIRROR_S = 30.0
"""Least time between two mirrorings outside of checkpoints: each is an object of its own until the run ends."""
_READ_BYTES = 1 << 20
_LINE_CHARS = 4096
_CR = "\r"


class FileLogger(LoggerDestination):
    r"""Writes lines such as ``[metric][batch=12]: {"loss/train/total": 0.35}``.

    Args:
        filename: Template of the file, below the local root; it begins with ``{run_name}/``.
        remote_file_name: Template of the file's place on the remote; the same as ``filename`` if None.
        capture_stdout: Also write what the program prints, as ``[stdout]: …``.
        capture_stderr: Likewise for stderr, as ``[stderr]: …``.
        buffer_size: Lines held back at most before they are written; checkpoints and the end write always.
        flush_interval: Mirror after so many lines, but not more often than every 30 s; checkpoints and the end mirror
            always.

    Raises:
        ConfigurationError: a number is not positive, or a template cannot be filled.
    """

    def __init__(
        self,
        filename: str = "{run_name}/logs-rank{rank}.txt",
        remote_file_name: str | None = None,
        *,
        capture_stdout: bool = True,
        capture_stderr: bool = True,
        buffer_size: int = 1,
        flush_interval: int = 100,
    ) -> None:
        for name, value in (("buffer_size", buffer_size), ("flush_interval", flush_interval)):
            if value < 1:
                raise ConfigurationError(f"{name} is {value}", hint="it counts lines, from 1")
        self.filename = check_path_template(filename)
        self.remote_file_name = check_path_template(filename if remote_file_name is None else remote_file_name)
        self.path: Path | None = None
        """The file, once the run is known."""
        self._buffer_size, self._flush_interval = buffer_size, flush_interval
        self._line_count = 0
        self._captured = [name for name, on in (("stdout", capture_stdout), ("stderr", capture_stderr)) if on]
        self._originals: dict[str, TextIO] = {}
        self._context: LogContext | None = None
        self._remote_path = ""
        self._file: io.BufferedWriter | None = None
        self._hash = hashlib.sha256()
        self._size_bytes = 0
        self._lines: list[str] = []
        self._lock = threading.RLock()  # what is captured may come from any thread
        self._saved: dict[str, Any] | None = None
        self._mirrored_at = float("-inf")

    def open(self, context: LogContext) -> None:
        """Work out where the file is."""
        run_name = context.run_name
        local, remote = (
            render_path(template, run_name=run_name, **context.placeholders).removeprefix(f"{run_name}/")
            for template in (self.filename, self.remote_file_name)
        )
        self._remote_path = remote
        self.path = context.local_dir.joinpath(*local.split("/"))
        self._context = context

    def start(self, *, resumed_at: int | None) -> None:
        """Open the file: a new one, or the one that the checkpoint speaks of, cut to its length then.

        Raises:
            DestinationError: the file cannot be written.
        """
        assert self.path is not None, "open() comes first"
        note = self._recover() if resumed_at is not None else self._cut(0, None)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("ab")
        except OSError as error:
            raise DestinationError(
                f"cannot write the log {self.path}: {error.strerror}", hint="choose another local_root"
            ) from error
        if resumed_at is not None and self._context is not None:
            self._write_continuation(resumed_at, self._context.attempt, note or "")
        for name in self._captured:
            stream = self._originals[name] = getattr(sys, name)
            setattr(sys, name, _Tee(stream, self, name))

    def log_hyperparameters(self, parameters: Mapping[str, Any]) -> None:
        """Write one line for each."""
        for name, value in parameters.items():
            self._write(f"[hyperparameter]: {json.dumps({name: value}, default=str)}")

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Write one line."""
        self._write(f"[metric][batch={step}]: {json.dumps(dict(metrics))}")

    def flush(self) -> Iterable[Pushed]:
        """Write the lines held back, and mirror the file."""
        self._write_out()
        if self._context is None or self._file is None or self.path is None:
            return ()
        self._mirrored_at = time.monotonic()
        pushed = self._context.mirror(self.path, remote_path=self._remote_path)
        return () if pushed is None else (pushed,)

    def close(self) -> None:
        """Give stdout and stderr back, write, mirror and close the file."""
        for name, stream in self._originals.items():
            if isinstance(getattr(sys, name), _Tee):
                setattr(sys, name, stream)
        self._originals.clear()
        if self._file is not None:
            self.flush()
            self._file.close()
            self._file = None

    def state_dict(self) -> dict[str, Any]:
        """The length and hash of the file now."""
        with self._lock:
            self._write_out()
            return {"size_bytes": self._size_bytes, "sha256": self._hash.hexdigest()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Note the length to continue from; ``start`` goes there."""
        self._saved = dict(state)

    def _write_continuation(self, step: int, attempt: int, note: str) -> None:
        """Say in the file that another attempt goes on here."""
        self._write(f"[run][batch={step}]: attempt {attempt} continues here{note}")

    def _write(self, line: str) -> None:
        with self._lock:
            self._lines.append(line.replace("\n", "\\n") + "\n")
            self._line_count += 1
            if len(self._lines) >= self._buffer_size:
                self._write_out()
            is_time = self._line_count % self._flush_interval == 0
        if is_time and time.monotonic() - self._mirrored_at >= _MIRROR_S:
            self.flush()

    def _write_out(self) -> None:
        with self._lock:
            if not self._lines or self._file is None:
                return
            data = "".join(self._lines).encode("utf-8", "backslashreplace")
            self._lines.clear()
            self._file.write(data)
            self._file.flush()
            self._hash.update(data)
            self._size_bytes += len(data)

    def _recover(self) -> str:
        """Bring back the log of the earlier attempts, and return what is to be said of it."""
        assert self.path is not None
        assert self._context is not None
        if self._saved is None:
            self._cut(0, None)
            return ""
        size_bytes, sha256 = int(self._saved["size_bytes"]), str(self._saved["sha256"])
        if self._cut(size_bytes, sha256) is not None:
            return ""
        # The local file is not there, or belongs to another history than that of the checkpoint.
        is_back = self._context.fetch(self._remote_path, self.path, size_bytes, sha256)
        if is_back and self._cut(size_bytes, sha256) is not None:
            return ""
        self._cut(0, None)
        return f"; the {size_bytes} bytes of log before it could not be brought back"

    def _cut(self, size_bytes: int, sha256: str | None) -> str | None:
        """Cut the file to ``size_bytes`` if those bytes have that hash; None if they have not."""
        assert self.path is not None
        digest, left = hashlib.sha256(), size_bytes
        try:
            with self.path.open("r+b") as file:
                while left and (data := file.read(min(left, _READ_BYTES))):
                    digest.update(data)
                    left -= len(data)
                if left or sha256 not in (None, digest.hexdigest()):
                    return None
                file.truncate(size_bytes)
        except FileNotFoundError:
            if size_bytes:
                return None
        except OSError as error:
            raise DestinationError(
                f"cannot write the log {self.path}: {error.strerror}", hint="choose another local_root"
            ) from error
        self._hash, self._size_bytes = digest, size_bytes
        return ""


class _Tee(io.TextIOBase):
    """A stream that also goes to the log, by whole lines. Of a progress bar, the last state of each line."""

    def __init__(self, stream: TextIO, log: FileLogger, name: str) -> None:
        super().__init__()
        self._stream, self._log, self._name = stream, log, name
        self._rest = ""
        self._pid = os.getpid()

    def write(self, text: str) -> int:
        self._stream.write(text)
        if os.getpid() != self._pid:  # a forked worker of a DataLoader: the file, and perhaps its lock, are another's
            return len(text)
        *lines, rest = (self._rest + text).split("\n")
        self._rest = rest.rpartition("\r")[2] if len(rest) > _LINE_CHARS else rest
        for line in lines:
            self._log._write(f"[{self._name}]: {line.rstrip(_CR).rpartition(_CR)[2]}")  # noqa: SLF001  (its own)
        return len(text)

    def flush(self) -> None:
        self._stream.flush()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]  # a plain attribute in the stubs
        return self._stream.encoding
