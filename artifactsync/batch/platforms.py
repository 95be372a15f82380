"""What each scheduler says in environment variables: its name for the job, which try this is, how long a stop may take.

Owns: the table of schedulers and the variables that they set. Does not own: ranks (``ranks``), notices (``notice``).

Invariant: a job's name is the same on every try and on every rank, and no two jobs of one scheduler share it; what
would need a request to know is None.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

PODINFO_LABELS = Path("/etc/podinfo/labels")
"""Where Kubernetes' documentation mounts a pod's labels through the downward API."""


@dataclass(frozen=True, kw_only=True)
class Platform:
    """A scheduler that has started this process."""

    name: str
    """``slurm``, ``aws-batch``, ``sagemaker``, ``google-batch``, ``vertex``, ``skypilot``, ``kubernetes``, ``ray``,
    ``torchrun``; empty for none."""
    job: str | None = None
    """Its name for the job, the same on every try; None where only a request could tell."""
    attempt: int | None = None
    """Which try of the job this is, from 1."""
    grace_s: float | None = None
    """Seconds between its stop signal and the kill as documented, unless it was told otherwise."""
    stop_signals: tuple[str, ...] = ("SIGTERM",)
    """What it sends before it kills."""


def platform(environ: Mapping[str, str] = os.environ, *, labels: Path = PODINFO_LABELS) -> Platform:
    """Return the scheduler of this process: of nested ones the one that would start the job again.

    Args:
        environ: Environment variables; an empty one counts as not set, and one that makes no sense as not there:
            nothing here is worth a job that does not start.
        labels: The file with a Kubernetes pod's labels, if it has been mounted.
    """
    for variable, read in _PLATFORMS:
        if _get(environ, variable):
            return read(environ, labels)
    return Platform(name="")


def _sagemaker(environ: Mapping[str, str], _labels: Path) -> Platform:
    # Source (2026-11-22): https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-training-algo-running-container.html
    # SIGTERM, then 120 s. A managed spot job that is restarted keeps its name.
    return Platform(name="sagemaker", job=_get(environ, "TRAINING_JOB_NAME"), grace_s=120.0)


def _skypilot(environ: Mapping[str, str], _labels: Path) -> Platform:
    # Source (2026-11-22): https://docs.skypilot.co/en/stable/running-jobs/environment-variables.html
    # SKYPILOT_TASK_ID is the same after a recovery of a managed job.
    return Platform(name="skypilot", job=_get(environ, "SKYPILOT_TASK_ID"))


def _aws_batch(environ: Mapping[str, str], _labels: Path) -> Platform:
    # Source (2026-11-22): https://docs.aws.amazon.com/batch/latest/userguide/job_env_vars.html
    # AWS_BATCH_JOB_ID has ":3" for the fourth child of an array, and "#0" for a node of a multi-node job; the nodes
    # are ranks of one job. SIGTERM, then ECS's 30 s.
    job = (_get(environ, "AWS_BATCH_JOB_ID") or "").partition("#")[0]
    return Platform(name="aws-batch", job=job, attempt=_number(environ, "AWS_BATCH_JOB_ATTEMPT"), grace_s=30.0)


def _google_batch(environ: Mapping[str, str], _labels: Path) -> Platform:
    # Source (2026-11-22): https://cloud.google.com/batch/docs/create-run-job-environment-variables
    # BATCH_TASK_RETRY_ATTEMPT is 0 on the first try. Tasks of a job are jobs of their own, unless they are ranks.
    job, task, retries = (
        _get(environ, "BATCH_JOB_ID"),
        _number(environ, "BATCH_TASK_INDEX"),
        _number(environ, "BATCH_TASK_RETRY_ATTEMPT"),
    )
    tasks = _number(environ, "BATCH_TASK_COUNT") or 1
    if job and task is not None and tasks > 1:
        job = f"{job}-{task}"
    return Platform(name="google-batch", job=job, attempt=None if retries is None else retries + 1, grace_s=30.0)


def _vertex(environ: Mapping[str, str], _labels: Path) -> Platform:
    # Source (2026-11-22): https://cloud.google.com/vertex-ai/docs/training/code-requirements: CLOUD_ML_JOB_ID is the
    # job's number, kept when Vertex restarts the job's workers.
    return Platform(name="vertex", job=_get(environ, "CLOUD_ML_JOB_ID"), grace_s=30.0)


def _slurm(environ: Mapping[str, str], _labels: Path) -> Platform:
    # Source: the environments of sbatch and srun of Slurm 22.05, where tests/batch/test_slurm.py reads them.
    # The job's number stays when it is requeued; SLURM_RESTART_COUNT is set from the first restart on.
    array, task = _get(environ, "SLURM_ARRAY_JOB_ID"), _get(environ, "SLURM_ARRAY_TASK_ID")
    number = f"{array}-{task}" if array and task else _get(environ, "SLURM_JOB_ID")
    return Platform(
        name="slurm",
        job="-".join(filter(None, [_get(environ, "SLURM_JOB_NAME"), number])),
        attempt=(_number(environ, "SLURM_RESTART_COUNT") or 0) + 1,
        grace_s=30.0,  # KillWait of slurm.conf, unless the site has another
        stop_signals=("SIGTERM", "SIGUSR1", "SIGUSR2", "SIGXCPU"),
    )


def _kubernetes(environ: Mapping[str, str], labels: Path) -> Platform:
    # Source (2026-11-22): https://kubernetes.io/docs/concepts/workloads/controllers/job/ (labels of a Job's pods,
    # JOB_COMPLETION_INDEX) and https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/ (SIGTERM, then 30 s).
    job, index = _label(labels, "batch.kubernetes.io/job-name"), _get(environ, "JOB_COMPLETION_INDEX")
    if job and index and not (_get(environ, "RANK") or _get(environ, "MASTER_ADDR")):
        job = f"{job}-{index}"  # pods of an indexed job that do not train together
    return Platform(name="kubernetes", job=job, grace_s=30.0)


def _torchrun(environ: Mapping[str, str], _labels: Path) -> Platform:
    # Source (2026-11-22): https://docs.pytorch.org/docs/stable/elastic/run.html: SIGTERM, then 30 s.
    own = _get(environ, "TORCHELASTIC_RUN_ID")
    restarts = _number(environ, "TORCHELASTIC_RESTART_COUNT")
    return Platform(
        name="torchrun",
        job=None if own == "none" else own,  # what torchrun calls every launch without --rdzv-id
        attempt=None if restarts is None else restarts + 1,
        grace_s=30.0,
    )


# The first that is there. Those that run on top of others come before them: SkyPilot on Kubernetes, SageMaker on
# whatever it has; torchrun, which every one of them may start, comes last.
_PLATFORMS: tuple[tuple[str, Callable[[Mapping[str, str], Path], Platform]], ...] = (
    ("SKYPILOT_TASK_ID", _skypilot),
    ("TRAINING_JOB_NAME", _sagemaker),
    ("AWS_BATCH_JOB_ID", _aws_batch),
    ("CLOUD_ML_JOB_ID", _vertex),
    ("BATCH_TASK_INDEX", _google_batch),
    ("SLURM_JOB_ID", _slurm),
    ("KUBERNETES_SERVICE_HOST", _kubernetes),
    ("TORCHELASTIC_RUN_ID", _torchrun),
)


def _label(path: Path, name: str) -> str | None:
    """One label of the file that the downward API writes: ``name="value"`` on each line."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        key, _, value = line.partition("=")
        if key == name:
            return value.strip('"') or None
    return None


def _get(environ: Mapping[str, str], name: str) -> str | None:
    return environ.get(name, "").strip() or None


def _number(environ: Mapping[str, str], name: str) -> int | None:
    text = _get(environ, name)
    return int(text) if text and re.fullmatch(r"[0-9]{1,9}", text) else None
