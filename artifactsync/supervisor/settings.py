"""What `artifactsync run` is asked to do.

Owns: the options and their defaults. Does not own: where they come from (``cli``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from artifactsync.batch.job_env import JobEnv


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to run, and how."""

    command: tuple[str, ...]
    """The program and its arguments."""
    work_dir: Path
    """Where it runs; files keep their paths below it."""
    watched: tuple[Path, ...] = ()
    """Folders to watch; the working folder if there is none."""
    checkpoint_patterns: tuple[str, ...] = ()
    """Shell patterns of files and folders that are checkpoints, beside those that are known."""
    exclude: tuple[str, ...] = ()
    """Shell patterns of paths that are left alone."""
    grace_s: float | None = None
    """Seconds between a stop signal and the end of this process; None where nobody says."""
    usual_grace_s: float = 30.0
    """What is assumed then: Kubernetes' default, and less than most others'."""
    settle_s: float = 1.0
    """Seconds for which a file must have been left alone before it is taken for finished."""
    rank: int = 0
    """This node's number among those that run the command together, for the log's name."""
    job: JobEnv | None = None
    """Whose metadata server is watched for a notice; None watches none."""
    output_fd: int = 1
    """Where the command's stdout goes; 2 where stdout has to hold nothing else than a JSON document."""
    is_owner: bool = True
    """Whether this process claims the run and commits; others of the same run push alone."""
