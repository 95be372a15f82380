"""What ``cloud.py up`` leaves behind for ``env``, ``status`` and ``down``: one JSON file, and who is still alive.

Owns: the state file and its lock. Does not own: servers (``servers``) and processes (``child_process``).

Invariant: no process is ever signalled whose start time differs from the recorded one, so a process id that was
given to somebody else after a crash or a reboot is safe.
"""

from __future__ import annotations

import fcntl
import json
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from child_process import ServerError, end_process, process_started

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class RunningServer:
    """One started server, as the state file has it."""

    kind: str
    """``seaweedfs``, ``localstack`` or ``fake-gcs``."""
    pid: int
    """Its process id, also its group's."""
    started: str
    """When the process began, in the system's own words; with ``pid`` it names one process for ever."""
    endpoint_url: str
    """Where it listens."""
    environment: dict[str, str]
    """What a user exports to use it."""

    def is_alive(self) -> bool:
        """Say whether this very process is still running."""
        return process_started(self.pid) == self.started

    def stop(self) -> None:
        """End the process if it is still this one."""
        end_process(self.pid, self.started)


class CloudState:
    """The state file in a cloud's folder.

    Args:
        folder: The cloud's folder, ``.cloud`` unless told otherwise.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = folder / "state.json"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep a second ``up`` or ``down`` in the same folder out.

        Raises:
            ServerError: The folder cannot be made, or another command is at work in it.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / ".gitignore").write_text("*\n")
            lock = (self.folder / "lock").open("w")
        except OSError as error:
            raise ServerError(f"cannot use {self.folder}: {error.strerror}") from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise ServerError(f"another command is at work in {self.folder}; try again when it is done") from error
            yield

    def read(self) -> dict[str, RunningServer]:
        """Return the recorded servers by scheme (``s3``, ``gs``), dead ones too; none without a file.

        Raises:
            ServerError: The file is not one of ours.
        """
        try:
            recorded = json.loads(self._file.read_text())
            return {scheme: RunningServer(**fields) for scheme, fields in recorded["servers"].items()}
        except FileNotFoundError:
            return {}
        except NotADirectoryError as error:
            raise ServerError(f"cannot use {self.folder}: it is not a folder") from error
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            message = f"{self._file} cannot be understood; end its servers by hand, remove the file and start again"
            raise ServerError(message) from error

    def write(self, servers: dict[str, RunningServer]) -> None:
        """Replace the file as a whole."""
        new = self._file.with_suffix(".new")
        new.write_text(json.dumps({"servers": {name: asdict(one) for name, one in servers.items()}}, indent=2) + "\n")
        new.replace(self._file)

    def forget(self) -> None:
        """Remove the file."""
        self._file.unlink(missing_ok=True)
