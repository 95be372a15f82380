from __future__ import annotations

import contextlib
import http.client
import os
import threading
import time

import boto3
import obstore
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage
from obstore.store import AzureStore

from tests.fault_proxy import (
    Answer,
    BlackHole,
    Delay,
    FaultProxy,
    FlipDownload,
    FlipUpload,
    Hold,
    LoseAnswer,
    ResetDownload,
    ResetUpload,
    Truncate,
)

BYTES = bytes(range(256)) * 2048  # 512 KiB: many pieces, and more than a socket's buffer takes while nobody reads


@pytest.fixture
def line(fault_proxy, gcs):
    """fake-gcs-server behind a proxy: plain HTTP requests need no signature there."""
    return fault_proxy(gcs)


@pytest.fixture
def bucket(line):
    return line.fresh_bucket().removeprefix("gs://")


class Client:
    """One keep-alive connection, no retries."""

    def __init__(self, line, bucket):
        self.connection = http.client.HTTPConnection(line.endpoint_url.removeprefix("http://"), timeout=10)
        self.bucket = bucket

    def send(self, method, path, body=None, headers=None):
        self.connection.request(method, path, body, headers or {})
        answer = self.connection.getresponse()
        return answer.status, answer.headers, answer.read()

    def put(self, key, body=BYTES, headers=None):
        return self.send("POST", f"/upload/storage/v1/b/{self.bucket}/o?uploadType=media&name={key}", body, headers)

    def get(self, key):
        return self.send("GET", f"/storage/v1/b/{self.bucket}/o/{key}?alt=media")


@pytest.fixture
def client(line, bucket):
    client = Client(line, bucket)
    yield client
    client.connection.close()


@pytest.fixture
def behind(gcs, bucket):
    """The same bucket, past the proxy."""
    client = Client(gcs, bucket)
    yield client
    client.connection.close()


def test_signed_requests_pass_unharmed_and_are_recorded(fault_proxy, s3):
    line = fault_proxy(s3)
    bucket, _, prefix = line.fresh_url().removeprefix("s3://").partition("/")
    client = s3_client(line)
    body = os.urandom(3 * 1024 * 1024)
    client.put_object(Bucket=bucket, Key=f"{prefix}/a b+ü", Body=body)
    assert client.get_object(Bucket=bucket, Key=f"{prefix}/a b+ü")["Body"].read() == body
    put, get = line.proxy.seen(contains=prefix)
    assert (put.method, put.status, put.body_bytes >= len(body)) == ("PUT", 200, True)
    assert (get.method, get.status, get.server_status, get.faults) == ("GET", 200, 200, [])
    assert put.at_s < get.at_s


@pytest.mark.parametrize("fixture", ["localstack_s3", "moto_s3"])
def test_signatures_hold_with_every_s3(fault_proxy, request, fixture):
    line = fault_proxy(request.getfixturevalue(fixture))
    bucket, _, key = line.fresh_url().removeprefix("s3://").partition("/")
    s3_client(line).put_object(Bucket=bucket, Key=key, Body=BYTES)
    assert s3_client(line).get_object(Bucket=bucket, Key=key)["Body"].read() == BYTES
    assert [request.status for request in line.proxy.seen()] == [200, 200]


def test_azure_signatures_hold(fault_proxy, az):
    line = fault_proxy(az)
    container, _, key = line.fresh_url().removeprefix("az://").partition("/")
    options = line.storage_options
    store = AzureStore(
        container,
        account_name=options["account_name"],
        account_key=options["account_key"],
        endpoint=options["endpoint_url"],
        client_options={"allow_http": True},
    )
    line.proxy.add(Answer(503), method="PUT", times=1)
    obstore.put(store, key, BYTES)
    assert bytes(obstore.get(store, key).bytes()) == BYTES
    assert [request.status for request in line.proxy.seen(method="PUT")] == [503, 201]


def test_one_connection_serves_many_requests(line, client):
    for number in range(5):
        assert client.put(f"k{number}", b"x" * number)[0] == 200
        assert client.get(f"k{number}")[2] == b"x" * number
    assert client.send("HEAD", f"/storage/v1/b/{client.bucket}")[2] == b""
    assert client.get("missing")[0] == 404
    assert len(line.proxy.seen()) == 12


