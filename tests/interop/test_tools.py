"""Everyone's own tools read what artifactsync wrote, and artifactsync reads what they put."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage

from artifactsync.stores import open_store
from artifactsync.testing.store_contract import PatternBody

BIN = Path(sys.executable).parent
SIZES = {"empty.txt": 0, "small.txt": 4_321, "a folder/with ünï + 100%.bin": 70_000, "large.bin": 20 * 2**20 + 7}
"""Paths and sizes: the large one is multipart for every tool."""


class AwsCli:
    """`aws s3 cp`."""

    command = (BIN / "aws", "s3", "cp", "--only-show-errors", "--no-progress")

    def put(self, local, url):
        run(self.environment, *self.command, local, url)

    def get(self, url, local):
        run(self.environment, *self.command, url, local)

    def __init__(self, cloud, tmp_path):
        self.environment = cloud.environment


class S5cmd(AwsCli):
    """s5cmd reads its endpoint from an option, and takes wildcards in sources unless told otherwise."""

    def __init__(self, cloud, tmp_path):
        super().__init__(cloud, tmp_path)
        self.command = (BIN / "s5cmd", "--endpoint-url", cloud.endpoint_url, "--log", "error", "cp", "--raw")


class Rclone(AwsCli):
    """`rclone copyto`, with the remote in its environment."""

    def __init__(self, cloud, tmp_path):
        options = cloud.storage_options
        self.environment = {
            "RCLONE_CONFIG_CLOUD_TYPE": "s3",
            "RCLONE_CONFIG_CLOUD_PROVIDER": "SeaweedFS",
            "RCLONE_CONFIG_CLOUD_ACCESS_KEY_ID": options["key"],
            "RCLONE_CONFIG_CLOUD_SECRET_ACCESS_KEY": options["secret"],
            "RCLONE_CONFIG_CLOUD_ENDPOINT": cloud.endpoint_url,
            "RCLONE_CONFIG_CLOUD_REGION": options["region"],
            "RCLONE_S3_UPLOAD_CUTOFF": "8M",
            "RCLONE_S3_CHUNK_SIZE": "8M",
        }

    def put(self, local, url):
        run(self.environment, BIN / "rclone", "copyto", local, url.replace("s3://", "cloud:"))

    def get(self, url, local):
        run(self.environment, BIN / "rclone", "copyto", url.replace("s3://", "cloud:"), local)


class GoogleClient:
    """google-cloud-storage by hand, uploading in chunks (the emulator cannot answer chunks of empty downloads)."""

    def __init__(self, cloud, tmp_path):
        self.client = storage.Client(
            project="test", credentials=AnonymousCredentials(), client_options={"api_endpoint": cloud.endpoint_url}
        )
        self.client._bucket_metadata_cache = None  # its thread would leave a socket open

    def _blob(self, url, **options):
        bucket, _, name = url.removeprefix("gs://").partition("/")
        return self.client.bucket(bucket).blob(name, **options)

    def put(self, local, url):
        self._blob(url, chunk_size=2**20).upload_from_filename(str(local))

    def get(self, url, local):
        self._blob(url).download_to_filename(str(local))


TOOLS = {"aws": ("s3", AwsCli), "s5cmd": ("s3", S5cmd), "rclone": ("s3", Rclone), "google": ("gcs", GoogleClient)}


def run(environment, *command):
    words, environment = [str(part) for part in command], {**os.environ, **environment}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"


def sha256(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


@pytest.fixture(params=TOOLS)
def cloud_and_tool(request, tmp_path):
    fixture, make = TOOLS[request.param]
    cloud = request.getfixturevalue(fixture)
    tool = make(cloud, tmp_path)
    yield cloud, tool
    if isinstance(tool, GoogleClient):
        tool.client.close()


def test_what_artifactsync_wrote_is_read_by_the_tool(cloud_and_tool, tmp_path):
    cloud, tool = cloud_and_tool
    url = cloud.fresh_url()
    store = open_store(url, cloud.storage_options)
    for path, size_bytes in SIZES.items():
        body = PatternBody(size_bytes, seed=size_bytes)
        store.put(path, body)
        local = tmp_path / "down"
        tool.get(f"{url}/{path}", local)
        assert sha256(local) == hashlib.sha256(body.read()).hexdigest(), path
        local.unlink()
    store.close()


def test_what_the_tool_put_is_listed_and_read_by_artifactsync(cloud_and_tool, tmp_path):
    cloud, tool = cloud_and_tool
    url = cloud.fresh_url()
    store = open_store(url, cloud.storage_options)
    local = tmp_path / "up"
    for path, size_bytes in SIZES.items():
        data = PatternBody(size_bytes, seed=size_bytes + 1).read()
        local.write_bytes(data)
        tool.put(local, f"{url}/{path}")
        assert store.head(path).size_bytes == size_bytes, path
        assert store.get(path) == data, path
        assert store.get(path, start=size_bytes // 2, end=size_bytes - 1) == data[size_bytes // 2 : size_bytes - 1]
    assert {info.key: info.size_bytes for info in store.list()} == SIZES
    assert store.list_folders() == ["a folder"]
    store.close()


def test_many_files_of_a_folder(cloud_and_tool, tmp_path):
    """A folder goes up with the tool's own recursion and comes down as it was, where the tool has one."""
    cloud, tool = cloud_and_tool
    url = cloud.fresh_url()
    files = {f"logs/{n // 5}/{n}.txt": f"line {n}\n".encode() * (n + 1) for n in range(25)}
    store = open_store(url, cloud.storage_options)
    for path, data in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(data)
    if isinstance(tool, GoogleClient):
        for path in files:
            tool.put(tmp_path / path, f"{url}/{path}")
    elif isinstance(tool, Rclone):
        tool.environment["RCLONE_TRANSFERS"] = "4"
        run(tool.environment, BIN / "rclone", "copy", tmp_path, url.replace("s3://", "cloud:"))
    elif isinstance(tool, S5cmd):
        run(tool.environment, *tool.command[:-1], f"{tmp_path}/", f"{url}/")
    else:
        run(tool.environment, *tool.command, "--recursive", tmp_path, url)
    assert {info.key: store.get(info.key) for info in store.list()} == files
    store.close()
