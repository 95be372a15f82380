"""examples/batch: each file as its own service's client or schema sees it, and its commands as a shell runs them."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import botocore.session
import kubernetes_validate
import pytest
import yaml
from botocore.validate import ParamValidator
from google.cloud import batch_v1

from artifactsync import Run
from artifactsync.naming import validate_run_name

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "batch"


def _json(name):
    return json.loads((EXAMPLES / name).read_text())


def _yaml(name):
    return yaml.safe_load((EXAMPLES / name).read_text())


def test_aws_batchs_own_model_takes_the_job_definition():
    shape = (
        botocore.session.get_session().get_service_model("batch").operation_model("RegisterJobDefinition").input_shape
    )
    report = ParamValidator().validate(_json("aws_batch.json"), shape)
    assert not report.has_errors(), report.generate_report()
    report = ParamValidator().validate({**_json("aws_batch.json"), "retryStrategy": {"attempts": "ten"}}, shape)
    assert report.has_errors()
    _no_unknown_fields(_json("aws_batch.json"), shape)


def _no_unknown_fields(value, shape):
    """botocore leaves out what it does not know when it sends."""
    if shape.type_name == "structure":
        assert value.keys() <= shape.members.keys()
        for name, inner in value.items():
            _no_unknown_fields(inner, shape.members[name])
    elif shape.type_name == "list":
        for inner in value:
            _no_unknown_fields(inner, shape.member)


def test_google_batchs_own_message_takes_the_job():
    job = batch_v1.Job.from_json((EXAMPLES / "google_batch.json").read_text())  # an unknown field is an error
    assert (
        job.allocation_policy.instances[0].policy.provisioning_model == batch_v1.AllocationPolicy.ProvisioningModel.SPOT
    )
    assert job.task_groups[0].task_spec.max_retry_count == 10
    assert list(job.task_groups[0].task_spec.lifecycle_policies[0].action_condition.exit_codes) == [50001, 143]


@pytest.mark.parametrize("version", ["1.31", "1.37"])
def test_kubernetes_own_schema_takes_the_job(version):
    job = _yaml("kubernetes.yaml")
    kubernetes_validate.validate(job, version, strict=True)
    job["spec"]["template"]["spec"]["gracePeriod"] = 120
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, version, strict=True)


def test_each_job_names_its_run_and_every_try_the_same():
    google = _json("google_batch.json")["taskGroups"][0]["taskSpec"]["runnables"][0]["container"]
    vertex = _json("vertex.json")["jobSpec"]["workerPoolSpecs"][0]["containerSpec"]
    commands = {
        (EXAMPLES / "aws_batch.sh").read_text(): {"AWS_BATCH_JOB_ID": "6b4c-1f"},
        google["commands"][1]: {"BATCH_JOB_ID": "j-1"},
        vertex["command"][2]: {"CLOUD_ML_JOB_ID": "123456"},
        _yaml("skypilot.yaml")["run"]: {"SKYPILOT_TASK_ID": "sky-managed-2026-11-22-01-02-03-000001_digits_8-0"},
    }
    for command, environ in commands.items():
        assert "python examples/batch/train.py" in command
        script = command.replace("exec python examples/batch/train.py", "printenv ARTIFACTSYNC_RUN_NAME")
        done = subprocess.run(
            ["/bin/sh", "-c", script, "sh", "s3://bucket/runs"],
            env={"PATH": os.environ["PATH"], **environ},
            capture_output=True,
            text=True,
            check=True,
        )
        validate_run_name(done.stdout.strip())
        assert next(iter(environ.values())) in done.stdout
    field = next(e for e in _container()["env"] if e["name"] == "ARTIFACTSYNC_RUN_NAME")["valueFrom"]["fieldRef"]
    assert field["fieldPath"] == "metadata.labels['batch.kubernetes.io/job-name']"


def _container():
    return _yaml("kubernetes.yaml")["spec"]["template"]["spec"]["containers"][0]


def test_each_grace_is_shorter_than_what_kills():
    pod = _yaml("kubernetes.yaml")["spec"]["template"]["spec"]
    said = {entry["name"]: entry.get("value") for entry in pod["containers"][0]["env"]}
    assert float(said["ARTIFACTSYNC_GRACE_S"]) < pod["terminationGracePeriodSeconds"]
    assert float(_yaml("skypilot.yaml")["envs"]["ARTIFACTSYNC_GRACE_S"]) < 120


def test_what_the_jobs_start_trains_and_goes_on(tmp_path):
    """The AWS Batch script as the container runs it, twice, as after a lost machine."""
    command = shlex.split("/bin/sh examples/batch/aws_batch.sh")
    environ = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "AWS_BATCH_JOB_ID": "6b4c-1f",
        "ARTIFACTSYNC_LOCAL_ROOT": str(tmp_path / "local"),
    }
    done = subprocess.run(
        [*command, str(tmp_path / "remote")],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "run digits-6b4c-1f: 87 batches" in done.stdout
    run = Run("digits-6b4c-1f", remote=tmp_path / "remote", read_only=True)
    assert run.latest().step == 87


def test_the_loop_of_ray_train_is_complete_without_ray(tmp_path):
    """What each worker runs; `make crash` has Ray itself, tests/integrations/test_ray.py."""
    program = (
        "import sys; sys.path.insert(0, 'examples/batch'); import ray_train\n"
        "for steps in ('20', '60'):\n"
        f"    ray_train.train({{'run_name': 'r', 'remote': {str(tmp_path / 'remote')!r}, 'steps': steps}})\n"
    )
    environ = {**os.environ, "ARTIFACTSYNC_LOCAL_ROOT": str(tmp_path / "local")}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    run = Run("r", remote=tmp_path / "remote", read_only=True)
    assert [(c.step, c.attempt) for c in run.checkpoints()] == [(20, 1), (40, 2), (60, 2)]
