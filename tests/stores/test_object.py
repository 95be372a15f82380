from __future__ import annotations

import itertools
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import boto3
import pytest
from botocore.config import Config

from artifactsync.errors import (
    AlreadyExistsError,
    ArtifactSyncError,
    BucketNotFoundError,
    ConfigurationError,
    CredentialsError,
    FileChangedError,
    ObjectNotFoundError,
    PermissionDeniedError,
    RemoteUnreachableError,
    StoreError,
    TransientStoreError,
    UnfencedStoreError,
    UnknownOutcomeError,
    UnsafeKeyError,
)
from artifactsync.stores import BytesBody, RetryPolicy, open_store
from artifactsync.stores.object import MAX_PARTS, PART_BYTES, part_size_bytes
from tests.fault_proxy import Answer, FlipUpload, LoseAnswer, ResetUpload, Truncate

_MIB = 2**20
_OPERATIONS = {
    "get": lambda s: s.get("k"),
    "put": lambda s: s.put("k", b"1"),
    "put_if_absent": lambda s: s.put_if_absent("k", b"1"),
    "head": lambda s: s.head("k"),
    "list": lambda s: list(s.list()),
    "list_folders": lambda s: s.list_folders(),
    "delete": lambda s: s.delete(["k"]),
    "copy": lambda s: s.copy("k", "l"),
}


def once(cloud):
    """The store without a second try of ours."""
    return open_store(cloud.fresh_url(), cloud.storage_options, retry=RetryPolicy(max_attempts=1))


def boto(cloud):
    options = cloud.storage_options
    return boto3.client(
        "s3",
        endpoint_url=options["endpoint_url"],
        aws_access_key_id=options["key"],
        aws_secret_access_key=options["secret"],
        region_name=options["region"],
        config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}),
    )


def where(url, key=""):
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    return {"Bucket": bucket, "Key": f"{prefix}/{key}"}


def unfinished_uploads(cloud, url):
    """The ids of uploads below ``url`` that were begun and neither completed nor aborted."""
    place = where(url)
    uploads = boto(cloud).list_multipart_uploads(Bucket=place["Bucket"]).get("Uploads") or []
    return [upload["Key"] for upload in uploads if upload["Key"].startswith(place["Key"])]


class Changing:
    """A body that changes while it is read."""

    def __init__(self, size_bytes, *, real_bytes):
        self.size_bytes = size_bytes
        self.real_bytes = real_bytes

    def chunks(self, chunk_bytes):
        for start in range(0, self.real_bytes, chunk_bytes):
            yield bytes(min(chunk_bytes, self.real_bytes - start))


