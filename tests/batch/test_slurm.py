"""Real Slurm on this machine: a job of examples/batch/slurm.sh, stopped in every way, ends with the same bytes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from artifactsync import Run
from tests.batch.slurm_cluster import SlurmCluster

_SCRIPT = Path(__file__).parents[2] / "examples" / "batch" / "slurm.sh"
_TRAINING = Path(__file__).with_name("slurm_job.py")

pytestmark = pytest.mark.timeout(600)  # Slurm is unpacked on first use


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with SlurmCluster(tmp_path_factory.mktemp("slurm")) as started:
        yield started


def _uninterrupted(folder):
    folder.mkdir()
    names = {"ARTIFACTSYNC_REMOTE": str(folder / "remote"), "ARTIFACTSYNC_RUN_NAME": "straight"}
    command = [sys.executable, str(_TRAINING)]
    return subprocess.Popen(command, cwd=folder, env={**os.environ, **names}, stdout=subprocess.DEVNULL)


def _near_its_time_limit(cluster, job, folder):
    cluster.command("scancel", "--signal=USR1", job)  # as --signal=USR1@120 has it sent; the shortest limit is a minute
    cluster.start_at_once(job)


def _preempted(cluster, job, folder):
    (folder / "urgent.sh").write_text("#!/bin/bash\ntrue\n")
    urgent = cluster.submit(folder / "urgent.sh", options=["--partition=urgent"], folder=folder)
    cluster.wait_for_state(urgent, "COMPLETED")
    cluster.start_at_once(job)


def _requeued(cluster, job, folder):
    cluster.command("scontrol", "requeue", job)
    cluster.start_at_once(job)


_REQUEUED = [(_requeued, "SIGTERM")]
_IN_EVERY_WAY = [(_near_its_time_limit, "SIGUSR1"), (_preempted, "SIGTERM"), *_REQUEUED]
_PREEMPTED = [(_preempted, "SIGTERM")]
_WAYS = [
    pytest.param("spot", _REQUEUED, id="requeued"),
    pytest.param("sudden", _PREEMPTED, id="preempted without GraceTime", marks=pytest.mark.crash),
    pytest.param("spot", _IN_EVERY_WAY, id="in every way", marks=pytest.mark.crash),
]


@pytest.mark.parametrize(("partition", "stops"), _WAYS)
def test_a_job_that_is_requeued_ends_with_the_bytes_of_one_that_never_was(partition, stops, cluster, tmp_path):
    straight = _uninterrupted(tmp_path / "straight")
    folder = tmp_path / "job"
    options = [f"--export=ALL,ARTIFACTSYNC_REMOTE={folder / 'remote'}", f"--partition={partition}"]
    job = cluster.submit(_SCRIPT, _TRAINING, len(stops), options=options, folder=folder)
    for attempt, (stop, _) in enumerate(stops, start=1):
        cluster.wait_for_file(folder / f"waiting-{attempt}")
        stop(cluster, job, folder)
    cluster.wait_for_state(job, "COMPLETED")
    told = (folder / f"slurm-{job}.out").read_text(errors="replace")
    assert [line for line in told.splitlines() if line.startswith(("stopped", "done"))] == [
        *(f"stopped by {signal} on try {attempt}" for attempt, (_, signal) in enumerate(stops, start=1)),
        f"done as digits-{job} on try {len(stops) + 1}",
    ], told
    assert straight.wait(60) == 0
    assert (folder / "final.pt").read_bytes() == (tmp_path / "straight" / "final.pt").read_bytes()
    run = Run(f"digits-{job}", remote=folder / "remote", read_only=True)
    kept = [6, 8, 10][: len(stops)]  # the batch that was running when the signal came
    assert [checkpoint.step for checkpoint in run.checkpoints()][: len(stops)] == kept
    assert (run.status().attempt, run.status().state) == (len(stops) + 1, "completed")
    print(f"Slurm: stopped {len(stops)} times, {len(stops) + 1} tries, 0 batches lost, same bytes")


def test_a_job_that_is_cancelled_stays_so(cluster, tmp_path):
    job = cluster.submit(_SCRIPT, "-c", "import signal; print('up', flush=True); signal.pause()", folder=tmp_path)
    cluster.wait_for_text(tmp_path / f"slurm-{job}.out", "up")
    cluster.command("scancel", job)
    cluster.wait_for_state(job, "CANCELLED")
    cluster.wait_until_idle()
    assert cluster.state(job) == "CANCELLED"


def test_what_the_real_sbatch_makes_of_the_script(cluster, tmp_path):
    job = cluster.submit(_SCRIPT, "train.py", options=["--hold"], folder=tmp_path)
    shown = cluster.command("scontrol", "show", "job", job)
    cluster.command("scancel", job)
    for expected in ("JobName=digits", "Requeue=1", "TimeLimit=04:00:00"):
        assert expected in shown
