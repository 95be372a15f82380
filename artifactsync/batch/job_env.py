"""Everything that the world tells this process, in one object.

Owns: putting together ranks, grace period, scheduler and cloud. Does not own: any of them (``ranks``, ``grace``,
``platforms``, ``machine``), or acting on it.

Invariant: making it sends nothing and waits for nothing; what is not known is None.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from artifactsync.batch.grace import grace_s
from artifactsync.batch.machine import DMI_FOLDER, cloud_of_machine
from artifactsync.batch.platforms import PODINFO_LABELS, platform
from artifactsync.batch.ranks import Placement, placement

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_MAX_NAME_LENGTH = 128


@dataclass(frozen=True, kw_only=True)
class JobEnv:
    """A process as its scheduler and its machine see it."""

    platform: str = ""
    """``slurm``, ``aws-batch``, ``sagemaker``, ``google-batch``, ``vertex``, ``skypilot``, ``kubernetes``,
    ``torchrun``; empty for none of them."""
    name_hint: str | None = None
    """A valid run name made of the job's own name and number: the same on every rank and every try of the job."""
    attempt_hint: int | None = None
    """Which try of the job the scheduler believes this to be, from 1. The journal's attempts are what counts."""
    ranks: Placement = field(default_factory=Placement)
    """This process among those that train together."""
    grace_s: float | None = None
    """``ARTIFACTSYNC_GRACE_S``: seconds from the stop signal to the kill; None where nobody said so."""
    usual_grace_s: float | None = None
    """What the platform documents as its default, in seconds: a guess where ``grace_s`` is None."""
    stop_signals: tuple[str, ...] = ("SIGTERM",)
    """The signals that mean "stop" here."""
    notice_from: str = ""
    """Whose metadata server announces a preemption: ``aws``, ``gcp``, ``azure``; empty: nobody's is asked."""
    environ: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)
    """Where all this was read; not shown, as it has secrets in it."""


def job_env(
    environ: Mapping[str, str] = os.environ, *, dmi_folder: Path = DMI_FOLDER, labels: Path = PODINFO_LABELS
) -> JobEnv:
    """Return what the world tells this process.

    Args:
        environ: Environment variables.
        dmi_folder: Where the firmware's tables are.
        labels: The file with a Kubernetes pod's labels, if it has been mounted.

    Raises:
        ConfigurationError: a variable that somebody has set by hand makes no sense.
    """
    found = platform(environ, labels=labels)
    return JobEnv(
        platform=found.name,
        name_hint=_run_name(found.job),
        attempt_hint=found.attempt,
        ranks=placement(environ),
        grace_s=grace_s(environ),
        usual_grace_s=found.grace_s,
        stop_signals=found.stop_signals,
        notice_from=cloud_of_machine(environ, dmi_folder=dmi_folder),
        environ=environ,
    )


def _run_name(job: str | None) -> str | None:
    """A scheduler's name, which may hold anything, as a run name; the end is kept, where numbers are."""
    if not job:
        return None
    allowed = re.sub(r"\.{2,}", ".", re.sub(r"[^A-Za-z0-9._-]+", "-", job))
    return re.sub(r"^[._-]+", "", allowed[-_MAX_NAME_LENGTH:]).rstrip("-") or None