# -- parts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size_bytes", [1, PART_BYTES, 80 * 2**30, 5 * 2**40, MAX_PARTS * PART_BYTES + 1])
def test_no_upload_has_too_many_parts(size_bytes):
    part = part_size_bytes(size_bytes)
    assert part >= PART_BYTES
    assert part % _MIB == 0
    assert -(-size_bytes // part) <= MAX_PARTS


@pytest.mark.parametrize(
    ("server", "size_bytes"),
    [("s3", PART_BYTES), ("s3", PART_BYTES + 1), ("s3", 2 * PART_BYTES), ("az", PART_BYTES + 1)],
)
def test_sizes_around_a_part(server, request, size_bytes):
    store = once(request.getfixturevalue(server))
    data = os.urandom(size_bytes)
    store.put("k", BytesBody(data))
    assert store.head("k").size_bytes == size_bytes
    assert store.get("k") == data


@pytest.mark.parametrize("real_bytes", [PART_BYTES * 2, PART_BYTES * 3 + 5, 5])
@pytest.mark.parametrize("operation", ["put", "put_if_absent"])
def test_a_body_of_another_size_than_it_said_becomes_no_object(s3, operation, real_bytes):
    url = s3.fresh_url()
    store = open_store(url, s3.storage_options)
    body = Changing(PART_BYTES * 2 + 7, real_bytes=real_bytes)
    with pytest.raises(FileChangedError):
        getattr(store, operation)("k", body)
    assert list(store.list()) == []
    assert unfinished_uploads(s3, url) == []


def test_a_large_create_goes_in_parts_and_stays_create_only(s3):
    url = s3.fresh_url()
    store = open_store(url, s3.storage_options)
    data = os.urandom(65 * _MIB)  # parts that change places would show
    store.put_if_absent("k", BytesBody(data))
    assert store.get("k") == data
    with pytest.raises(AlreadyExistsError):
        store.put_if_absent("k", BytesBody(data[::-1]))
    assert store.get("k") == data
    with pytest.raises(FileChangedError):
        store.put_if_absent("new", Changing(65 * _MIB, real_bytes=_MIB))
    assert [info.key for info in store.list()] == ["k"]
    assert unfinished_uploads(s3, url) == []


def test_azure_refuses_a_create_that_does_not_fit_one_request(az):
    store = once(az)
    with pytest.raises(UnfencedStoreError, match="atomically"):
        store.put_if_absent("k", Changing(257 * _MIB, real_bytes=0))


# -- a bad line ------------------------------------------------------------------------------------------------------


def test_a_lost_part_is_sent_again_alone(s3, fault_proxy):
    line = fault_proxy(s3)
    store = once(line)
    line.proxy.add(ResetUpload(_MIB), contains="partNumber=2", times=1)
    data = os.urandom(3 * PART_BYTES)
    store.put("k", BytesBody(data))
    parts = [request.query.split("&")[0] for request in line.proxy.seen(contains="partNumber=")]
    assert sorted(parts) == ["partNumber=1", "partNumber=2", "partNumber=2", "partNumber=3"]
    assert store.get("k") == data


def test_an_upload_that_fails_for_good_leaves_nothing_behind(s3, fault_proxy):
    line = fault_proxy(s3)
    url = line.fresh_url()
    store = open_store(url, line.storage_options)
    line.proxy.add(Answer(403), contains="partNumber=2")
    with pytest.raises(PermissionDeniedError):
        store.put("k", BytesBody(bytes(3 * PART_BYTES)))
    line.proxy.heal()
    assert list(store.list()) == []
    assert unfinished_uploads(line, url) == []


@pytest.mark.parametrize("size_bytes", [1000, PART_BYTES + 1])
def test_a_bit_flipped_on_the_line_is_not_stored(s3, fault_proxy, size_bytes):
    line = fault_proxy(s3)
    store = once(line)
    line.proxy.add(FlipUpload(500), method="PUT", times=1, when=lambda r: int(r.headers["content-length"]) > 500)
    with pytest.raises(TransientStoreError):
        store.put("k", BytesBody(os.urandom(size_bytes)))
    with pytest.raises(ObjectNotFoundError):
        store.head("k")


def test_a_download_that_breaks_off_is_never_taken_for_whole(s3, fault_proxy):
    line = fault_proxy(s3)
    store = once(line)
    data = os.urandom(6 * _MIB)
    store.put("k", data)
    line.proxy.add(Truncate(4 * _MIB), method="GET", times=1)
    with pytest.raises(TransientStoreError):
        store.get("k")
    assert store.get("k") == data


def test_a_lost_answer_to_a_create_is_unknown_and_sent_once(s3, fault_proxy):
    line = fault_proxy(s3)
    store = once(line)
    line.proxy.add(LoseAnswer(), method="PUT")
    with pytest.raises(UnknownOutcomeError):
        store.put_if_absent("k", b"1")
    assert len(line.proxy.seen(method="PUT")) == 1
    assert store.get("k") == b"1"


@pytest.mark.parametrize("operation", ["put", "head", "list", "delete"])
def test_a_lost_answer_to_anything_else_is_worth_a_second_try(s3, fault_proxy, operation):
    line = fault_proxy(s3)
    store = once(line)
    store.put("k", b"1")
    line.proxy.add(LoseAnswer())
    with pytest.raises(RemoteUnreachableError):
        _OPERATIONS[operation](store)
    assert len(line.proxy.seen()) == 2


@pytest.mark.parametrize("status", [500, 503, 429])
@pytest.mark.parametrize("operation", ["put", "head", "list", "delete"])
def test_a_busy_server_is_transient_and_its_wish_is_kept(s3, fault_proxy, status, operation):
    line = fault_proxy(s3)
    line.proxy.add(Answer(status, retry_after_s=3))
    with pytest.raises(TransientStoreError) as caught:
        _OPERATIONS[operation](once(line))
    assert str(status) in str(caught.value)
    assert caught.value.retry_after_s == 3


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (500, "InternalError", UnknownOutcomeError),
        (503, "", UnknownOutcomeError),
        (409, "ConditionalRequestConflict", (UnknownOutcomeError, AlreadyExistsError)),
        (503, "SlowDown", TransientStoreError),
        (429, "", TransientStoreError),
        (412, "PreconditionFailed", AlreadyExistsError),
        (501, "NotImplemented", StoreError),
        (403, "AccessDenied", PermissionDeniedError),
    ],
)
def test_what_an_answer_to_a_create_means(s3, fault_proxy, status, code, expected):
    line = fault_proxy(s3)
    body = f"<Error><Code>{code}</Code><Message>m</Message></Error>".encode() if code else b""
    line.proxy.add(Answer(status, body=body))
    with pytest.raises(expected):
        once(line).put_if_absent("k", b"1")
    assert len(line.proxy.seen()) == 1


