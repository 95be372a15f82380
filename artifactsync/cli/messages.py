"""What the library logs, on its way to a person: warnings of ours on stderr, made printable.

Owns: the handlers of this process. Does not own: what is logged. Other libraries' warnings are theirs to know; with
``ARTIFACTSYNC_DEBUG=1`` everything is shown.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from artifactsync.cli.failures import wants_traceback

if TYPE_CHECKING:
    from artifactsync.cli.screen import Screen


def show_log_messages(screen: Screen) -> None:
    """Send warnings of ours to the screen's stderr; without it, ``--quiet`` and hostile names would be ignored."""
    import logging

    class ToScreen(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno < logging.ERROR:  # what is worse ends the command, and is told then
                screen.note(f"warning: {record.getMessage()}")

    if wants_traceback(os.environ):
        logging.basicConfig(level=logging.DEBUG)
        return
    logging.getLogger().addHandler(logging.NullHandler())  # else Python's last resort prints them, as they are
    ours = logging.getLogger("artifactsync")
    ours.addHandler(ToScreen(logging.WARNING))
    ours.propagate = False
