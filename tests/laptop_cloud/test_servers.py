from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import boto3
import google.auth
import obstore
import programs
import psutil
import pytest
import servers
from botocore.exceptions import ClientError
from child_process import free_ports, is_free
from google.auth.exceptions import DefaultCredentialsError
from obstore.exceptions import AlreadyExistsError
from obstore.store import AzureStore
from signing import send

S3_FIXTURES = ["s3", "moto_s3", "localstack_s3"]
FOLDER = Path(servers.__file__).parent


def s3_client(options, **changed):
    options = {**options, **changed}
    return boto3.client(
        "s3",
        aws_access_key_id=options["key"],
        aws_secret_access_key=options["secret"],
        endpoint_url=options["endpoint_url"],
        region_name=options["region"],
    )


def split(url):
    bucket, _, prefix = url.partition("://")[2].partition("/")
    return bucket, prefix


@pytest.mark.parametrize("fixture", [*S3_FIXTURES, "gcs", "az"])
def test_server_listens_on_loopback_alone(fixture, request):
    process = psutil.Process(request.getfixturevalue(fixture).server.pid)
    listening = [
        connection.laddr.ip
        for one in [process, *process.children(recursive=True)]
        for connection in one.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert listening
    assert set(listening) == {"127.0.0.1"}


@pytest.mark.parametrize("fixture", S3_FIXTURES)
def test_s3_takes_a_conditional_put_once(fixture, request):
    cloud = request.getfixturevalue(fixture)
    client = s3_client(cloud.storage_options)
    bucket, prefix = split(cloud.fresh_url())
    client.put_object(Bucket=bucket, Key=f"{prefix}/once", Body=b"first", IfNoneMatch="*")
    with pytest.raises(ClientError, match="PreconditionFailed"):
        client.put_object(Bucket=bucket, Key=f"{prefix}/once", Body=b"second", IfNoneMatch="*")
    assert client.get_object(Bucket=bucket, Key=f"{prefix}/once")["Body"].read() == b"first"


def test_seaweedfs_refuses_wrong_credentials(s3):
    with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
        s3_client(s3.storage_options, secret="wrong").list_buckets()
    with pytest.raises(ClientError, match="InvalidAccessKeyId"):
        s3_client(s3.storage_options, key="wrong").list_buckets()


def test_azure_takes_a_conditional_put_once(az):
    container, prefix = split(az.fresh_url())
    options = az.storage_options
    store = AzureStore(
        container,
        account_name=options["account_name"],
        account_key=options["account_key"],
        endpoint=options["endpoint_url"],
        client_options={"allow_http": True},
    )
    obstore.put(store, f"{prefix}/once", b"first", mode="create")
    with pytest.raises(AlreadyExistsError):
        obstore.put(store, f"{prefix}/once", b"second", mode="create")
    assert bytes(obstore.get(store, f"{prefix}/once").bytes()) == b"first"


def test_fresh_urls_differ_and_missing_buckets_are_missing(s3, gcs):
    assert len({s3.fresh_url(), s3.fresh_url(), gcs.fresh_url(), gcs.fresh_url()}) == 4
    with pytest.raises(ClientError, match="NoSuchBucket"):
        s3_client(s3.storage_options).list_objects_v2(Bucket=split(s3.missing_bucket())[0])
    assert send("GET", f"{gcs.endpoint_url}/storage/v1/b/{split(gcs.missing_bucket())[0]}") == 404


def test_the_users_own_clouds_are_out_of_reach():
    assert boto3.Session().get_credentials() is None
    with pytest.raises(DefaultCredentialsError):
        google.auth.default()
    ours = {name: value for name, value in os.environ.items() if name.startswith(("ARTIFACTSYNC_", "SLURM_"))}
    assert ours == {"ARTIFACTSYNC_NOTICE": "off"}


def test_stopping_leaves_nothing():
    server = servers.FakeGCS()
    server.make_bucket("bucket")
    process = psutil.Process(server.pid)
    server.stop()
    server.stop()
    assert not process.is_running()
    assert not server.folder.exists()
    assert is_free(server.port)


def test_a_server_that_died_under_the_tests_is_named():
    with servers.FakeGCS() as server:
        server.check()
        server.kill()
        with pytest.raises(servers.ServerError, match=r"fake-gcs-server.* ended with code -9"):
            server.check()


def test_seaweedfs_has_all_its_parts(s3):
    # Without one of them it waits two minutes and then ends itself, in the middle of somebody's tests.
    log = s3.server.folder / "server.log"
    deadline = time.monotonic() + 30
    while "All enabled components are running" not in log.read_text():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


def test_data_in_a_given_folder_survives_a_power_cut(tmp_path):
    with servers.SeaweedFS(tmp_path / "data") as server:
        bucket, _ = split(server.make_bucket("kept"))
        s3_client(server.storage_options).put_object(Bucket=bucket, Key="k", Body=b"kept")
        server.kill()
    with servers.SeaweedFS(tmp_path / "data") as server:
        assert s3_client(server.storage_options).get_object(Bucket="kept", Key="k")["Body"].read() == b"kept"


def test_servers_die_with_a_killed_parent():
    program = (
        f"import sys; sys.path.insert(0, {str(FOLDER)!r})\n"
        "import servers\n"
        "started = servers.SeaweedFS(), servers.FakeGCS(), servers.Moto()\n"
        "print(*(server.pid for server in started), *(server.folder for server in started), flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        words = parent.stdout.readline().decode().split()
        processes = [psutil.Process(int(word)) for word in words[:3]]
        parent.send_signal(signal.SIGKILL)
    _, alive = psutil.wait_procs(processes, timeout=10)
    for process in alive:
        process.kill()
    for folder in words[3:]:
        subprocess.run(["rm", "-rf", folder], check=True)
    assert not alive


def test_a_taken_port_is_a_one_line_error():
    with servers.FakeGCS() as first, pytest.raises(servers.ServerError, match=f"port {first.port} is taken"):
        servers.FakeGCS(port=first.port)


def test_a_server_that_does_not_start_is_a_one_line_error_with_its_last_words(tmp_path):
    (tmp_path / "filerldb2").write_text("a file where SeaweedFS wants a folder")
    with pytest.raises(servers.ServerError, match=r"weed ended with code .*filerldb2 Writable") as caught:
        servers.SeaweedFS(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_missing_program_is_a_clear_error(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(servers.ServerError, match=r"Azurite needs Node\.js with npm"):
        programs.azurite()
    monkeypatch.setattr(programs.sysconfig, "get_path", lambda name: "")
    with pytest.raises(servers.ServerError, match=r'pip install "artifactsync\[cloud\]"'):
        servers.SeaweedFS()


def test_an_install_that_failed_is_made_again(tmp_path):
    target = tmp_path / "cache" / "thing"
    with pytest.raises(servers.ServerError, match="false install failed: it said nothing"):
        install(target, "false")
    install(target, "true")
    with programs._installed_once(target) as is_done:
        assert is_done


def install(target, program):
    with programs._installed_once(target) as is_done:
        assert not is_done
        programs._install([program, "install"])


def test_free_ports_are_free_and_differ():
    ports = free_ports(20, offset=10_000)
    assert len(set(ports)) == 20
    assert all(is_free(port) and is_free(port + 10_000) for port in ports)
