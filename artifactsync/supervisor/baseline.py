"""What was in the working folder before the run first began there: none of it is the command's.

Owns: the file in which that is kept. Does not own: what counts as a file (``tree``).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from artifactsync.errors import ConfigurationError
from artifactsync.supervisor.tree import Seen

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def read_baseline(file: Path) -> dict[str, Seen] | None:
    """What was noted; None if nothing that can be read was."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return {path: Seen(*numbers) for path, numbers in found.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def write_baseline(file: Path, seen: Mapping[str, Seen]) -> None:
    """Note what is there.

    Raises:
        ConfigurationError: the file cannot be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(".tmp")
        temporary.write_text(json.dumps({p: [s.inode, s.size, s.mtime_ns] for p, s in seen.items()}), encoding="utf-8")
        temporary.replace(file)
    except OSError as error:
        raise ConfigurationError(
            f"{file} cannot be written: {error.strerror}", hint="the working folder must be writable"
        ) from error
