"""What the servers have in common: a folder, a port, a life from construction to ``stop``.

Owns: the ``Server`` interface, its start with a second try on another port, the temporary folder. Does not own: any
particular server (``servers``), the process itself (``child_process``).

Invariant: a server that was constructed is ready; ``stop`` leaves neither process nor temporary folder behind.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from child_process import HOST, ChildProcess, PortTakenError, ServerError, end_leftover, free_ports, is_free

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

    from typing_extensions import Self

_START_TRIES = 3
_DONE = {200, 201, 409}  # 409: the bucket is there already


class Server(ABC):
    """A running server; ready when constructed. Also a context manager.

    Args:
        folder: Where its data and log are kept. A temporary folder that ``stop`` removes when None.
        port: The port to listen on; a free one when None.
        outlives_parent: Whether it goes on when this process ends.

    Raises:
        ServerError: It is not installed or does not start; one line that says why.
    """

    scheme: ClassVar[str]
    ready_timeout_s: ClassVar[float] = 30.0

    def __init__(self, folder: Path | None = None, *, port: int | None = None, outlives_parent: bool = False) -> None:
        self._temporary = None if folder else Path(tempfile.mkdtemp(prefix="artifactsync-server-"))
        self.folder = folder or self._temporary
        self.folder.mkdir(parents=True, exist_ok=True)
        end_leftover(self.folder)
        try:
            self._process = self._start(port, outlives_parent=outlives_parent)
        except BaseException:
            self._forget()
            raise

    @property
    def origin(self) -> str:
        """Where it listens, ``http://127.0.0.1:PORT``."""
        return f"http://{HOST}:{self.port}"

    @property
    def endpoint_url(self) -> str:
        """What its clients call the endpoint."""
        return self.origin

    @property
    def pid(self) -> int:
        """The server's process id."""
        return self._process.pid

    @property
    @abstractmethod
    def storage_options(self) -> dict[str, str]:
        """What to give to ``open_store`` beside the URL."""

    @property
    def environment(self) -> dict[str, str]:
        """The variables a user would export."""
        return self.environment_at(self.endpoint_url)

    @classmethod
    @abstractmethod
    def environment_at(cls, endpoint_url: str) -> dict[str, str]:
        """Return the variables a user would export for a server of this kind at some endpoint."""

    @abstractmethod
    def command(self) -> Sequence[str]:
        """Return the program and its arguments, for the server to listen on ``self.port``."""

    @abstractmethod
    def is_ready(self) -> bool:
        """Ask the server whether it is ready; an ``OSError`` means no."""

    @abstractmethod
    def make_bucket(self, name: str) -> str:
        """Make a bucket and return its URL. No error if it exists.

        Raises:
            ServerError: The server refused.
        """

    def check(self) -> None:
        """Raise an error if the server has ended by itself.

        Raises:
            ServerError: It has; with what it said last.
        """
        self._process.check()

    def stop(self) -> None:
        """End the server; at once if its data is temporary. Idempotent."""
        if self._temporary is None:
            self._process.stop()
        else:
            self._process.kill()
            self._forget()

    def kill(self) -> None:
        """End the server at once, as a power cut would; its data stays until ``stop``."""
        self._process.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _choose_ports(self, port: int | None) -> None:
        self.port = port or free_ports(1)[0]

    def _process_environment(self) -> Mapping[str, str]:
        """Return the server's own environment: nothing of the user's clouds, proxies or Python."""
        kept = ("PATH", "HOME", "TMPDIR", "LANG", "LC_ALL", "SYSTEMROOT")
        return {name: os.environ[name] for name in kept if name in os.environ}

    def _start(self, port: int | None, *, outlives_parent: bool) -> ChildProcess:
        for tries_left in reversed(range(_START_TRIES)):
            self._choose_ports(port)
            if not is_free(self.port):  # whoever listens there might answer that it is ready
                raise PortTakenError(f"port {self.port} is taken: address already in use")
            process = ChildProcess(
                self.command(),
                log=self.folder / "server.log",
                environment=self._process_environment(),
                outlives_parent=outlives_parent,
            )
            try:
                process.wait_until(self.is_ready, timeout_s=self.ready_timeout_s)
            except PortTakenError:
                process.stop()
                if port or not tries_left:
                    raise
            except BaseException:
                process.stop()
                raise
            else:
                return process
        raise AssertionError

    def _forget(self) -> None:
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)

    def _expect(self, status: int, what: str) -> None:
        if status not in _DONE:
            raise ServerError(f"{type(self).__name__} answered {status} to {what}")
