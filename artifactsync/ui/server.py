"""The server: one process, one thread of events, a port of loopback.

Owns: the port, uvicorn's settings, the browser. Does not own: the pages (``site``).

Invariant: it listens on 127.0.0.1 and nowhere else, and is listening before its address is told.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
import threading
import webbrowser
from dataclasses import dataclass
from typing import TYPE_CHECKING

import uvicorn

from artifactsync.errors import ConfigurationError
from artifactsync.ui.remote import Remote
from artifactsync.ui.site import Site

if TYPE_CHECKING:
    from collections.abc import Callable

    from artifactsync.stores.protocol import Store

HOST = "127.0.0.1"
_CLOSING_S = 1  # that pages under way may take when it ends: a remote may never answer
_BACKLOG = 128


@dataclass(frozen=True, kw_only=True)
class Options:
    """How the pages are served."""

    port: int = 0
    """The port on 127.0.0.1; 0 takes a free one."""
    opens_browser: bool = False
    """Show the page in the user's browser, where there is a graphical one."""


def serve(store: Store, options: Options, *, tell: Callable[[str], None]) -> None:
    """Serve the pages of a remote until a signal ends it.

    Args:
        store: The remote; it is only read. Stays the caller's to close.
        options: Port and browser.
        tell: Gets the address, token included, when it can be opened.

    Raises:
        ConfigurationError: the port cannot be had.
        KeyboardInterrupt: SIGINT ended it.
    """
    with _listen(options.port) as listener:
        port = listener.getsockname()[1]
        site = Site(Remote(store), name=str(port))
        server = make_server(site)
        tell(f"http://{HOST}:{port}/?token={site.door.token}")
        if options.opens_browser and _has_graphical_browser():
            address = f"http://{HOST}:{port}/?token={site.door.make_pass()}"
            threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
        server.run(sockets=[listener])


def make_server(site: Site) -> uvicorn.Server:
    """The server of a site, to be run with a socket that listens."""
    config = uvicorn.Config(
        site.application(),
        log_config=None,
        access_log=False,  # it would show the token
        lifespan="off",
        ws="none",
        http="h11",
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=_CLOSING_S,
    )
    return uvicorn.Server(config)


def _listen(port: int) -> socket.socket:
    try:
        return socket.create_server((HOST, port), backlog=_BACKLOG)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigurationError(
                f"port {port} of {HOST} is in use", hint="leave --port out: then a free one is taken"
            ) from error
        if error.errno == errno.EACCES:
            raise ConfigurationError(
                f"port {port} may not be used by you", hint="leave --port out, or choose one above 1023"
            ) from error
        raise


def _has_graphical_browser() -> bool:
    """Whether opening a browser would show a window, not take over this terminal."""
    return sys.platform == "darwin" or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))