# -- what a refusal means --------------------------------------------------------------------------------------------

_REFUSALS = [
    (403, "AccessDenied", "", PermissionDeniedError, "no permission"),
    (403, "InvalidAccessKeyId", "", CredentialsError, "refused"),
    (403, "SignatureDoesNotMatch", "", CredentialsError, "refused"),
    (400, "ExpiredToken", "", CredentialsError, "have expired"),
    (403, "RequestTimeTooSkewed", "", ConfigurationError, "clock"),
    (404, "NoSuchBucket", "", BucketNotFoundError, "does not exist"),
    (400, "AuthorizationHeaderMalformed", "<Region>eu-west-3</Region>", ConfigurationError, "region eu-west-3"),
    (301, "PermanentRedirect", "<Endpoint>b.s3.eu-west-3.amazonaws.com</Endpoint>", ConfigurationError, "region"),
]


@pytest.mark.parametrize("operation", ["get", "put", "put_if_absent", "head", "list", "delete"])
@pytest.mark.parametrize(("status", "code", "more", "expected", "words"), _REFUSALS, ids=[row[1] for row in _REFUSALS])
def test_refusals_mean_the_same_in_every_operation(s3, fault_proxy, operation, status, code, more, expected, words):
    line = fault_proxy(s3)
    body = f"<Error><Code>{code}</Code><Message>why it is so</Message>{more}</Error>".encode()
    line.proxy.add(Answer(status, body=body))
    with pytest.raises(ArtifactSyncError) as caught:
        _OPERATIONS[operation](once(line))
    assert type(caught.value) is expected
    assert words in str(caught.value)
    assert caught.value.hint
    assert caught.value.url.startswith("s3://")


@pytest.mark.parametrize(
    ("server", "operation"),
    [
        *(("s3", operation) for operation in _OPERATIONS),
        *(
            ("az", operation) for operation in _OPERATIONS if operation != "delete"
        ),  # Azure finds nothing wrong with that
        ("moto_s3", "put"),
        ("moto_s3", "delete"),
    ],
)
def test_a_missing_bucket_is_named(server, request, operation):
    cloud = request.getfixturevalue(server)
    url = cloud.missing_bucket()
    with pytest.raises(BucketNotFoundError, match=url) as caught:
        _OPERATIONS[operation](open_store(f"{url}/prefix", cloud.storage_options))
    assert caught.value.exit_code == 2


def test_a_service_that_knows_no_such_checksum_gets_none(s3, fault_proxy):
    line = fault_proxy(s3)
    store = once(line)
    body = b"<Error><Code>NotImplemented</Code><Message>this kind of checksum is not implemented</Message></Error>"
    line.proxy.add(Answer(501, body=body), when=lambda request: any("checksum" in name for name in request.headers))
    store.put("small", b"1")
    store.put("large", BytesBody(bytes(PART_BYTES + 1)))
    store.put_if_absent("record", b"1")
    assert {info.key for info in store.list()} == {"small", "large", "record"}
    assert len([r for r in line.proxy.seen(method="PUT") if r.status == 501]) == 1


