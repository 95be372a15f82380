"""Whether this process was started by ``artifactsync run``.

Owns: the variables by which the supervisor tells its command so. Does not own: what else it sets (``supervisor``).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

SUPERVISED_VARIABLE = "ARTIFACTSYNC_SUPERVISED"
"""Set to 1 for a command under ``artifactsync run``."""

HINT_SUPERVISED = "start the script without `artifactsync run`, or let it save plain files: they are published"
"""What to do where such a command opens its supervisor's run itself."""


def supervised_run(environ: Mapping[str, str] = os.environ) -> str | None:
    """The run that the supervisor above this process has claimed; None where there is none."""
    return environ.get("ARTIFACTSYNC_RUN_NAME") if environ.get(SUPERVISED_VARIABLE) else None