def test_a_chunked_upload_passes(client):
    assert client.put("chunked", iter([b"one", b"two" * 50_000]))[0] == 200
    assert client.get("chunked")[2] == b"one" + b"two" * 50_000


def test_an_answer_comes_from_the_line_and_asks_nobody(line, client, behind):
    rule = line.proxy.add(Answer(503, retry_after_s=2, body=b"<Error/>"), method="POST", skip=1, times=2)
    answers = [client.put(f"k{number}") for number in range(4)]
    assert [status for status, _, _ in answers] == [200, 503, 503, 200]
    assert answers[1][1]["Retry-After"] == "2"
    assert answers[1][2] == b"<Error/>"
    assert [request.server_status for request in line.proxy.seen(method="POST")] == [200, None, None, 200]
    assert rule.hits == 2
    assert [behind.get(f"k{number}")[0] for number in range(4)] == [200, 404, 404, 200]


def test_a_reset_in_mid_upload_leaves_nothing_behind(line, client, behind):
    line.proxy.add(ResetUpload(after_bytes=100_000), method="POST")
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        client.put("cut")
    assert behind.get("cut")[0] == 404


def test_a_reset_at_the_head(line, client):
    line.proxy.add(ResetUpload())
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        client.get("any")


def test_a_reset_in_mid_download(line, client, behind):
    behind.put("k")
    line.proxy.add(ResetDownload(after_bytes=100_000), method="GET")
    with pytest.raises(ConnectionResetError):
        client.get("k")


def test_a_truncated_answer_ends_in_good_order(line, client, behind):
    behind.put("k")
    line.proxy.add(Truncate(after_bytes=100_000), method="GET")
    with pytest.raises(http.client.IncompleteRead) as caught:
        client.get("k")
    assert caught.value.partial == BYTES[:100_000]


@pytest.mark.parametrize("at_byte", [0, 65_535, 65_536, 300_000, len(BYTES) - 1])
def test_a_flipped_byte_of_a_download(line, client, behind, at_byte):
    behind.put("k")
    line.proxy.add(FlipDownload(at_byte), method="GET")
    _, _, body = client.get("k")
    assert [i for i in range(len(BYTES)) if body[i] != BYTES[i]] == [at_byte]


def test_a_flipped_byte_of_an_upload(line, client, behind):
    line.proxy.add(FlipUpload(200_000), method="POST")
    assert client.put("k")[0] == 200
    body = behind.get("k")[2]
    assert [i for i in range(len(BYTES)) if body[i] != BYTES[i]] == [200_000]


def test_seaweedfs_refuses_an_upload_that_was_flipped_on_the_way(fault_proxy, s3):
    line = fault_proxy(s3)
    bucket, _, prefix = line.fresh_url().removeprefix("s3://").partition("/")
    line.proxy.add(FlipUpload(1_000), method="PUT")
    with pytest.raises(ClientError, match=r"Checksum|Digest|SHA256"):
        s3_client(line).put_object(Bucket=bucket, Key=prefix, Body=BYTES, ChecksumAlgorithm="CRC32")


def test_a_lost_answer_was_applied(line, client, behind):
    line.proxy.add(LoseAnswer(), method="POST", times=1)
    with pytest.raises(ConnectionResetError):
        client.put("k")
    assert behind.get("k")[2] == BYTES
    (request,) = line.proxy.seen(method="POST")
    assert (request.status, request.server_status) == (None, 200)


def test_delay_and_latency(line, client):
    line.proxy.add(Delay(0.1), contains="slow")
    line.proxy.latency_s = 0.1
    started = time.monotonic()
    client.get("slow")
    assert time.monotonic() - started >= 0.2


def test_bandwidth_is_shared_by_all_connections(line, client, behind):
    behind.put("k")
    line.proxy.bytes_per_s = 4 * len(BYTES)
    others = [Client(line, client.bucket) for _ in range(2)]
    threads = [threading.Thread(target=other.get, args=["k"]) for other in others]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - started >= 0.45
    for other in others:
        other.connection.close()


