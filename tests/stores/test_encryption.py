"""Encryption that was asked for is on every object, or nothing is written."""

from __future__ import annotations

import base64
import json
from urllib.parse import parse_qs

import boto3
import pytest
from botocore.config import Config

from artifactsync.errors import ConfigurationError
from artifactsync.run import Run
from artifactsync.stores import BytesBody, open_store, s3
from artifactsync.stores.credentials import read_s3_settings
from artifactsync.stores.object import PART_BYTES
from artifactsync.stores.unfinished import list_unfinished
from tests.fault_proxy import FaultProxy
from tests.stores.honest_gcs import HonestGcs

_ALGORITHM = "x-amz-server-side-encryption"
_GCS_KEY = "projects/p/locations/eu/keyRings/r/cryptoKeys/k"
_CONTEXT = base64.b64encode(b'{"team": "vision"}').decode()
_KMS = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": "alias/runs"}


def read(options, environ=None):
    return read_s3_settings({"key": "k", "secret": "s", **options}, environ=environ or {}).encryption


@pytest.mark.parametrize(
    ("options", "environ"),
    [
        ({"s3_additional_kwargs": {**_KMS, "BucketKeyEnabled": True}}, {}),
        ({"server_side_encryption": "aws:kms", "sse_kms_key_id": "alias/runs", "sse_bucket_key_enabled": True}, {}),
        ({"aws_server_side_encryption": "aws:kms", "aws_sse_kms_key_id": "alias/runs"}, {"BUCKET_KEY": "true"}),
        ({}, {"AWS_SERVER_SIDE_ENCRYPTION": "aws:kms", "AWS_SSE_KMS_KEY_ID": "alias/runs", "BUCKET_KEY": "true"}),
    ],
)
def test_the_names_of_s3fs_of_obstore_and_of_the_environment(options, environ):
    environ = {name.replace("BUCKET_KEY", "AWS_SSE_BUCKET_KEY_ENABLED"): value for name, value in environ.items()}
    found = read(options, environ)
    assert found.headers == {
        _ALGORITHM: "aws:kms",
        f"{_ALGORITHM}-aws-kms-key-id": "alias/runs",
        f"{_ALGORITHM}-bucket-key-enabled": "true",
    }
    assert found.arguments == {**_KMS, "BucketKeyEnabled": True}


def test_a_context_is_a_table_or_its_base64():
    for context in ({"team": "vision"}, _CONTEXT):
        found = read({"s3_additional_kwargs": {**_KMS, "SSEKMSEncryptionContext": context}})
        assert json.loads(base64.b64decode(found.headers[f"{_ALGORITHM}-context"])) == {"team": "vision"}
    assert read({}) is None
    assert read({"s3_additional_kwargs": {}}) is None


@pytest.mark.parametrize(
    "options",
    [
        {"s3_additional_kwargs": {"ServerSideEncryption": "aes256"}},
        {"s3_additional_kwargs": {"ServerSideEncryption": ""}},
        {"s3_additional_kwargs": {"ServerSideEncryption": True}},
        {"s3_additional_kwargs": {"SSEKMSKeyId": "alias/runs"}},
        {"s3_additional_kwargs": {"ServerSideEncryption": "AES256", "SSEKMSKeyId": "alias/runs"}},
        {"s3_additional_kwargs": {"ServerSideEncryption": "aws:kms:dsse", "BucketKeyEnabled": True}},
        {"s3_additional_kwargs": {**_KMS, "BucketKeyEnabled": "perhaps"}},
        {"s3_additional_kwargs": {**_KMS, "SSEKMSKeyId": "a\r\nx-amz-acl: public-read"}},
        {"s3_additional_kwargs": {**_KMS, "SSEKMSKeyId": 7}},
        {"s3_additional_kwargs": {**_KMS, "SSEKMSEncryptionContext": "not base64"}},
        {"s3_additional_kwargs": {**_KMS, "SSEKMSEncryptionContext": {"n": 1}}},
        {"s3_additional_kwargs": {**_KMS, "ServerSideEncryptionKey": "x"}},
        {"s3_additional_kwargs": {"SSECustomerAlgorithm": "AES256", "SSECustomerKey": "k" * 32}},
        {"s3_additional_kwargs": {"ACL": "public-read"}},
        {"s3_additional_kwargs": "aws:kms"},
        {"s3_additional_kwargs": _KMS, "server_side_encryption": "AES256"},
        {"server_side_encryption": "sse-c", "sse_customer_key_base64": "x"},
        {"server_side_encryption": "sse-c"},
        {"sse_customer_key_base64": "x"},
        {"sse": "aws:kms"},
        {"encryption": "AES256"},
        {"config_kwargs": {"s3": {"sse": "aws:kms"}}},
        {"client_kwargs": {"ServerSideEncryption": "AES256"}},
    ],
    ids=str,
)
def test_what_is_not_supported_is_refused(options):
    with pytest.raises(ConfigurationError) as caught:
        read(options)
    assert caught.value.hint
    assert "k" * 32 not in f"{caught.value} {caught.value.hint}"


