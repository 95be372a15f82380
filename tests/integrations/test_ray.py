"""Ray Train with its real package, on a real cluster of one machine; Ray is in an environment of its own."""

from __future__ import annotations

import shutil
import time

import pytest

from artifactsync import Run
from tests.integrations.ray_cluster import RayCluster, make_python


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """A Python with Ray, 0.5 GB."""
    return make_python(tmp_path_factory.mktemp("ray") / "venv")


def _last_files(remote):
    run = Run("digits", remote=remote, read_only=True)
    assert run.status().state == "completed"
    assert run.verify(deep=True).ok
    assert [c.step for c in run.checkpoints()] == [20, 40, 60, 80, 100]
    return run.attempt, {file.path: file.sha256 for file in run.latest().files}


@pytest.mark.crash
@pytest.mark.timeout(1800)  # workers import torch anew in each of four trainings
def test_a_killed_worker_and_a_killed_cluster_cost_nothing_of_the_result(python, tmp_path):
    began = time.monotonic()
    plan = tmp_path / "plan"
    plan.write_text("")

    def train(cluster, remote, order=""):
        plan.write_text(order)
        return cluster.train("--run-name", "digits", "--remote", tmp_path / remote)

    def finish(cluster, remote, order=""):
        driver = train(cluster, remote, order)
        said = driver.communicate()[0]
        assert driver.returncode == 0, said

    with RayCluster(python, tmp_path / "one", PLAN=str(plan)) as cluster:
        finish(cluster, "straight")
        finish(cluster, "remote", "worker")
        driver = train(cluster, "other", "stand")
        while not all((tmp_path / f"stands{rank}").exists() for rank in (0, 1)):
            assert driver.poll() is None, driver.communicate()[0]
            time.sleep(0.1)
        cluster.kill()
    shutil.rmtree(tmp_path / "one")
    assert [c.step for c in Run("digits", remote=tmp_path / "other", read_only=True).checkpoints()] == [20, 40, 60]
    with RayCluster(python, tmp_path / "two", PLAN=str(plan)) as cluster:
        finish(cluster, "other")
        for _ in range(2):  # the second one goes on with what the first one gave to Ray
            storing = cluster.train("storage", tmp_path / "other")
            said = storing.communicate()[0]
            assert storing.returncode == 0, said

    attempt, expected = _last_files(tmp_path / "straight")
    assert attempt == 1
    assert len(expected) == 2
    assert _last_files(tmp_path / "remote") == (2, expected)
    assert _last_files(tmp_path / "other") == (2, expected)
    stored = Run("stored", remote=tmp_path / "other", read_only=True)
    states = [a.path for a in stored.artifacts() if a.path.endswith("/state.json")]
    assert len(states) == 2
    assert all(path.startswith("ray/digits/checkpoint_") for path in states)
    stored.pull(tmp_path / "pulled", checkpoint="none")
    assert (tmp_path / "pulled" / max(states)).read_text() == '{"done": 2}'
    print(
        "Ray Train, 2 workers: one killed, then the cluster; resumed at step 60 of 100, the second time on another "
        f"cluster: same bytes; Ray's own checkpoints are in the run; {time.monotonic() - began:.0f} s"
    )
