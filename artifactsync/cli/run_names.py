"""Tab completion of run names: those on the remote that the half-typed command would use.

Owns: how long a press of Tab may take. Does not own: the listing (``journal``), the remote's choice (``session``).

Invariant: whatever is wrong, completion says nothing and offers nothing; the command itself will tell.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from typing import TYPE_CHECKING

from artifactsync.cli.session import Session

if TYPE_CHECKING:
    import click

PATIENCE_S = 3.0
"""Seconds after which a person presses Tab again; what the remote has not said by then is not offered."""


def complete_run_names(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """The run names that begin with what is typed; click's ``shell_complete``."""
    session = context.find_object(Session) or Session()
    names: list[str] = []

    def ask() -> None:
        with contextlib.suppress(Exception):
            names.extend(_names(session))

    logging.getLogger().addHandler(logging.NullHandler())  # else Python's last resort prints warnings into the line
    asking = threading.Thread(target=ask, name="artifactsync-completion", daemon=True)
    asking.start()
    asking.join(PATIENCE_S)
    return [name for name in names if name.startswith(incomplete)]


def _names(session: Session) -> list[str]:
    from artifactsync.journal.runs import run_names
    from artifactsync.stores import open_store

    store = open_store(session.remote, session.storage_options)
    try:
        return run_names(store)
    finally:
        store.close()
