"""``--watch``: the same table again and again, each time as things are then.

Owns: the rhythm, and what is shown while the remote does not answer. Does not own: the table.

Invariant: it ends by Ctrl-C alone, or by an error before anything was shown; an outage in the middle is shown, and
waited out.
"""

from __future__ import annotations

import shutil
import time
from typing import TYPE_CHECKING

from artifactsync.cli.failures import describe
from artifactsync.errors import ArtifactSyncError

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    from artifactsync.cli.session import Session

_AROUND_ROWS = 7  # lines: title, blank, heading, rule; blank, the last line, the cursor's


def rows_that_fit() -> int:
    """How many one-line rows of a table a frame has room for, at least one."""
    return max(1, shutil.get_terminal_size((80, 1_000_000)).lines - _AROUND_ROWS)


def watch(session: Session, interval_s: float, draw: Callable[[], list[str]]) -> NoReturn:
    """Show what ``draw`` returns every ``interval_s`` seconds.

    Args:
        session: Its screen gets the lines, its clock the time below them.
        interval_s: Seconds between the end of one frame and the beginning of the next.
        draw: Asks the remote, and returns lines.

    Raises:
        ArtifactSyncError: the first frame could not be drawn.
    """
    lines: list[str] = []
    while True:
        trouble: list[str] = []
        try:
            lines = draw()
        except ArtifactSyncError as error:
            if not lines:
                raise
            trouble = describe(error).lines()
        at = f"{session.now():%H:%M:%S} UTC, again every {interval_s:g} s; Ctrl-C ends it"
        session.screen.frame(lines, [*trouble, session.screen.styled(at, "hint")])
        time.sleep(interval_s)
