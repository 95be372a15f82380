"""``ui``: the runs of a remote as a local web page.

Owns: where the address is written, and whether a browser is opened. Does not own: the pages and their server (``ui``).
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from artifactsync.cli.messages import show_log_messages
from artifactsync.cli.session import global_options, pass_session
from artifactsync.errors import MissingPackageError, redact_url

if TYPE_CHECKING:
    from artifactsync.cli.session import Session

_PACKAGES = frozenset({"starlette", "uvicorn", "jinja2", "markupsafe", "anyio", "h11"})


@click.command(
    "ui",
    short_help="Show the runs in a browser: a local, read-only page.",
    epilog="""\b
Examples:
  artifactsync ui                         opens a browser, where there is one
  artifactsync ui --remote s3://bucket/runs --no-browser
  ssh -L 8080:127.0.0.1:8080 HOST artifactsync ui --port 8080

It needs: pip install 'artifactsync[ui]'. Ctrl-C ends it.
""",
)
@click.option(
    "--port", type=click.IntRange(0, 65535), default=0, metavar="N", help="Port on 127.0.0.1; a free one unless given."
)
@click.option("--no-browser", is_flag=True, help="Print the address only.")
@global_options
@pass_session
def command(session: Session, port: int, *, no_browser: bool) -> None:
    """Show the runs of the remote in a browser, until Ctrl-C.

    The page is this machine's alone: it listens on 127.0.0.1, and the printed address carries a token. It changes
    nothing on the remote, and needs the rights to list and to get.
    """
    remote, storage_options = session.remote, session.storage_options
    show_log_messages(session.screen)
    try:
        from artifactsync.ui import Options, serve
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _PACKAGES:
            raise
        raise MissingPackageError(
            f"the page needs the Python package {package}", hint="pip install 'artifactsync[ui]'"
        ) from error
    from artifactsync.stores import open_store

    def tell(address: str) -> None:
        if session.is_json:
            session.screen.json({"url": address, "remote": redact_url(remote)})
        else:
            session.screen.text(address)
            session.screen.note(f"the runs at {redact_url(remote)}; Ctrl-C ends it")

    store = open_store(remote, storage_options)
    try:
        is_seen = sys.stdout.isatty() and not session.is_json
        serve(store, Options(port=port, opens_browser=is_seen and not no_browser), tell=tell)
    finally:
        store.close()
