"""What the two processes say to each other: small messages, with open files attached.

Owns: the messages and how they are framed. Does not own: who says what when (``courier``, ``process``).

One ``SOCK_SEQPACKET`` socket for control, and one for each job: the end of a job's socket is the end of the job, at
whichever side, so nothing has to be numbered. Messages are pickled: both ends are this very program, and the socket has
no name that another one could connect to.
"""

from __future__ import annotations

import pickle
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from artifactsync.errors import ArtifactSyncError
    from artifactsync.stores.origin import Origin

_MOST_BYTES = 1 << 17  # of a message; far below what a socket's buffer takes


@dataclass(frozen=True)
class Hello:
    """The first word to the process: the store that jobs will be for, opened before it is ready."""

    origin: Origin


@dataclass(frozen=True)
class Ready:
    """The process has loaded what it needs."""

    pid: int


@dataclass(frozen=True)
class Put:
    """Send the attached file; the job's socket is attached too."""

    origin: Origin
    key: str
    name: str
    size_bytes: int
    overwrite: bool
    growing: bool
    is_being_written: bool


@dataclass(frozen=True)
class Hash:
    """Hash the attached file as it is being written; the job's socket is attached too."""

    size_bytes: int


@dataclass(frozen=True)
class Written:
    """So much of the file can be read by now."""

    total_bytes: int


@dataclass(frozen=True)
class Whole:
    """The file is whole, on the disk, and has its name."""

    sha256: str
    identity: tuple[int, ...]


@dataclass(frozen=True)
class Moved:
    """So much has been read and handed over to the store by now."""

    total_bytes: int


@dataclass(frozen=True)
class Sent:
    """The object is there."""

    size_bytes: int
    sha256: str
    etag: str | None


@dataclass(frozen=True)
class Hashed:
    """The file's sha256."""

    sha256: str


@dataclass(frozen=True)
class Failed:
    """The job has failed."""

    error: ArtifactSyncError


def pair() -> tuple[socket.socket, socket.socket]:
    """Two connected ends."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def say(to: socket.socket, message: Any, fds: list[int] | None = None) -> None:
    """Send one message; open files go along as duplicates.

    Raises:
        OSError: nobody listens any more.
    """
    data = pickle.dumps(message)
    if fds:
        socket.send_fds(to, [data], fds)
    else:
        to.send(data)


def hear(there: socket.socket, most_fds: int = 0) -> tuple[Any, list[int]]:
    """Wait for one message; None when the other end is gone.

    Raises:
        TimeoutError: none came within the socket's timeout.
    """
    try:
        if most_fds:
            data, fds, _, _ = socket.recv_fds(there, _MOST_BYTES, most_fds)
        else:
            data, fds = there.recv(_MOST_BYTES), []
    except ConnectionError:
        return None, []
    return (pickle.loads(data) if data else None), list(fds)  # noqa: S301 - from this very program, see above
