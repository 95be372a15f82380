"""A line to a server that fails on demand: an HTTP-aware TCP proxy in this process.

It forwards requests byte for byte, ``Host`` included, so that signatures hold. Faults are added as rules: which
requests (a method, a part of the path, any predicate), from the how-manyth on, how many times, with what chance.
Every request is recorded, with its time, so that a test can say how many were sent and how long a client waited.

    line = fault_proxy(s3)
    line.proxy.add(Answer(503, retry_after_s=2), method="PUT", times=2)
    ... use line.fresh_url() with line.storage_options ...
    first, second, third = line.proxy.seen(method="PUT")
    assert second.at_s - first.at_s >= 2

Owns: the wire and its faults. Does not own: the servers behind it, faults above the wire (``testing.faults``).
"""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tests.fault_line import Line
from tests.line_faults import (
    Answer,
    BlackHole,
    Delay,
    Fault,
    FlipDownload,
    FlipUpload,
    Hold,
    LoseAnswer,
    Request,
    ResetDownload,
    ResetUpload,
    Truncate,
)

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "Answer",
    "BlackHole",
    "Delay",
    "Fault",
    "FaultProxy",
    "FlipDownload",
    "FlipUpload",
    "Hold",
    "LoseAnswer",
    "Request",
    "ResetDownload",
    "ResetUpload",
    "Rule",
    "Truncate",
]


@dataclass
class Rule:
    """When a fault strikes."""

    fault: Fault
    matches: Callable[[Request], bool]
    skip: int
    times: int | None
    probability: float
    hits: int = 0
    """How often it has struck."""

    def strikes(self, request: Request, chance: random.Random) -> bool:
        if not self.matches(request) or (self.times is not None and self.hits >= self.times):
            return False
        if self.skip:
            self.skip -= 1
            return False
        if self.probability < 1 and chance.random() >= self.probability:
            return False
        self.hits += 1
        return True


class FaultProxy:
    """The proxy: listens on a free port of loopback until closed.

    Args:
        upstream_url: The server behind it, ``http://127.0.0.1:PORT``.
        seed: Of the chances. Requests in parallel draw in the order of their arrival.
    """

    def __init__(self, upstream_url: str, *, seed: int = 0) -> None:
        parts = urlsplit(upstream_url)
        self.upstream = (parts.hostname or "", parts.port or 80)
        self.bytes_per_s: float | None = None
        """The line's bandwidth, both ways and all connections together; None: no limit."""
        self.latency_s = 0.0
        """What each request waits on the line."""
        self._chance = random.Random(seed)
        self._rules: list[Rule] = []
        self._requests: list[Request] = []
        self._changed = threading.Condition()
        self._free_at_s = 0.0
        self._lines: set[Line] = set()
        self._down = False
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._accepting = threading.Thread(target=self._accept, name="fault-proxy", daemon=True)
        self._accepting.start()

    def add(
        self,
        fault: Fault,
        *,
        method: str | None = None,
        contains: str | None = None,
        when: Callable[[Request], bool] | None = None,
        skip: int = 0,
        times: int | None = None,
        probability: float = 1.0,
    ) -> Rule:
        """Let a fault strike the requests that match everything given.

        Args:
            fault: What happens.
            method: Only requests of this method.
            contains: Only requests with this in their path or query.
            when: Only requests of which this is true.
            skip: How many matching requests go by unharmed first.
            times: How many it strikes; all when None.
            probability: The chance of each.
        """
        rule = Rule(fault, _matcher(method, contains, when), skip, times, probability)
        with self._changed:
            self._rules.append(rule)
        return rule

    def heal(self) -> None:
        """Remove every rule and limit; the record stays."""
        with self._changed:
            self._rules.clear()
        self.bytes_per_s, self.latency_s, self._down = None, 0.0, False

    def cut(self) -> None:
        """Reset every connection, and each new one at once, until ``heal``."""
        with self._changed:
            self._down = True
        for line in self._open_lines():
            line.close()

    def forget(self) -> None:
        """Empty the record."""
        with self._changed:
            self._requests.clear()

    def seen(
        self, *, method: str | None = None, contains: str | None = None, when: Callable[[Request], bool] | None = None
    ) -> list[Request]:
        """Return the recorded requests that match, in the order of their arrival."""
        matches = _matcher(method, contains, when)
        with self._changed:
            return [request for request in self._requests if matches(request)]

    def wait_for(self, count: int = 1, *, timeout_s: float = 20.0, **matching: str) -> list[Request]:
        """Wait until so many matching requests (``method=``, ``contains=``) have come, and return them.

        Raises:
            TimeoutError: They have not.
        """
        matches = _matcher(matching.get("method"), matching.get("contains"), None)
        with self._changed:
            if not self._changed.wait_for(lambda: sum(map(matches, self._requests)) >= count, timeout_s):
                raise TimeoutError(f"no {count} requests of {matching} in {timeout_s} s: {self._requests}")
            return [request for request in self._requests if matches(request)]

    def close(self) -> None:
        """End the proxy and its connections."""
        with contextlib.suppress(OSError):  # wakes accept(); the peer may see it as closed already
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join()
        for line in self._open_lines():
            line.close()
            line.join()

    def record(self, request: Request) -> None:
        """Note a request, and choose the faults that strike it."""
        with self._changed:
            request.faults = [rule.fault for rule in self._rules if rule.strikes(request, self._chance)]
            self._requests.append(request)
            self._changed.notify_all()

    def pass_bytes(self, count: int, stop: threading.Event) -> None:
        """Wait for as long as the line needs for so many bytes."""
        if self.bytes_per_s is None:
            return
        with self._changed:
            now = time.monotonic()
            self._free_at_s = max(now, self._free_at_s) + count / self.bytes_per_s
            wait_s = self._free_at_s - now
        stop.wait(wait_s)

    def leave(self, line: Line) -> None:
        """Forget a connection that has ended."""
        with self._changed:
            self._lines.discard(line)

    def _open_lines(self) -> list[Line]:
        with self._changed:
            return list(self._lines)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            line = Line(self, client)
            with self._changed:
                is_refused = self._down
                if not is_refused:
                    self._lines.add(line)
            if is_refused:
                line.close()
                client.close()
                continue
            line.thread.start()


def _matcher(
    method: str | None, contains: str | None, when: Callable[[Request], bool] | None
) -> Callable[[Request], bool]:
    return lambda request: (
        (method is None or request.method == method)
        and (contains is None or contains in f"{request.path}?{request.query}")
        and (when is None or when(request))
    )
