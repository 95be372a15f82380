"""The roles of examples/batch/iam for Google Cloud Storage, on our own honest fake, which here has permissions too.

It keeps to the documentation alone (2026-11-22, https://cloud.google.com/storage/docs/access-control/iam-json): create
for a new object, delete too to write over one, get, list. No real service was asked.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml

from artifactsync import Run
from artifactsync.errors import PermissionDeniedError
from artifactsync.run import RetentionPolicy
from tests.stores.honest_gcs import Handler, HonestGcs, RefusedError

_IAM = Path(__file__).parents[2] / "examples" / "batch" / "iam"


def _permissions(role):
    return set(yaml.safe_load((_IAM / f"gcs-{role}.yaml").read_text())["includedPermissions"])


def _overwritable():
    bindings = json.loads((_IAM / "gcs-bindings.json").read_text())["bindings"]
    (expression,) = [binding["condition"]["expression"] for binding in bindings if "condition" in binding]
    endings = re.findall(r"resource\.name\.endsWith\('([^']+)'\)", expression)
    assert " || ".join(f"resource.name.endsWith('{ending}')" for ending in endings) == expression
    return tuple(endings)


class Guarded(HonestGcs):
    """May what ``permissions`` say, and delete what ends with ``deletable``."""

    def __init__(self, bucket, permissions, deletable=()):
        self.permissions, self.deletable, self.refused = permissions, deletable, []
        super().__init__(bucket)
        self.RequestHandlerClass = GuardedHandler

    def need(self, permission, name=""):
        may = permission in self.permissions or (
            permission.endswith(".delete") and name.endswith(self.deletable or "\0")
        )
        if not may:
            self.refused.append((permission, name))
            raise RefusedError(403, f"training@p does not have {permission} access to the Google Cloud Storage object.")

    def publish(self, name, data, if_generation, *more):
        self.need("storage.objects.create", name)
        if name in self.objects and if_generation != "0":
            self.need("storage.objects.delete", name)
        return super().publish(name, data, if_generation, *more)


class GuardedHandler(Handler):
    def plain(self):
        if self.command == "GET":
            self.server.need("storage.objects.get" if "/o/" in self.parts.path else "storage.objects.list")
        elif self.command == "DELETE":
            self.server.need("storage.objects.delete", unquote(self.parts.path.split("/o/", 1)[1]))
        super().plain()


def _train(server, folder):
    options = {"endpoint_url": server.endpoint_url, "project": "p", "token": "anon"}
    for host, step in (("a", 1), ("b", 2)):
        with Run("r", remote="gs://bucket/runs", local_root=folder / host, storage_options=options) as run:
            assert (run.latest().step if run.latest() else 0) == step - 1
            weights, log = run.local_dir / "weights.bin", run.local_dir / "log.txt"
            weights.parent.mkdir(parents=True, exist_ok=True)
            weights.write_bytes(b"%d" % step)
            log.write_text("line\n")
            run.push(log, growing=True)
            run.save_files([weights], step=step).result(60)
    return Run("r", remote="gs://bucket/runs", read_only=True, storage_options=options)


def _retain(run):
    retired = run.prune(RetentionPolicy(keep_last=1)).retired
    run.remove()
    return len(retired)


def test_the_training_role_is_enough_and_deletes_no_checkpoint_and_no_record(tmp_path):
    with Guarded("bucket", _permissions("training"), _overwritable()) as server:
        run = _train(server, tmp_path)
        # What it may not tidy up, retention does: scratch objects of the probe, segments of logs that are whole.
        # And the log of the second attempt stays beside the plain key, which has the first one's.
        assert {permission for permission, _ in server.refused} == {"storage.objects.delete"}
        assert all(
            re.search(r"/\.artifactsync/(probe|logs|tails?|segments|intents)/|^runs/r/log\.txt$", name)
            for _, name in server.refused
        ), server.refused
        before = set(server.objects)
        with pytest.raises(PermissionDeniedError):
            run.prune(RetentionPolicy(keep_last=1))
        assert before <= set(server.objects)


@pytest.mark.parametrize("permission", sorted(_permissions("training")))
def test_without_any_permission_of_the_training_role_training_fails(permission, tmp_path):
    less = _permissions("training") - {permission}
    with Guarded("bucket", less, _overwritable()) as server, pytest.raises(PermissionDeniedError):
        _train(server, tmp_path)


def test_without_overwriting_training_goes_on_and_only_advice_is_missing(tmp_path):
    with Guarded("bucket", _permissions("training")) as server:
        assert _train(server, tmp_path).latest().step == 2
    refused = {name for _, name in server.refused}
    assert {name for name in refused if name.endswith(_overwritable())}
    assert all("/.artifactsync/" in name or name == "runs/r/log.txt" for name in refused), refused


@pytest.mark.parametrize("permission", [None, *sorted(_permissions("retention"))])
def test_the_retention_role_is_enough_and_has_no_permission_too_many(permission, tmp_path):
    with Guarded("bucket", _permissions("retention")) as server:
        run = _train(server, tmp_path)
        server.permissions = _permissions("retention") - {permission}
        if permission is None:
            assert _retain(run) == 1
            assert not server.objects
        else:
            with pytest.raises(PermissionDeniedError):
                _retain(run)
