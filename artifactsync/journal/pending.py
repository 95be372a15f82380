"""A checkpoint as its author hands it over, and what he waits for.

Owns: ``LocalFile``, ``Label`` and ``PendingCheckpoint``. Does not own: when and how it is published (``publication``).

Invariant: a ``Label`` holds plain numbers and text alone, so what a record says of it is decided in the caller.
"""

from __future__ import annotations

import operator
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from artifactsync.errors import ConfigurationError, DamagedError, NotDurableError, ObjectNotFoundError, WaitTimeoutError
from artifactsync.journal.timing import SaveTiming
from artifactsync.naming.layout import check_relative

if TYPE_CHECKING:
    from collections.abc import Mapping

    from artifactsync.journal.catalogue import Checkpoint
    from artifactsync.transfer.being_written import FileBeingWritten

_SELECTING_WORDS = frozenset({"latest", "best", "none"})
_MAX_NAME_CHARS = 255
_MAX_COUNT = 2**53 - 1  # what every JSON reader keeps exact


@dataclass(frozen=True, kw_only=True)
class LocalFile:
    """A whole local file that belongs to a checkpoint."""

    path: str
    """Where it shall be below the run's folder."""
    local: Path
    """Where it lies now. Must not change until the checkpoint is committed."""
    size_bytes: int
    """Its length."""
    sha256: str | None = None
    """Its hash, if the writer computed it while writing; else it is computed during the upload."""
    seen: tuple[int, int] | None = None
    """Its length and time of change when it was handed over, of a file that its owner might change; None asks not."""
    writing: FileBeingWritten | None = None
    """Set while the file is still being written: it is sent as far as it is, and ``local`` need not be there yet."""


@dataclass(frozen=True, kw_only=True)
class Label:
    """What a checkpoint is called and where in training it was taken."""

    name: str
    """Name within the run."""
    step: int
    """Optimizer steps done."""
    epoch: int
    """Epochs done."""
    batch: int
    """Batches done."""
    metrics: Mapping[str, float]
    """Metrics for ``best``: anything that is one number, a tensor of one element too."""

    def __post_init__(self) -> None:
        """Turn numbers of any library into plain ones, here in the caller: behind, a commit would fail or not match.

        Raises:
            ConfigurationError: something is not what a record can hold.
        """
        for field in ("step", "epoch", "batch"):
            object.__setattr__(self, field, _counted(field, getattr(self, field)))
        metrics = {_metric_name(name): _number(name, value) for name, value in self.metrics.items()}
        object.__setattr__(self, "metrics", metrics)
        if self.name in _SELECTING_WORDS or not self.name.isprintable() or not 0 < len(self.name) <= _MAX_NAME_CHARS:
            raise ConfigurationError(
                f"a checkpoint cannot be called {self.name[:_MAX_NAME_CHARS]!r}",
                hint=f"any printable text of 1 to {_MAX_NAME_CHARS} characters but latest, best and none, "
                "which choose one when pulling",
            )


class SupersededError(NotDurableError):
    """A checkpoint was not sent, because a newer one is durable and the run's retention would remove it at once."""


class PendingCheckpoint:
    """A checkpoint on its way. It is committed, or it does not exist: there is nothing in between."""

    def __init__(self, label: Label, future: Future[Checkpoint], timing: SaveTiming | None = None) -> None:
        self.label = label
        """What was asked for."""
        self.timing = timing or SaveTiming()
        """What its commit record says of how long it took; whoever saves may add marks."""
        self._future = future

    def result(self, timeout: float | None = None) -> Checkpoint:
        """Wait until it is durable and committed, and return it.

        Args:
            timeout: Seconds to wait at most; None waits as long as it takes.

        Raises:
            WaitTimeoutError: it is still on its way.
            NotDurableError: it was cancelled; or it was overtaken: a newer one was durable first, and the run's
                ``retention`` would have removed this one at once. The latter is no failure: ``wait`` does not raise it.
            ArtifactSyncError: what made it fail.
        """
        error = self.exception(timeout)
        if error is not None:
            raise error
        return self._future.result()

    def done(self) -> bool:
        """Whether it is committed, failed or cancelled."""
        return self._future.done()

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait, and return what made it fail; None if it is committed.

        Raises:
            WaitTimeoutError: it is still on its way.
        """
        error: BaseException | None
        try:
            error = self._future.exception(timeout)
        except CancelledError as cancelled:
            error = cancelled
        except FutureTimeoutError:
            raise WaitTimeoutError(
                f"checkpoint {self.label.name!r} is not durable after {timeout:g} s",
                hint="wait longer, or see status()",
            ) from None
        if isinstance(error, CancelledError):
            return NotDurableError(f"checkpoint {self.label.name!r} was cancelled before its commit")
        return error

    def cancel(self) -> bool:
        """Take it back if its publication has not begun; says whether that was so."""
        return self._future.cancel()


def _counted(what: str, value: Any) -> int:
    """``value`` as a plain count."""
    try:
        count = -1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        count = -1
    if not 0 <= count <= _MAX_COUNT:
        raise ConfigurationError(f"{what} is {value!r}", hint=f"{what} counts from 0: give a whole number")
    return count


def _metric_name(name: object) -> str:
    if not isinstance(name, str):
        raise ConfigurationError(f"a metric is called {name!r}", hint="give {name: number}, the name as text")
    return name


def _number(name: str, value: Any) -> float:
    """``value`` as a plain float."""
    try:
        if not isinstance(value, (str, bytes)):
            detach = getattr(value, "detach", None)  # a loss with its graph: torch warns of turning it into a number
            return float(detach() if callable(detach) else value)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # the last from tensors of several elements
        pass
    raise ConfigurationError(
        f"the metric {name!r} is no number, but of type {type(value).__name__}", hint="give one number for each metric"
    )


def check_unchanged(file: LocalFile) -> None:
    """Do nothing while a file is as it was handed over: of several, one that is newer makes a mixture of two states.

    Raises:
        DamagedError: it was changed since.
    """
    if file.seen is None or not file.local.exists():  # what is not there, its upload says
        return
    now = file.local.stat()
    if (now.st_size, now.st_mtime_ns) != file.seen:
        raise DamagedError(
            f"{file.local} was changed after it was handed over, and before it was sent",
            hint="write each checkpoint to files of its own; never rewrite one before it is durable",
            url=str(file.local),
        )


def local_files(files: Mapping[str, Any]) -> list[LocalFile]:
    """Describe whole local files: ``{path below the run: local path}``.

    Raises:
        ObjectNotFoundError: one of them is not there, or is no file.
        ConfigurationError: there are none.
    """
    if not files:
        raise ConfigurationError("a checkpoint of no files cannot be saved", hint="give at least one file")
    described = []
    for path, local in files.items():
        local_path = Path(local)
        if not local_path.is_file():
            raise ObjectNotFoundError(
                f"{local_path} is no file", hint="give whole files that exist", url=str(local_path)
            )
        now = local_path.stat()
        seen = (now.st_size, now.st_mtime_ns)
        described.append(LocalFile(path=check_relative(path), local=local_path, size_bytes=now.st_size, seen=seen))
    return described