def test_a_black_hole_never_answers(line, client):
    line.proxy.add(BlackHole())
    client.connection.timeout = 0.2
    with pytest.raises(TimeoutError):
        client.put("k")
    assert line.proxy.seen()[0].status is None


def test_a_held_request_goes_on_when_released(line, client):
    hold = Hold()
    line.proxy.add(hold, method="POST")
    statuses = []
    thread = threading.Thread(target=lambda: statuses.append(client.put("k")[0]))
    thread.start()
    (request,) = line.proxy.wait_for(1, method="POST")
    assert request.status is None
    hold.released.set()
    thread.join()
    assert statuses == [200]


def test_waiting_for_a_request_that_never_comes(line):
    with pytest.raises(TimeoutError, match="no 1 requests"):
        line.proxy.wait_for(1, timeout_s=0.05, method="PUT")


def test_an_outage_ends_with_heal(line, client):
    assert client.put("k")[0] == 200
    line.proxy.cut()
    for _ in range(2):  # the open connection, then a new one
        with pytest.raises((ConnectionResetError, BrokenPipeError, http.client.RemoteDisconnected)):
            client.get("k")
        client.connection.close()
    line.proxy.heal()
    assert client.get("k")[2] == BYTES


def test_chances_depend_on_the_seed_alone(fault_proxy, gcs):
    def statuses(seed):
        line = fault_proxy(gcs, seed=seed)
        line.proxy.add(Answer(500), probability=0.5)
        with contextlib.closing(Client(line, "any").connection) as connection:
            client = Client(line, "any")
            client.connection = connection
            return [client.get("k")[0] for _ in range(24)]

    assert statuses(1) == statuses(1)
    assert statuses(1) != statuses(2)
    assert set(statuses(1)) == {404, 500}


def test_expect_100_continue_is_served(line, client):
    connection = client.connection
    path = f"/upload/storage/v1/b/{client.bucket}/o?uploadType=media&name=expected"
    connection.putrequest("POST", path)
    connection.putheader("Content-Length", "5")
    connection.putheader("Expect", "100-continue")
    connection.endheaders()
    assert connection.sock.recv(1024).startswith(b"HTTP/1.1 100 ")
    connection.send(b"hello")
    assert connection.getresponse().read()
    assert line.proxy.seen(contains="expected")[0].status == 200


def test_closing_with_requests_under_way_neither_hangs_nor_leaks(gcs):
    proxy = FaultProxy(gcs.server.origin)
    proxy.add(BlackHole())
    connection = http.client.HTTPConnection(proxy.url.removeprefix("http://"), timeout=10)
    connection.request("GET", "/")
    proxy.wait_for(1)
    before = time.monotonic()
    proxy.close()
    with pytest.raises((ConnectionResetError, http.client.RemoteDisconnected)):
        connection.getresponse()
    connection.close()
    assert time.monotonic() - before < 5
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("fault-proxy-line")]


def test_google_client_stays_on_the_line_and_retries_a_resumable_upload(line, bucket):
    client = storage.Client(
        project="laptop", credentials=AnonymousCredentials(), client_options={"api_endpoint": line.endpoint_url}
    )
    line.proxy.add(Answer(503), method="PUT", skip=1, times=1)
    with client.bucket(bucket).blob("big").open("wb", chunk_size=256 * 1024) as upload:
        upload.write(BYTES * 2)
    assert client.bucket(bucket).blob("big").download_as_bytes() == BYTES * 2
    assert client.bucket(bucket).get_blob("big").download_as_bytes() == BYTES * 2  # through its mediaLink
    puts = line.proxy.seen(method="PUT")
    assert len(puts) >= 5
    assert [put.server_status for put in puts].count(None) == 1
    assert len(line.proxy.seen(method="GET", contains="alt=media")) == 2
    client.close()


def s3_client(cloud):
    options = cloud.storage_options
    return boto3.client(
        "s3",
        aws_access_key_id=options["key"],
        aws_secret_access_key=options["secret"],
        endpoint_url=options["endpoint_url"],
        region_name=options["region"],
        config=Config(retries={"total_max_attempts": 1}),
    )
