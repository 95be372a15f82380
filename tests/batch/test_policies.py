"""The policies of examples/batch/iam are enough, and have not one action too many: moto enforces them."""

from __future__ import annotations

import copy
import itertools
import json
import os
import urllib.request
from pathlib import Path

import boto3
import pytest
import servers

from artifactsync import Run
from artifactsync.errors import PermissionDeniedError
from artifactsync.run import RetentionPolicy

_IAM = Path(__file__).parents[2] / "examples" / "batch" / "iam"
_NUMBERS = itertools.count(1)


def _policy(name):
    return json.loads((_IAM / f"s3-{name}.json").read_text())


def _actions(name):
    return [action for statement in _policy(name)["Statement"] for action in statement["Action"]]


def _without(policy, action):
    less = copy.deepcopy(policy)
    for statement in less["Statement"]:
        statement["Action"] = [each for each in statement["Action"] if each != action]
    less["Statement"] = [statement for statement in less["Statement"] if statement["Action"]]
    return less


class Enforcing:
    """A moto that enforces policies on everybody; new roles are made in moments in which it does not."""

    def __init__(self, server):
        self.endpoint_url = server.endpoint_url
        self._enforce("inf")
        self._admin = {
            "endpoint_url": server.endpoint_url,
            "region_name": "us-east-1",
            "aws_access_key_id": "admin",
            "aws_secret_access_key": "admin",
        }
        self.s3 = boto3.client("s3", **self._admin)
        self.s3.create_bucket(Bucket="bucket")

    def options(self, policy):
        """The storage options of somebody with this policy and nothing else."""
        self._enforce("inf")
        iam, user = boto3.client("iam", **self._admin), f"user-{next(_NUMBERS)}"
        iam.create_user(UserName=user)
        policy = copy.deepcopy(policy)
        for statement in policy["Statement"]:
            if "s3:DeleteObject" in statement["Action"]:  # moto looks at the bucket for a deletion of many; S3 does not
                statement["Resource"] = [statement["Resource"], "arn:aws:s3:::bucket"]
        iam.put_user_policy(UserName=user, PolicyName="it", PolicyDocument=json.dumps(policy))
        key = iam.create_access_key(UserName=user)["AccessKey"]
        self._enforce("0")
        return {
            "key": key["AccessKeyId"],
            "secret": key["SecretAccessKey"],
            "endpoint_url": self.endpoint_url,
            "region": "us-east-1",
        }

    def objects(self):
        self._enforce("inf")
        try:
            return [found["Key"] for found in self.s3.list_objects_v2(Bucket="bucket").get("Contents", [])]
        finally:
            self._enforce("0")

    def leave_an_upload(self, key):
        self._enforce("inf")
        self.s3.create_multipart_upload(Bucket="bucket", Key=key)
        self._enforce("0")

    def unfinished_uploads(self):
        self._enforce("inf")
        return [upload["Key"] for upload in self.s3.list_multipart_uploads(Bucket="bucket").get("Uploads", [])]

    def _enforce(self, after):
        plain = {"Content-Type": "text/plain"}
        request = urllib.request.Request(
            f"{self.endpoint_url}/moto-api/reset-auth", after.encode(), plain, method="POST"
        )
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request).close()


@pytest.fixture(scope="module")
def enforcing():
    with servers.Moto() as server:
        yield Enforcing(server)


def _train(options, folder, name, *, remote="s3://bucket/runs", bytes_=20 << 20):
    """A run with two checkpoints, a large one is sent in parts, a log, and a second attempt elsewhere."""
    for host, step in (("a", 1), ("b", 2)):
        with Run(name, remote=remote, local_root=folder / host, storage_options=options) as run:
            found = run.latest()
            assert (found.step if found else 0) == step - 1
            if found:
                run.pull(folder / "pulled")
            weights = run.local_dir / f"{step}.bin"
            weights.parent.mkdir(parents=True, exist_ok=True)
            weights.write_bytes(os.urandom(bytes_ if step == 1 else 1000))
            log = run.local_dir / "log.txt"
            log.write_text("line\n")
            run.push(log)
            run.save_files([weights], step=step).result(60)
    assert run.status().pending_files == 0


def _retain(options, folder, name, remote="s3://bucket/runs"):
    run = Run(name, remote=remote, read_only=True, storage_options=options)
    assert len(run.prune(RetentionPolicy(keep_last=1)).retired) == 1
    run.remove()


def test_the_training_policy_is_enough_and_deletes_nothing(enforcing, tmp_path):
    options = enforcing.options(_policy("training"))
    _train(options, tmp_path, "enough")
    before = enforcing.objects()
    with pytest.raises(PermissionDeniedError):
        _retain(options, tmp_path, "enough")
    assert set(before) <= set(enforcing.objects())


@pytest.mark.parametrize("action", _actions("training"))
def test_without_any_action_of_the_training_policy_training_fails(action, enforcing, tmp_path):
    options = enforcing.options(_without(_policy("training"), action))
    with pytest.raises(PermissionDeniedError):
        _train(options, tmp_path, "not-enough")


def test_other_runs_are_out_of_reach(enforcing, tmp_path):
    options = enforcing.options(_policy("training"))
    with pytest.raises(PermissionDeniedError):
        _train(options, tmp_path, "elsewhere", remote="s3://bucket/others")


@pytest.mark.parametrize("action", [None, *_actions("retention")])
def test_the_retention_policy_is_enough_and_has_no_action_too_many(action, enforcing, tmp_path):
    name = f"kept-{next(_NUMBERS)}"
    _train(enforcing.options(_policy("training")), tmp_path, name, bytes_=1000)
    enforcing.leave_an_upload(f"runs/{name}/checkpoints/broken-off.pt")
    options = enforcing.options(_policy("retention") if action is None else _without(_policy("retention"), action))
    if action is None:
        _retain(options, tmp_path, name)
        assert not [key for key in enforcing.objects() if key.startswith(f"runs/{name}/")]
        assert not [key for key in enforcing.unfinished_uploads() if key.startswith(f"runs/{name}/")]
    else:
        with pytest.raises(PermissionDeniedError):
            _retain(options, tmp_path, name)
