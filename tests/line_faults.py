"""What can go wrong with one HTTP request on its way, as small classes with a hook where each strikes.

Owns: the faults and the record of a request. Does not own: when a fault strikes (``fault_proxy``), sockets
(``fault_line``).
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.fault_line import Line


class LineCutError(Exception):
    """A fault has cut the line: by a reset, or by an early end as of a server that is shutting down."""

    def __init__(self, *, reset: bool = True) -> None:
        super().__init__("reset" if reset else "closed")
        self.reset = reset


class PartError(Exception):
    """Only this part of a piece goes through, then the line is cut."""

    def __init__(self, data: bytes, *, reset: bool) -> None:
        super().__init__()
        self.data, self.reset = data, reset


@dataclass
class Request:
    """What passed by: one request and what became of it."""

    method: str
    path: str
    """The path, still percent-encoded, without the query."""
    query: str
    headers: dict[str, str]
    """By lower-case name."""
    at_s: float
    """When its head had arrived, on ``time.monotonic``'s clock."""
    body_bytes: int = 0
    """How much of its body came."""
    status: int | None = None
    """What the client was answered, if it was."""
    server_status: int | None = None
    """What the server answered, if it was asked; differs from ``status`` where the answer was lost."""
    faults: list[Fault] = field(default_factory=list)
    """What was done to it."""


class Fault:
    """What goes wrong with one request. Each fault overrides the hook at which it strikes."""

    def before(self, request: Request, line: Line) -> None:
        """Strike when the head has arrived and nothing was forwarded."""

    def answer(self) -> bytes | None:
        """Return a whole answer to send instead of asking the server."""
        return None

    def upload(self, data: bytes, offset: int) -> bytes:
        """Return what to forward of a piece of the request's body that begins at ``offset``."""
        return data

    def applied(self, rest: Iterator[bytes]) -> None:
        """Strike when the server has answered and the client knows nothing of it; ``rest`` is the answer's body."""

    def download(self, data: bytes, offset: int) -> bytes:
        """Return what to forward of a piece of the answer's body that begins at ``offset``."""
        return data


@dataclass(frozen=True)
class Answer(Fault):
    """The server is not asked: the client gets this status, as from a balancer in front of it."""

    status: int
    retry_after_s: float | None = None
    body: bytes = b""

    def answer(self) -> bytes:
        lines = [f"HTTP/1.1 {self.status} Fault", f"Content-Length: {len(self.body)}", "Content-Type: application/xml"]
        if self.retry_after_s is not None:
            lines.append(f"Retry-After: {self.retry_after_s:g}")
        return "\r\n".join([*lines, "", ""]).encode() + self.body


@dataclass(frozen=True)
class ResetUpload(Fault):
    """The connection is reset when so many bytes of the request's body were forwarded (0: at its head)."""

    after_bytes: int = 0

    def before(self, request: Request, line: Line) -> None:
        if self.after_bytes == 0:
            raise LineCutError

    def upload(self, data: bytes, offset: int) -> bytes:
        return _until(data, offset, self.after_bytes, reset=True)


@dataclass(frozen=True)
class ResetDownload(Fault):
    """The connection is reset when so many bytes of the answer's body were forwarded."""

    after_bytes: int = 0

    def download(self, data: bytes, offset: int) -> bytes:
        return _until(data, offset, self.after_bytes, reset=True)


@dataclass(frozen=True)
class Truncate(Fault):
    """The answer ends early and in good order after so many bytes of its body; its head promised more."""

    after_bytes: int = 0

    def download(self, data: bytes, offset: int) -> bytes:
        return _until(data, offset, self.after_bytes, reset=False)


@dataclass(frozen=True)
class FlipDownload(Fault):
    """One byte of the answer's body arrives wrong."""

    at_byte: int = 0

    def download(self, data: bytes, offset: int) -> bytes:
        return _flip(data, self.at_byte - offset)


@dataclass(frozen=True)
class FlipUpload(Fault):
    """One byte of the request's body arrives wrong at the server."""

    at_byte: int = 0

    def upload(self, data: bytes, offset: int) -> bytes:
        return _flip(data, self.at_byte - offset)


@dataclass(frozen=True)
class LoseAnswer(Fault):
    """The server has done what was asked, and the connection is reset before the client learns it."""

    def applied(self, rest: Iterator[bytes]) -> None:
        for _ in rest:
            pass
        raise LineCutError


@dataclass(frozen=True)
class Delay(Fault):
    """The request waits on the line."""

    seconds: float

    def before(self, request: Request, line: Line) -> None:
        line.closed.wait(self.seconds)


@dataclass(frozen=True)
class Hold(Fault):
    """The request waits on the line until the test lets it go."""

    released: threading.Event = field(default_factory=threading.Event)

    def before(self, request: Request, line: Line) -> None:
        while not (self.released.wait(0.05) or line.closed.is_set()):
            pass


@dataclass(frozen=True)
class BlackHole(Fault):
    """The connection was accepted, everything is read, and nothing is ever answered."""

    def before(self, request: Request, line: Line) -> None:
        line.swallow()
        raise LineCutError


def _until(data: bytes, offset: int, end: int, *, reset: bool) -> bytes:
    if offset + len(data) < end:
        return data
    raise PartError(data[: end - offset], reset=reset)


def _flip(data: bytes, index: int) -> bytes:
    if not 0 <= index < len(data):
        return data
    return data[:index] + bytes([data[index] ^ 0x01]) + data[index + 1 :]
