"""What a destination of metrics must do, and what it is told of the run.

Owns: ``LogContext`` and ``LoggerDestination``. Does not own: who calls them (``logger``), where the context comes from
(``run_context``), or any format (each destination).

Invariant: a destination never decides what is logged, only how it is written down.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from artifactsync.errors import MissingPackageError
from artifactsync.naming import PLACEHOLDERS, render_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from artifactsync.journal.attempt import FinishState
    from artifactsync.run import Pushed


class Mirror(Protocol):
    """How a file gets under the run on the remote; returns at once."""

    def __call__(self, path: Path, /, *, remote_path: str | None = None, growing: bool = True) -> Pushed | None:
        """Mirror a file.

        Args:
            path: The local file.
            remote_path: Where below the run; else the same path as below the run's local folder.
            growing: Whether the file is append-only, so that only what is new is sent.

        Returns:
            What is on its way; None if nothing is.
        """


def _mirror_nothing(_path: Path, /, *, remote_path: str | None = None, growing: bool = True) -> Pushed | None:  # noqa: ARG001  (the protocol's)
    return None


@dataclass(frozen=True, kw_only=True)
class LogContext:
    """What a destination is told of the run it logs."""

    run_name: str
    """The run's name."""
    local_dir: Path
    """The run's local folder; what is written below it can be mirrored."""
    attempt: int = 1
    """Number of this attempt, from 1."""
    placeholders: Mapping[str, Any] = field(default_factory=dict)
    """Values for templates besides the run name: ``rank`` and the like."""
    mirror: Mirror = _mirror_nothing
    """Mirror a file."""
    fetch: Callable[[str, Path, int, str], bool] = lambda _path, _local, _size_bytes, _sha256: False
    """Bring what is mirrored under a path below the run to a local file, if its first so many bytes have that sha256;
    says whether there was such a one."""
    bring: Callable[[str, Path], None] = lambda _folder, _into: None
    """Bring what is mirrored below a folder of the run into a local folder; files that are there stay as they are."""
    identity: Callable[[], str] = lambda: ""
    """32 hex digits that name this history of the run: the same in every attempt that continues it."""

    @property
    def rank(self) -> int:
        """Number of this process among those that train together."""
        return int(self.placeholders.get("rank", 0))


class LoggerDestination:
    """One place where metrics go. Override what you need.

    ``open`` comes first, then ``load_state_dict`` if the run is resumed, then ``start``, then everything else.
    What ``open`` and ``start`` raise as an ``ArtifactSyncError`` ends training before it begins. Any other failure is
    told once, as a warning, and training goes on.
    """

    def open(self, context: LogContext) -> None:
        """The run is known."""

    def start(self, *, resumed_at: int | None) -> None:
        """Logging begins; ``resumed_at`` is the step that a resumed run continues from, None in a new one."""

    def log_hyperparameters(self, parameters: Mapping[str, Any]) -> None:
        """Settings of the run, once."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Numbers of one step. Steps never go back."""

    def flush(self) -> Iterable[Pushed]:
        """Write down everything; what is now on its way to the remote."""
        return ()

    def ended(self, state: FinishState) -> None:
        """How training ended, right before ``close``: ``completed``, ``preempted`` or ``failed``."""

    def close(self) -> None:
        """Write down everything, and release what is held. Idempotent."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs in order to continue this log."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what ``state_dict`` gave."""


def check_path_template(template: str) -> str:
    """Return a path template if it can be filled, before anything is done with it.

    Raises:
        TemplateError: an unknown placeholder, or a path that leaves the run's folder.
    """
    values = dict.fromkeys(PLACEHOLDERS.keys() - {"run_name", "remote_file_name"}, 1)
    render_path(template, run_name="run", **values)
    return template


def check_package(module: str, *, logger: str, extra: str) -> None:
    """Look whether a service's package is installed, without importing it.

    Args:
        module: What would be imported.
        logger: The class that needs it.
        extra: The extra of artifactsync that installs it.

    Raises:
        MissingPackageError: it is not installed.
    """
    if importlib.util.find_spec(module) is None:
        raise _missing(module, logger, extra)


def service_package(module: str, *, logger: str, extra: str) -> Any:
    """Import a service's package; arguments as for :func:`check_package`.

    Raises:
        MissingPackageError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise _missing(error.name or module, logger, extra) from error


def _missing(module: str, logger: str, extra: str) -> MissingPackageError:
    return MissingPackageError(
        f"{logger} needs the Python package {module.partition('.')[0]}", hint=f"pip install 'artifactsync[{extra}]'"
    )
