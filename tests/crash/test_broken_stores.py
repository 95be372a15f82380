"""Stores that only look like stores are refused when a run is opened, each with its reason."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import child_process
import pytest

import artifactsync
from artifactsync.errors import (
    AlreadyExistsError,
    ArtifactSyncError,
    ConfigurationError,
    ObjectNotFoundError,
    StoreError,
    UnfencedStoreError,
    UnknownOutcomeError,
)
from tests.testing.dict_store import DictStore


class IgnoresTheCondition(DictStore):
    def put_if_absent(self, key, body):
        return self.put(key, body)


class KeepsTheFirstAndSaysDone(DictStore):
    def put_if_absent(self, key, body):
        try:
            return super().put_if_absent(key, body)
        except AlreadyExistsError:
            return self.head(key)


class KnowsNoConditions(DictStore):
    def put_if_absent(self, key, body):
        raise StoreError("501 NotImplemented: A header you provided implies functionality that is not implemented")


class CreatesThenFails(DictStore):
    def put_if_absent(self, key, body):
        self.put(key, body)
        raise StoreError("500 InternalError")


class RefusesThenOverwrites(DictStore):
    def put_if_absent(self, key, body):
        exists = key in self.objects
        self.put(key, body)
        if exists:
            raise AlreadyExistsError("412")
        return self.head(key)


class AnswersWithAnErrorBody(DictStore):
    """Says 200, and the error is in the body: nothing was stored."""

    def put_if_absent(self, key, body):
        before = dict(self.objects)
        info = self.put(key, body)
        self.objects = before
        return info


class NeverAnswersACreate(DictStore):
    def put_if_absent(self, key, body):
        raise UnknownOutcomeError("no answer")


class ListsLate(DictStore):
    """What was put in this life is not listed."""

    def list(self, prefix="", *, start_after=""):
        return iter(())


class ReadsStale(DictStore):
    """Once a key was seen missing it stays so."""

    def __init__(self):
        super().__init__()
        self.missing = set()

    def get(self, key, *, start=0, end=None):
        if key in self.missing or key not in self.objects:
            self.missing.add(key)
            raise ObjectNotFoundError(f"no object {key}")
        return super().get(key, start=start, end=end)


class IgnoresCase(DictStore):
    def get(self, key, *, start=0, end=None):
        return super().get(next((k for k in self.objects if k.lower() == key.lower()), key), start=start, end=end)

    def head(self, key):
        return super().head(next((k for k in self.objects if k.lower() == key.lower()), key))


class Truncates(DictStore):
    def put(self, key, body):
        info = super().put(key, body)
        self.objects[key] = self.objects[key][:4096]
        return info


class SwapsTags(DictStore):
    """Another ETag with each answer, for the same bytes."""

    calls = 0

    def head(self, key):
        info = super().head(key)
        self.calls += 1
        return type(info)(key=key, size_bytes=info.size_bytes, etag=f'"{self.calls}"')


class SizesAreWrong(DictStore):
    def head(self, key):
        info = super().head(key)
        return type(info)(key=key, size_bytes=info.size_bytes + 1)


UNFENCED = {
    IgnoresTheCondition: "answered with success, and the first bytes were overwritten",
    KeepsTheFirstAndSaysDone: "answered with success, and the first bytes were kept",
    KnowsNoConditions: "501 NotImplemented",
    CreatesThenFails: "500 InternalError",
    RefusesThenOverwrites: "the first bytes were overwritten",
    AnswersWithAnErrorBody: "its bytes are not there",
    NeverAnswersACreate: "no answer",
}
UNSOUND = {
    ListsLate: "not in the listing",
    ReadsStale: "cannot be read",
    IgnoresCase: "upper case",
    Truncates: "other bytes",
    SwapsTags: "ETag",
    SizesAreWrong: "bytes long",
}


@pytest.fixture(autouse=True)
def _nothing_known(monkeypatch, tmp_path):
    monkeypatch.setattr("artifactsync.journal.opening._fit", set())
    monkeypatch.chdir(tmp_path)


def opened(store, **options):
    return artifactsync.Run("r", remote=store, **options)


def test_the_whole_store_below_them_is_fine():
    with opened(DictStore()) as run:
        assert run.attempt == 1


@pytest.mark.parametrize("kind", UNFENCED, ids=lambda kind: kind.__name__)
def test_stores_without_a_true_create_are_refused_unless_allowed(kind, tmp_path):
    store = kind()
    with pytest.raises(UnfencedStoreError, match=re.escape(UNFENCED[kind])):
        opened(store)
    assert not [key for key in store.objects if "/journal/" in key]
    if kind in (IgnoresTheCondition, KeepsTheFirstAndSaysDone):  # only the fence is missing: the rest works
        (tmp_path / "f").write_bytes(b"bytes")
        with opened(store, allow_unfenced=True) as run:
            run.save_files({"f": tmp_path / "f"}, step=1).result(20)
            assert run.verify(deep=True).ok


@pytest.mark.parametrize("kind", UNSOUND, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("allow_unfenced", [False, True])
def test_stores_that_lose_or_mix_up_bytes_are_refused_whatever_is_allowed(kind, allow_unfenced):
    store = kind()
    with pytest.raises(ConfigurationError, match=UNSOUND[kind]) as caught:
        opened(store, allow_unfenced=allow_unfenced)
    assert not isinstance(caught.value, UnfencedStoreError)
    assert "allow_unfenced" not in caught.value.hint
    assert not [key for key in store.objects if "/journal/" in key]


def serve(command, tmp_path, **environment):
    (port,) = child_process.free_ports(1)
    server = child_process.ChildProcess(
        [part.format(port=port) for part in command],
        log=tmp_path / "log",
        environment={"HOME": str(tmp_path), "PATH": os.environ["PATH"], **environment},
    )
    server.wait_until(lambda: not child_process.is_free(port), timeout_s=20)
    options = {"key": "laptop-key", "secret": "laptop-secret", "endpoint_url": f"http://127.0.0.1:{port}"}
    return server, options


def check_refused(url, options):
    with pytest.raises(UnfencedStoreError, match="answered with success, and the first bytes were overwritten"):
        artifactsync.Run("r", remote=url, storage_options=options)
    with artifactsync.Run("r", remote=url, storage_options=options, allow_unfenced=True) as run:
        assert run.attempt == 1


def test_rclone_is_refused(tmp_path):
    (tmp_path / "data" / "bucket").mkdir(parents=True)
    program = str(Path(sys.executable).parent / "rclone")
    command = [program, "serve", "s3", "--addr=127.0.0.1:{port}", "--auth-key=laptop-key,laptop-secret"]
    server, options = serve([*command, str(tmp_path / "data")], tmp_path)
    try:
        check_refused("s3://bucket/p", options)
    finally:
        server.kill()


def juicefs_program():
    return Path(sys.executable).parent / "juicefs"


def test_the_gateway_of_juicefs_is_refused(tmp_path):
    program, meta = str(juicefs_program()), f"sqlite3://{tmp_path}/meta.db"
    environment = {"MINIO_ROOT_USER": "laptop-key", "MINIO_ROOT_PASSWORD": "laptop-secret", "HOME": str(tmp_path)}
    command = [program, "format", "--storage", "file", "--bucket", f"{tmp_path}/blobs/", meta, "bucket"]
    subprocess.run(command, check=True, capture_output=True, env={**environment, "PATH": os.environ["PATH"]})
    command = [program, "gateway", "--no-usage-report", "--cache-dir", f"{tmp_path}/cache", meta, "127.0.0.1:{port}"]
    server, options = serve(command, tmp_path, **environment)
    try:
        check_refused("s3://bucket/p", options)
    finally:
        server.kill()


@pytest.mark.crash
def test_count(capsys, tmp_path):
    refused = 0
    for kind in (*UNFENCED, *UNSOUND):
        with pytest.raises(ArtifactSyncError, match=re.escape({**UNFENCED, **UNSOUND}[kind])):
            opened(kind())
        refused += 1
    with capsys.disabled():
        print(f"\nbroken stores: {refused} simulated of {refused} refused, each with its reason (and 2 servers above)")
