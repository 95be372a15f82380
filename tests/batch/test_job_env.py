from __future__ import annotations

import pytest

from artifactsync.batch import Placement, job_env
from artifactsync.batch.machine import cloud_of_machine
from artifactsync.errors import ConfigurationError
from artifactsync.naming import validate_run_name

SLURM = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "train digits", "SLURM_PROCID": "0", "SLURM_NTASKS": "1"}
TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "GROUP_RANK": "1",
    "TORCHELASTIC_RUN_ID": "none",
    "TORCHELASTIC_RESTART_COUNT": "2",
}
KUBERNETES = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}

CASES = {
    "nothing": ({}, "", None, None),
    "slurm": (SLURM, "slurm", "train-digits-4711", 1),
    "slurm requeued": ({**SLURM, "SLURM_RESTART_COUNT": "2"}, "slurm", "train-digits-4711", 3),
    "slurm array": (
        {**SLURM, "SLURM_JOB_ID": "4713", "SLURM_ARRAY_JOB_ID": "4711", "SLURM_ARRAY_TASK_ID": "2"},
        "slurm",
        "train-digits-4711-2",
        1,
    ),
    "torchrun": (TORCHRUN, "torchrun", None, 3),
    "torchrun with an id": ({**TORCHRUN, "TORCHELASTIC_RUN_ID": "exp7"}, "torchrun", "exp7", 3),
    "torchrun in slurm": ({**SLURM, **TORCHRUN}, "slurm", "train-digits-4711", 1),
    "aws batch": (
        {"AWS_BATCH_JOB_ID": "6b4c-1f", "AWS_BATCH_JOB_ATTEMPT": "2", "AWS_BATCH_CE_NAME": "spot"},
        "aws-batch",
        "6b4c-1f",
        2,
    ),
    "aws batch array": (
        {"AWS_BATCH_JOB_ID": "6b4c-1f:3", "AWS_BATCH_JOB_ATTEMPT": "1", "AWS_BATCH_JOB_ARRAY_INDEX": "3"},
        "aws-batch",
        "6b4c-1f-3",
        1,
    ),
    "aws batch node": (
        {"AWS_BATCH_JOB_ID": "6b4c-1f#1", "AWS_BATCH_JOB_ATTEMPT": "1", "AWS_BATCH_JOB_NODE_INDEX": "1"},
        "aws-batch",
        "6b4c-1f",
        1,
    ),
    "sagemaker": (
        {"TRAINING_JOB_NAME": "digits-2026-11-22", "SM_HOSTS": '["algo-1"]'},
        "sagemaker",
        "digits-2026-11-22",
        None,
    ),
    "google batch": (
        {"BATCH_JOB_ID": "digits", "BATCH_TASK_INDEX": "0", "BATCH_TASK_COUNT": "1", "BATCH_TASK_RETRY_ATTEMPT": "1"},
        "google-batch",
        "digits",
        2,
    ),
    "google batch tasks": (
        {"BATCH_JOB_ID": "digits", "BATCH_TASK_INDEX": "7", "BATCH_TASK_COUNT": "9", "BATCH_TASK_RETRY_ATTEMPT": "0"},
        "google-batch",
        "digits-7",
        1,
    ),
    "vertex": ({"CLOUD_ML_JOB_ID": "1234567890"}, "vertex", "1234567890", None),
    "skypilot on kubernetes": (
        {**KUBERNETES, "SKYPILOT_TASK_ID": "sky-managed-2026-11-22-01-02-03-000001_digits_8-0"},
        "skypilot",
        "sky-managed-2026-11-22-01-02-03-000001_digits_8-0",
        None,
    ),
    "kubernetes": (KUBERNETES, "kubernetes", None, None),
}


@pytest.mark.parametrize("case", CASES)
def test_platforms(case, tmp_path):
    environ, platform, name, attempt = CASES[case]
    job = job_env(environ, dmi_folder=tmp_path, labels=tmp_path / "labels")
    assert (job.platform, job.name_hint, job.attempt_hint) == (platform, name, attempt)
    if job.name_hint:
        validate_run_name(job.name_hint)