def test_customer_keys_of_the_environment_are_refused():
    with pytest.raises(ConfigurationError, match="AWS_SSE_CUSTOMER_KEY_BASE64"):
        read({}, {"AWS_SSE_CUSTOMER_KEY_BASE64": "c2VjcmV0"})


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("gs://b", {"encryption_key": "c2VjcmV0"}),
        ("gs://b", {"csek": "c2VjcmV0"}),
        ("gs://b", {"default_kms_key_name": _GCS_KEY}),
        ("gs://b", {"kms_key_name": "k"}),
        ("gs://b", {"kms_key_name": f"{_GCS_KEY}/cryptoKeyVersions/2"}),
        ("gs://b", {"kms_key_name": ""}),
        ("gs://b", {"kms_key_name": f"{_GCS_KEY}&ifGenerationMatch=0 "}),
        ("az://c", {"account_name": "a", "encryption_key": "c2VjcmV0"}),
        ("az://c", {"account_name": "a", "encryption_scope": "s"}),
        ("az://c", {"account_name": "a", "cpk": "c2VjcmV0"}),
        ("{tmp}", {"s3_additional_kwargs": _KMS}),
        ("file://{tmp}", {"server_side_encryption": "AES256"}),
        ("memory://m", {"kms_key_name": _GCS_KEY}),
        ("dir::file://{tmp}", {"file": {"s3_additional_kwargs": _KMS}}),
    ],
    ids=str,
)
def test_elsewhere_too(url, options, tmp_path):
    with pytest.raises(ConfigurationError) as caught:
        open_store(url.format(tmp=tmp_path), options)
    assert "c2VjcmV0" not in f"{caught.value} {caught.value.hint}"
    assert list(tmp_path.iterdir()) == []


def whole_run(store, folder):
    """All that a run writes: claim, heartbeat, checkpoints small and large, logs, copies, creates, its end."""
    with Run("r", remote=store, local_root=folder) as run:
        (run.local_dir / "small.pt").write_bytes(b"small")
        (run.local_dir / "large.pt").write_bytes(bytes(PART_BYTES + 1))
        run.save_files([run.local_dir / "small.pt", run.local_dir / "large.pt"], step=1).result(60)
        (run.local_dir / "log.txt").write_text("a line\n")
        run.push(run.local_dir / "log.txt")
        run.wait(60)
        run.fs.cp_file("log.txt", "log-copy.txt")
        run.fs.put_file(run.local_dir / "large.pt", "created.bin", mode="create")
        run.fs.put_file(run.local_dir / "large.pt", "put.bin")
    assert Run("r", remote=store, read_only=True).verify(deep=True).ok


