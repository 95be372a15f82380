"""Single requests through the proxies of the environment.

Owns: ``ProxyLines``, the words of ``http_lines`` on botocore's session, which knows proxies. Does not own: connections
without one (``http_lines``).
"""

from __future__ import annotations

import os
import socket
import threading
from typing import TYPE_CHECKING, Any

from artifactsync.stores.http_answer import HttpAnswer
from artifactsync.stores.http_lines import host_field

if TYPE_CHECKING:
    from collections.abc import Mapping


class ProxyLines:
    """The same through the proxies of the environment, by botocore's session. Thread-safe.

    Args:
        url: Scheme and host of the server.
        proxies: By scheme.
        ca_file: As above.
        connect_timeout_s: As above.
        keep: As above.
    """

    def __init__(
        self, url: str, *, proxies: Mapping[str, str], ca_file: str, connect_timeout_s: float, keep: int
    ) -> None:
        self._url = url
        self.host = host_field(url)
        """For the header ``Host``."""
        self._how = {"verify": ca_file, "proxies": dict(proxies), "max_pool_connections": keep}
        self._connect_timeout_s = connect_timeout_s
        self._lock = threading.Lock()
        self._sessions: dict[tuple[int, float], Any] = {}  # by process and patience

    def send(self, method: str, target: str, headers: Mapping[str, str], body: bytes, timeout_s: float) -> HttpAnswer:
        """See ``HttpLines.send``."""
        from botocore.awsrequest import AWSPreparedRequest, HeadersDict  # noqa: PLC0415 - for the few behind a proxy

        fields = HeadersDict({**headers, "Content-Length": str(len(body))})
        request = AWSPreparedRequest(method, self._url + target, fields, body, stream_output=False)
        answer = self._session(timeout_s).send(request)
        return HttpAnswer(answer.status_code, answer.headers, bytes(answer.content))

    def has_free(self) -> bool:
        """False: the session waits for each answer."""
        return False

    def begin(self, *_: object) -> None:
        """See ``HttpLines.begin``: None is free."""

    def close(self) -> None:
        """Close the connections."""
        with self._lock:
            for session in self._sessions.values():
                session.close()
            self._sessions = {}

    def _session(self, timeout_s: float) -> Any:
        from botocore.httpsession import URLLib3Session  # noqa: PLC0415

        key = (os.getpid(), timeout_s)
        with self._lock:
            if key not in self._sessions:
                self._sessions[key] = URLLib3Session(
                    timeout=(self._connect_timeout_s, timeout_s),
                    socket_options=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)],
                    **self._how,
                )
            return self._sessions[key]
