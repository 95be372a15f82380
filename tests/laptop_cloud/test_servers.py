from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import servers
from child_process import ChildProcess, ServerError, free_ports, is_free

S3_FIXTURES = ["s3", "moto_s3", "localstack_s3"]
ALL = [servers.SeaweedFS, servers.Moto, servers.LocalStack, servers.FakeGCS, servers.Azurite]
LOCALSTACK = Path(servers.__file__).parent


def listening_addresses(pid):
    found = set()
    for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
        found |= {c.laddr.ip for c in process.net_connections(kind="inet") if c.status == psutil.CONN_LISTEN}
    return found


@pytest.mark.parametrize("fixture", S3_FIXTURES)
def test_s3_server_takes_a_conditional_put_once_from_boto3(fixture, request):
    import boto3
    from botocore.exceptions import ClientError

    cloud = request.getfixturevalue(fixture)
    options = cloud.storage_options
    client = boto3.client(
        "s3",
        aws_access_key_id=options["key"],
        aws_secret_access_key=options["secret"],
        endpoint_url=options["endpoint_url"],
        region_name=options["region"],
    )
    bucket, _, prefix = cloud.fresh_url().removeprefix("s3://").partition("/")
    client.put_object(Bucket=bucket, Key=f"{prefix}/once", Body=b"first", IfNoneMatch="*")
    with pytest.raises(ClientError, match="PreconditionFailed"):
        client.put_object(Bucket=bucket, Key=f"{prefix}/once", Body=b"second", IfNoneMatch="*")
    assert client.get_object(Bucket=bucket, Key=f"{prefix}/once")["Body"].read() == b"first"
