from __future__ import annotations

import sys
from pathlib import Path

import child_process
import pytest

from artifactsync.errors import (
    AlreadyExistsError,
    BucketNotFoundError,
    PermissionDeniedError,
    StoreError,
    UnknownOutcomeError,
)
from artifactsync.stores import open_store, probe
from artifactsync.stores.local import LocalStore
from artifactsync.testing import Fault, FaultyStore
from tests.fault_proxy import Answer, LoseAnswer

_KEY = "run/.artifactsync/probe/token"


class Overwriting(LocalStore):
    def put_if_absent(self, key, body):
        return self.put(key, body)


class Keeping(LocalStore):
    def put_if_absent(self, key, body):
        try:
            return super().put_if_absent(key, body)
        except AlreadyExistsError:
            return self.head(key)


class Lying(LocalStore):
    def put_if_absent(self, key, body):
        try:
            return super().put_if_absent(key, body)
        except AlreadyExistsError:
            self.put(key, body)
            raise


class Forgetting(LocalStore):
    def put_if_absent(self, key, body):
        return self.put(key + ".elsewhere", body)


class Refusing(LocalStore):
    def put_if_absent(self, key, body):
        raise StoreError("501 NotImplemented: A header you provided implies functionality that is not implemented")


class Silent(LocalStore):
    def put_if_absent(self, key, body):
        raise UnknownOutcomeError("no answer")


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Overwriting, "answered with success, and the first bytes were overwritten"),
        (Keeping, "answered with success, and the first bytes were kept"),
        (Lying, "the first bytes were overwritten"),
        (Forgetting, "its bytes are not there"),
        (Refusing, "501 NotImplemented"),
        (Silent, "no answer"),
    ],
)
def test_stores_that_only_pretend_are_found_out(tmp_path, kind, reason):
    found = probe(kind(tmp_path), _KEY)
    assert not found.put_if_absent
    assert reason in found.reason


def test_a_true_store_passes_and_nothing_is_left(tmp_path):
    store = LocalStore(tmp_path)
    found = probe(store, _KEY)
    assert (found.put_if_absent, found.reason) == (True, "")
    assert list(store.list()) == []


def test_lost_answers_do_not_condemn_a_true_store(tmp_path):
    faults = [Fault(kind="lost-response", operations=("put_if_absent",), calls=(1, 3))]
    assert probe(FaultyStore(LocalStore(tmp_path), faults), _KEY).put_if_absent


def test_what_is_no_verdict_is_raised(tmp_path):
    with pytest.raises(PermissionDeniedError):
        probe(FaultyStore(LocalStore(tmp_path), [Fault(kind="permission")]), _KEY)


@pytest.mark.parametrize("server", ["s3", "moto_s3"])
def test_true_servers_pass(server, request):
    cloud = request.getfixturevalue(server)
    store = open_store(cloud.fresh_url(), cloud.storage_options)
    assert probe(store, _KEY).put_if_absent
    assert list(store.list()) == []


def test_a_true_server_behind_a_bad_line_passes(s3, fault_proxy):
    line = fault_proxy(s3)
    store = open_store(line.fresh_url(), line.storage_options)
    line.proxy.add(LoseAnswer(), method="PUT", times=1)
    assert probe(store, _KEY).put_if_absent


def test_a_server_that_knows_no_conditions_says_so(s3, fault_proxy):
    line = fault_proxy(s3)
    body = b"<Error><Code>NotImplemented</Code><Message>If-None-Match is not implemented</Message></Error>"
    line.proxy.add(Answer(501, body=body), when=lambda request: "if-none-match" in request.headers)
    found = probe(open_store(line.fresh_url(), line.storage_options), _KEY)
    assert not found.put_if_absent
    assert "501 NotImplemented: If-None-Match is not implemented" in found.reason


def test_a_missing_bucket_is_no_verdict(moto_s3):
    with pytest.raises(BucketNotFoundError):
        probe(open_store(moto_s3.missing_bucket(), moto_s3.storage_options), _KEY)


@pytest.fixture
def rclone(tmp_path):
    """A server that ignores If-None-Match and answers 200."""
    (tmp_path / "data" / "bucket").mkdir(parents=True)
    (port,) = child_process.free_ports(1)
    program = str(Path(sys.executable).parent / "rclone")
    command = [
        program,
        "serve",
        "s3",
        f"--addr=127.0.0.1:{port}",
        "--auth-key=laptop-key,laptop-secret",
        str(tmp_path / "data"),
    ]
    server = child_process.ChildProcess(command, log=tmp_path / "log", environment={"HOME": str(tmp_path)})
    server.wait_until(lambda: not child_process.is_free(port), timeout_s=20)
    yield "s3://bucket/p", {"key": "laptop-key", "secret": "laptop-secret", "endpoint_url": f"http://127.0.0.1:{port}"}
    server.kill()


def test_a_real_server_that_ignores_the_condition_is_found_out(rclone):
    url, options = rclone
    found = probe(open_store(url, options), _KEY)
    assert not found.put_if_absent
    assert "answered with success, and the first bytes were overwritten" in found.reason
