"""Reading the answer to one HTTP request from a socket.

Owns: ``HttpAnswer`` and the reading of one. Does not own: connections (``http_lines``).

Invariant: an answer is whole, or there is none: of the length that it names, or to its last chunk.
"""

from __future__ import annotations

import http.client
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from artifactsync.stores.landing import place_for

if TYPE_CHECKING:
    import socket

READ_BYTES = 64 * 1024
"""Read at a time, where a body need not be read to a place of its own."""
_HEAD_BYTES = 32 * 1024  # longer heads are the library's to read, or to refuse


@dataclass(frozen=True)
class HttpAnswer:
    """An answer that was read to its end."""

    status_code: int
    headers: Any
    """Case does not matter."""
    content: bytes
    """A view of this thread's place where it has one (``landing``) and the body is long."""


def read_answer(line: socket.socket, method: str, begun: bytes | None = None) -> tuple[HttpAnswer, bool]:
    """Return the answer, whose first bytes may have been read, and whether the connection may be used again.

    Raises:
        OSError, http.client.HTTPException: there is none, or not all of it.
    """
    answer = _read_short(line, method, line.recv(READ_BYTES) if begun is None else begun)
    if isinstance(answer, HttpAnswer):
        return answer, True
    response = http.client.HTTPResponse(_Again(answer, line), method=method)  # type: ignore[arg-type] # all it needs
    try:
        response.begin()
        content = response.read()
        return HttpAnswer(response.status, response.headers, content), response.isclosed() and not response.will_close
    finally:
        response.close()


def _read_short(line: socket.socket, method: str, data: bytes) -> HttpAnswer | bytes:
    """Read an answer of the most usual kind, short and of a length that it names; else what has come so far.

    The library's own reading of the headers would take half of all the time that a small request takes.
    """
    while (end := data.find(b"\r\n\r\n")) < 0:
        more = line.recv(READ_BYTES) if len(data) < _HEAD_BYTES else b""
        if not more:
            return data
        data += more
    status_line, *fields = data[:end].decode("latin-1").split("\r\n")
    version, _, rest = status_line.partition(" ")
    headers = _Headers((name.lower(), value.strip()) for name, _, value in (each.partition(":") for each in fields))
    length = headers.get("content-length", "")
    is_usual = version == "HTTP/1.1" and rest[:1] == "2" and rest[:3].isdigit() and len(headers) == len(fields)
    is_usual = is_usual and not {"transfer-encoding", "connection"} & headers.keys()
    if not is_usual or (method != "HEAD" and not (length.isascii() and length.isdigit())):
        return data
    wanted = 0 if method == "HEAD" or rest[:3] == "204" else int(length)
    content = data[end + 4 :]
    if len(content) > wanted:
        return data
    if wanted > READ_BYTES and len(content) < wanted:
        place = place_for(wanted)
        if place is None:
            return data
        _read_into(place, content, line)
        return HttpAnswer(int(rest[:3]), headers, place)  # type: ignore[arg-type] # as good as bytes to who gave it
    while len(content) < wanted:
        more = line.recv(wanted - len(content))
        if not more:
            raise http.client.IncompleteRead(content, wanted - len(content))
        content += more
    return HttpAnswer(int(rest[:3]), headers, content)


def _read_into(place: memoryview, begun: bytes, line: socket.socket) -> None:
    at = len(begun)
    place[:at] = begun
    while at < len(place):
        count = line.recv_into(place[at:])
        if not count:
            raise http.client.IncompleteRead(b"", len(place) - at)
        at += count


class _Headers(dict[str, str]):
    """Headers whose names are kept in lower case, and found in any."""

    def __getitem__(self, name: str) -> str:
        return super().__getitem__(name.lower())

    def __contains__(self, name: object) -> bool:
        return super().__contains__(str(name).lower())

    def get(self, name: str, default: Any = None) -> Any:
        """The value, in whatever case its name is asked for."""
        return super().get(name.lower(), default)


class _Again:
    """A socket whose first bytes were read already, for ``HTTPResponse``."""

    def __init__(self, data: bytes, line: socket.socket) -> None:
        self._data, self._line = data, line

    def makefile(self, mode: str) -> io.BufferedReader:  # noqa: ARG002 - it is always "rb"
        """A file of all that comes."""
        return io.BufferedReader(_Rest(self._data, self._line), READ_BYTES)


class _Rest(io.RawIOBase):
    """What was read already, then what is still to come; leaves the socket open."""

    def __init__(self, data: bytes, line: socket.socket) -> None:
        super().__init__()
        self._data, self._line = data, line

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        if not self._data:
            return self._line.recv_into(buffer)
        count = min(len(buffer), len(self._data))
        buffer[:count], self._data = self._data[:count], self._data[count:]
        return count