# -- keys ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("server", ["s3", "moto_s3"])
def test_keys_are_the_same_for_other_clients(server, request):
    cloud = request.getfixturevalue(server)
    url = cloud.fresh_url()
    store, client = open_store(url, cloud.storage_options), boto(cloud)
    keys = [
        "a b",
        "100%",
        "a%20b",
        "a%2Fb",
        "a#b",
        "ü",
        "e\u0301",
        "a~b",
        "a*b",
        "a?b=c&d",
        "a+b",
        "[x]{y}",
        "😀",
        "a:b@c",
    ]
    for key in keys:
        store.put(f"ours/{key}", key.encode())
        client.put_object(**where(url, f"theirs/{key}"), Body=key.encode())
    assert sorted(info.key for info in store.list()) == sorted(
        f"{who}/{key}" for who in ("ours", "theirs") for key in keys
    )
    for key in keys:
        assert client.get_object(**where(url, f"ours/{key}"))["Body"].read() == key.encode()
        assert store.get(f"theirs/{key}") == key.encode()


@pytest.mark.parametrize("server", ["s3", "moto_s3", "az"])
@pytest.mark.parametrize("key", ["", "a//b", "a/../b", "./a", "/a", "a/", "a\nb", "a\x00b", "a\x7fb"])
def test_keys_that_would_be_changed_are_refused(server, request, key):
    store = once(request.getfixturevalue(server))
    for operation in (store.get, store.head, lambda k: store.put(k, b"1"), lambda k: store.put_if_absent(k, b"1")):
        with pytest.raises(UnsafeKeyError):
            operation(key)
    assert list(store.list()) == []


def test_hostile_keys_come_through_listings_as_they_are_and_can_be_deleted(moto_s3):
    url = moto_s3.fresh_url()
    store, client = open_store(url, moto_s3.storage_options), boto(moto_s3)
    keys = ["a//b", "a/../b", "a/./b", "folder/", "a\x01b", "plain"]
    for key in keys:
        client.put_object(**where(url, key), Body=b"x")
    assert [info.key for info in store.list()] == sorted(keys)
    assert [info.key for info in store.list("a/")] == ["a/../b", "a/./b", "a//b"]
    store.delete(keys)
    assert list(store.list()) == []


def test_the_marker_object_of_a_folder_is_not_in_it(moto_s3):
    url = moto_s3.fresh_url()
    boto(moto_s3).put_object(**where(url), Body=b"")
    store = open_store(url, moto_s3.storage_options)
    store.put("a", b"1")
    assert [info.key for info in store.list()] == ["a"]


@pytest.mark.parametrize("server", ["s3", "moto_s3"])
def test_listing_after_a_key_is_exact_whatever_the_services_order(server, request):
    store = once(request.getfixturevalue(server))
    keys = ["a", "a-b", "a.b", "a/b-c", "a/b/c", "a0", "b-/c", "b/-", "b/c"]
    stored = [key for key in keys if key != "a"]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda key: store.put(key, b""), stored))
    for prefix, after in itertools.product(["", "a", "a/", "b"], [*keys, "a/", "b", "c", "a-", "b/"]):
        expected = sorted(key for key in stored if key.startswith(prefix) and key > after)
        assert sorted(info.key for info in store.list(prefix, start_after=after)) == expected, (prefix, after)


# -- fork ------------------------------------------------------------------------------------------------------------


def test_a_forked_child_gets_an_error_and_does_not_hang():
    code = """
import os
from artifactsync.errors import ConfigurationError
from artifactsync.stores import open_store
store = open_store("memory://fork")
store.put("a", b"1")
if os.fork() == 0:
    try:
        store.get("a")
    except ConfigurationError as error:
        os._exit(42 if "spawn" in error.hint else 1)
    os._exit(2)
print(os.waitstatus_to_exitcode(os.wait()[1]), store.get("a"))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["42", "b'1'"]


def test_a_child_forked_before_the_first_use_works():
    code = """
import os
from artifactsync.stores import open_store
if os.fork() == 0:
    store = open_store("memory://fork")
    store.put("a", b"1")
    os._exit(42 if store.get("a") == b"1" else 1)
print(os.waitstatus_to_exitcode(os.wait()[1]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["42"]
