"""Real Slurm on this machine: examples/batch/slurm.sh is stopped in the middle, goes on, and ends with the same bytes."""

from __future__ import annotations

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


@pytest.fixture(scope="module")
def straight(cluster, tmp_path_factory):
    """The bytes of the weights of a job that nobody interrupts."""
    folder = tmp_path_factory.mktemp("straight")
    job = _submit(cluster, folder, "straight")
    cluster.wait_for_state(job, "COMPLETED")
    assert "done, try 1 as digits-" in _output(folder, job)
    return (folder / "final-straight.pt").read_bytes()


def _submit(cluster, folder, *arguments, options=()):
    export = f"--export=ALL,ARTIFACTSYNC_REMOTE={folder / 'remote'}"
    return cluster.submit(_SCRIPT, _TRAINING, *arguments, options=(export, *options), folder=folder)


def _output(folder, job):
    return (folder / f"slurm-{job}.out").read_text(errors="replace")


def _requeue(cluster, job):
    cluster.command("scontrol", "requeue", job)


def _time_limit(cluster, job):
    cluster.command("scancel", "--signal=USR1", job)  # what --signal=USR1@120 sends; the shortest limit is a minute


@pytest.mark.parametrize("stop", [_requeue, _time_limit])
def test_a_job_that_is_requeued_in_the_middle_ends_with_the_same_bytes(stop, cluster, straight, tmp_path):
    job = _submit(cluster, tmp_path, "wait", stop.__name__)
    cluster.wait_for_file(tmp_path / f"waiting-{job}")
    stop(cluster, job)
    cluster.start_at_once(job)
    cluster.wait_for_state(job, "COMPLETED")
    assert f"done, try 2 as digits-{job}" in _output(tmp_path, job)
    assert (tmp_path / f"final-{stop.__name__}.pt").read_bytes() == straight
    run = Run(f"digits-{job}", remote=tmp_path / "remote", read_only=True)
    assert [checkpoint.name for checkpoint in run.checkpoints()][0] == "ep0-ba6"  # the batch that was running was kept
    assert run.status().attempt == 2
    assert run.status().state == "completed"


def test_a_job_of_more_priority_takes_the_node_and_the_first_one_goes_on_after_it(cluster, straight, tmp_path):
    job = _submit(cluster, tmp_path, "wait", "preempted")
    cluster.wait_for_file(tmp_path / f"waiting-{job}")
    urgent = tmp_path / "urgent.sh"
    urgent.write_text("#!/bin/bash\ntrue\n")
    other = cluster.submit(urgent, options=["--partition=urgent"], folder=tmp_path)
    cluster.wait_for_state(other, "COMPLETED")
    cluster.start_at_once(job)
    cluster.wait_for_state(job, "COMPLETED")
    assert f"done, try 2 as digits-{job}" in _output(tmp_path, job)
    assert (tmp_path / "final-preempted.pt").read_bytes() == straight


def test_what_the_real_sbatch_and_scontrol_make_of_the_script(cluster, tmp_path):
    told = cluster.command("sbatch", "--test-only", _SCRIPT, "train.py", cwd=tmp_path, check=False)
    job = cluster.submit(_SCRIPT, "train.py", options=["--hold"], folder=tmp_path)
    shown = cluster.command("scontrol", "show", "job", job)
    cluster.command("scancel", job)
    assert not told
    assert "JobName=digits" in shown
    assert "Requeue=1" in shown
    assert "TimeLimit=04:00:00" in shown