@pytest.mark.parametrize(
    "asked",
    [
        {"ServerSideEncryption": "AES256"},
        {**_KMS, "BucketKeyEnabled": True},
        {**_KMS, "SSEKMSEncryptionContext": {"team": "vision"}},
    ],
    ids=["sse-s3", "sse-kms", "context"],
)
def test_every_object_of_a_whole_run_on_s3(asked, moto_s3, fault_proxy, tmp_path, monkeypatch):
    monkeypatch.setattr(s3, "_SINGLE_CREATE_BYTES", PART_BYTES)  # so that a create in parts takes part
    line = fault_proxy(moto_s3)
    bucket = line.fresh_bucket()
    store = open_store(bucket, {**line.storage_options, "s3_additional_kwargs": asked})
    whole_run(store, tmp_path)

    expected = read({"s3_additional_kwargs": asked}).headers
    begins = line.proxy.seen(when=lambda r: r.method == "POST" and r.query.startswith("uploads"))
    puts = line.proxy.seen(when=lambda r: r.method == "PUT" and "uploadId=" not in r.query)
    assert len(begins) >= 4  # the question at the beginning, a checkpoint, a put, a create
    assert len([r for r in puts if "x-amz-copy-source" in r.headers]) == 1
    for request in (*begins, *puts):
        found = {name: value for name, value in request.headers.items() if name.startswith(_ALGORITHM)}
        assert found == expected, request
        assert all(name in request.headers["authorization"] for name in expected)

    where = {"Bucket": bucket.partition("://")[2]}
    keys = {"aws_access_key_id": "k", "aws_secret_access_key": "s", "region_name": "us-east-1"}
    client = boto3.client(
        "s3", endpoint_url=moto_s3.endpoint_url, config=Config(s3={"addressing_style": "path"}), **keys
    )
    objects = client.list_objects_v2(**where)["Contents"]
    assert len(objects) >= 8
    for found in objects:
        head = client.head_object(**where, Key=found["Key"])
        assert head["ServerSideEncryption"] == asked["ServerSideEncryption"], found["Key"]
        assert head.get("SSEKMSKeyId") == asked.get("SSEKMSKeyId"), found["Key"]
    assert list_unfinished(store) == []


def test_the_environment_counts_on_every_path(moto_s3, fault_proxy, monkeypatch):
    monkeypatch.setenv("AWS_SERVER_SIDE_ENCRYPTION", "AES256")
    line = fault_proxy(moto_s3)
    store = open_store(line.fresh_url(), line.storage_options)
    store.put("small", b"1")
    store.put("large", BytesBody(bytes(PART_BYTES + 1)))
    writes = line.proxy.seen(when=lambda r: r.method in {"PUT", "POST"} and "uploadId=" not in r.query)
    assert len(writes) == 3
    assert {request.headers.get(_ALGORITHM) for request in writes} == {"AES256"}


@pytest.mark.parametrize("write", ["put", "put_if_absent", "copy", "large"])
def test_a_service_that_does_not_confirm_gets_no_byte(write, s3, fault_proxy):
    line = fault_proxy(s3)
    url = line.fresh_url()
    open_store(url, line.storage_options).put("there", b"1")
    line.proxy.forget()
    store = open_store(url, {**line.storage_options, "server_side_encryption": "AES256"})
    calls = {"copy": lambda: store.copy("there", "k"), "large": lambda: store.put("k", bytes(PART_BYTES + 1))}
    with pytest.raises(ConfigurationError, match="does not confirm"):
        calls.get(write, lambda: getattr(store, write)("k", b"1"))()
    assert line.proxy.seen(method="PUT") == []
    assert [info.key for info in store.list()] == ["there"]
    assert list_unfinished(store) == []


def test_every_object_of_a_whole_run_on_gcs(tmp_path):
    with HonestGcs("bucket") as server:
        proxy = FaultProxy(server.endpoint_url)
        options = {"endpoint_url": proxy.url, "kms_key_name": _GCS_KEY}
        whole_run(open_store("gs://bucket", options), tmp_path)
        proxy.close()
        assert len(server.objects) >= 8
        assert {server.kms_keys[name] for name in server.objects} == {_GCS_KEY}
        writes = proxy.seen(when=lambda r: r.method == "POST")
        for request in writes:
            name = "destinationKmsKeyName" if "/rewriteTo/" in request.path else "kmsKeyName"
            assert parse_qs(request.query)[name] == [_GCS_KEY], request


def test_gcs_that_does_not_encrypt_is_found_out_by_its_first_answer(gcs):
    store = open_store(gcs.fresh_url(), {**gcs.storage_options, "kms_key_name": _GCS_KEY})
    with pytest.raises(ConfigurationError, match="was not encrypted"):
        store.put("k", b"1")
    with HonestGcs("bucket", encrypts=False) as server:
        store = open_store("gs://bucket", {"endpoint_url": server.endpoint_url, "kms_key_name": _GCS_KEY})
        with pytest.raises(ConfigurationError, match="says nothing"):
            store.put_if_absent("k", b"1")