def test_kubernetes_labels_through_the_downward_api(tmp_path):
    labels = tmp_path / "labels"
    labels.write_text('app="x"\nbatch.kubernetes.io/job-name="digits"\nbatch.kubernetes.io/job-completion-index="2"\n')

    def name(**more):
        return job_env({**KUBERNETES, **more}, dmi_folder=tmp_path, labels=labels).name_hint

    assert name() == "digits"
    assert name(JOB_COMPLETION_INDEX="2") == "digits-2"
    assert name(JOB_COMPLETION_INDEX="2", MASTER_ADDR="digits-0", RANK="2", WORLD_SIZE="3") == "digits"


def test_ranks_grace_and_signals(tmp_path):
    job = job_env({**SLURM, **TORCHRUN, "ARTIFACTSYNC_GRACE_S": "90"}, dmi_folder=tmp_path)
    assert job.ranks == Placement(rank=3, world_size=4, local_rank=1, local_world_size=2, node_rank=1)
    assert (job.grace_s, job.usual_grace_s) == (90, 30)
    assert job.stop_signals == ("SIGTERM", "SIGUSR1", "SIGUSR2", "SIGXCPU")
    assert job_env({}, dmi_folder=tmp_path).stop_signals == ("SIGTERM",)
    with pytest.raises(ConfigurationError, match="ARTIFACTSYNC_GRACE_S"):
        job_env({"ARTIFACTSYNC_GRACE_S": "soon"})


@pytest.mark.parametrize("job", ["../../etc/passwd", "a b\nc", "é" * 5, "-x", "x" * 300, "." * 9, "a..b", "\x00"])
def test_a_name_that_may_hold_anything_becomes_a_valid_one_or_none(job, tmp_path):
    name = job_env({"TRAINING_JOB_NAME": job}, dmi_folder=tmp_path).name_hint
    if name is not None:
        validate_run_name(name)
    long = job_env({**SLURM, "SLURM_JOB_NAME": "x" * 300}, dmi_folder=tmp_path).name_hint
    assert long.endswith("-4711")
    validate_run_name(long)


def test_what_makes_no_sense_keeps_no_job_from_starting(tmp_path):
    job = job_env({**SLURM, "SLURM_RESTART_COUNT": "many"}, dmi_folder=tmp_path)
    assert job.attempt_hint == 1
    job = job_env({"AWS_BATCH_JOB_ID": "x", "AWS_BATCH_JOB_ATTEMPT": "-1"}, dmi_folder=tmp_path)
    assert job.attempt_hint is None


def test_its_repr_shows_no_secret(tmp_path):
    assert "hush" not in repr(job_env({"WANDB_API_KEY": "hush"}, dmi_folder=tmp_path))


@pytest.mark.parametrize(
    ("files", "environ", "cloud"),
    [
        ({}, {}, ""),
        ({"sys_vendor": "Amazon EC2\n"}, {}, "aws"),
        ({"sys_vendor": "Amazon EC2\n"}, {"AWS_EXECUTION_ENV": "AWS_ECS_EC2"}, "aws"),
        ({"sys_vendor": "Amazon EC2\n"}, {"AWS_EXECUTION_ENV": "AWS_ECS_FARGATE"}, ""),
        ({"sys_vendor": "Amazon EC2\n"}, {"AWS_EC2_METADATA_DISABLED": "True"}, ""),
        ({"sys_vendor": "Amazon EC2\n"}, {"ARTIFACTSYNC_NOTICE": "off"}, ""),
        ({"sys_vendor": "Google", "product_name": "Google Compute Engine\n"}, {}, "gcp"),
        ({"sys_vendor": "Google\n"}, {"NO_GCE_CHECK": "true"}, ""),
        ({"sys_vendor": "Microsoft Corporation\n"}, {}, ""),  # Hyper-V on somebody's desk
        (
            {"sys_vendor": "Microsoft Corporation\n", "chassis_asset_tag": "7783-7084-3265-9085-8269-3286-77\n"},
            {},
            "azure",
        ),
        ({"sys_vendor": "QEMU\n"}, {"ARTIFACTSYNC_NOTICE": "aws"}, "aws"),
        ({"sys_vendor": "QEMU\n"}, {"GCE_METADATA_HOST": "127.0.0.1:1"}, "gcp"),
    ],
)
def test_whose_machine_it_is(files, environ, cloud, tmp_path):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert cloud_of_machine(environ, dmi_folder=tmp_path) == cloud


def test_a_cloud_that_nobody_knows():
    with pytest.raises(ConfigurationError, match="ARTIFACTSYNC_NOTICE is 'clouds'"):
        cloud_of_machine({"ARTIFACTSYNC_NOTICE": "clouds"})
