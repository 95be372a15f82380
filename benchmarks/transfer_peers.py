"""The contenders of ``transfers``: how each brings files to a store, and back.

Those in Python are classes with ``up`` and ``down``, run in a process of their own that is started once; those that
are programs are command lines. Each uses its defaults, but for what makes it work with this endpoint.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks import beside

BUCKET = "bucket"
KEYS = {
    "AWS_ACCESS_KEY_ID": "k",
    "AWS_SECRET_ACCESS_KEY": "s",
    "AWS_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
_CHUNK_BYTES = 8 * 2**20
_AT_A_TIME = 8


class Artifactsync:
    """Uploads are hashed (sha256) and carry CRC64NVME or CRC32C; downloads are verified and made durable."""

    scheme = "s3"

    def __init__(self, endpoint_url: str, ca_file: str | None) -> None:
        from artifactsync import RemoteUploaderDownloader
        from artifactsync.stores import open_store

        options = self.options(endpoint_url, ca_file)
        self._uploader = RemoteUploaderDownloader(f"{self.scheme}://{BUCKET}", run_name="r", storage_options=options)
        self._store = open_store(f"{self.scheme}://{BUCKET}", options)
        self._hashes: dict[Path, str] = {}

    def options(self, endpoint_url: str, ca_file: str | None) -> dict[str, Any]:
        more = {"verify": ca_file} if ca_file else {}
        return {"endpoint_url": endpoint_url, "key": "k", "secret": "s", **more}

    def prepare(self, folder: Path) -> None:
        for path in folder.iterdir():
            self._hashes[path] = hashlib.sha256(path.read_bytes()).hexdigest()

    def up(self, folder: Path, prefix: str) -> None:
        for path in folder.iterdir():
            self._uploader.upload_file(f"{prefix}/{path.name}", path, overwrite=True)
        self._uploader.wait()

    def down(self, folder: Path, destination: Path) -> None:
        from artifactsync.transfer.pull import PullItem, pull_files

        items = [
            PullItem(
                key=f"{folder.name}/{path.name}",
                path=path.name,
                size_bytes=path.stat().st_size,
                sha256=self._hashes[path],
            )
            for path in folder.iterdir()
        ]
        pull_files(self._store, items, destination)


class ArtifactsyncGcs(Artifactsync):
    scheme = "gs"

    def options(self, endpoint_url: str, ca_file: str | None) -> dict[str, Any]:  # noqa: ARG002 - http alone
        return {"endpoint_url": endpoint_url, "token": "anon"}


class _EachInThreads:
    """One file after the other, eight at a time."""

    def prepare(self, folder: Path) -> None:
        pass

    def up(self, folder: Path, prefix: str) -> None:
        self._all(self.put, [(path, f"{prefix}/{path.name}") for path in folder.iterdir()])

    def down(self, folder: Path, destination: Path) -> None:
        self._all(self.get, [(f"{folder.name}/{path.name}", destination / path.name) for path in folder.iterdir()])

    def put(self, path: Path, key: str) -> None:
        """Upload one file."""

    def get(self, key: str, path: Path) -> None:
        """Download one file."""

    def _all(self, call: Any, items: list[Any]) -> None:
        with ThreadPoolExecutor(_AT_A_TIME) as threads:
            list(threads.map(lambda item: call(*item), items))


class Boto3(_EachInThreads):
    config: Any = None

    def __init__(self, endpoint_url: str, ca_file: str | None) -> None:
        import boto3
        from botocore.config import Config

        more = Config(max_pool_connections=80)  # or its threads quarrel about ten connections
        self._client = boto3.client("s3", endpoint_url=endpoint_url, verify=ca_file, config=more)

    def put(self, path: Path, key: str) -> None:
        self._client.upload_file(str(path), BUCKET, key, Config=self.config)

    def get(self, key: str, path: Path) -> None:
        self._client.download_file(BUCKET, key, str(path), Config=self.config)


class Crt(_EachInThreads):
    """boto3's transfer manager on awscrt, made as boto3 makes it, but for TLS and its authority."""

    def __init__(self, endpoint_url: str, ca_file: str | None) -> None:
        import botocore.session
        from s3transfer import crt

        session = botocore.session.Session()
        credentials = crt.BotocoreCRTCredentialsWrapper(session.get_credentials())
        self._manager = crt.CRTTransferManager(
            crt.create_s3_crt_client(
                "us-east-1",
                credentials.to_crt_credentials_provider(),
                use_ssl=ca_file is not None,
                verify=ca_file,
            ),
            crt.BotocoreCRTRequestSerializer(session, {"region_name": "us-east-1", "endpoint_url": endpoint_url}),
        )

    def up(self, folder: Path, prefix: str) -> None:
        self._wait([self._manager.upload(str(path), BUCKET, f"{prefix}/{path.name}") for path in folder.iterdir()])

    def down(self, folder: Path, destination: Path) -> None:
        names = [path.name for path in folder.iterdir()]
        self._wait([self._manager.download(BUCKET, f"{folder.name}/{name}", str(destination / name)) for name in names])

    def _wait(self, futures: list[Any]) -> None:
        for future in futures:
            future.result()


class S3fs(_EachInThreads):
    def __init__(self, endpoint_url: str, ca_file: str | None) -> None:
        import s3fs

        more = {"client_kwargs": {"verify": ca_file}} if ca_file else {}
        self._fs = s3fs.S3FileSystem(key="k", secret="s", endpoint_url=endpoint_url, **more)

    def up(self, folder: Path, prefix: str) -> None:
        paths = list(folder.iterdir())
        self._fs.put([str(path) for path in paths], [f"{BUCKET}/{prefix}/{path.name}" for path in paths])

    def down(self, folder: Path, destination: Path) -> None:
        names = [path.name for path in folder.iterdir()]
        self._fs.get([f"{BUCKET}/{folder.name}/{name}" for name in names], [str(destination / name) for name in names])


class Gcsfs(S3fs):
    def __init__(self, endpoint_url: str, ca_file: str | None) -> None:  # noqa: ARG002 - http alone
        os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"
        import gcsfs

        self._fs = gcsfs.GCSFileSystem(project="p", token="anon", endpoint_url=endpoint_url)


class GoogleCloudStorage(_EachInThreads):
    def __init__(self, endpoint_url: str, ca_file: str | None) -> None:  # noqa: ARG002 - http alone
        from google.auth.credentials import AnonymousCredentials
        from google.cloud import storage

        client = storage.Client("p", AnonymousCredentials(), client_options={"api_endpoint": endpoint_url})
        self._bucket = client.bucket(BUCKET)

    def put(self, path: Path, key: str) -> None:
        self._bucket.blob(key).upload_from_filename(str(path), checksum="crc32c")

    def get(self, key: str, path: Path) -> None:
        self._bucket.blob(key).download_to_filename(str(path))


class Opendal(_EachInThreads):
    def __init__(self, endpoint_url: str, ca_file: str | None) -> None:
        if ca_file is not None:
            os.environ["SSL_CERT_FILE"] = ca_file
        import opendal

        self._operator = opendal.Operator(
            "s3", bucket=BUCKET, endpoint=endpoint_url, region="us-east-1", access_key_id="k", secret_access_key="s"
        )

    def put(self, path: Path, key: str) -> None:
        if path.stat().st_size <= _CHUNK_BYTES:
            self._operator.write(key, path.read_bytes())
            return
        with path.open("rb") as source, self._operator.open(key, "wb", chunk=_CHUNK_BYTES, concurrent=4) as target:
            while data := source.read(_CHUNK_BYTES):
                target.write(data)

    def get(self, key: str, path: Path) -> None:
        with self._operator.open(key, "rb", chunk=_CHUNK_BYTES, concurrent=4) as source, path.open("wb") as target:
            while data := source.read(_CHUNK_BYTES):
                target.write(data)


class OpendalHashed(Opendal):
    """What ours does, with it: the sha256 of what is sent is known, and what was fetched is verified and synced."""

    def prepare(self, folder: Path) -> None:
        self._hashes = {path.name: _sha256(path) for path in folder.iterdir()}

    def put(self, path: Path, key: str) -> None:
        _sha256(path)
        super().put(path, key)

    def get(self, key: str, path: Path) -> None:
        super().get(key, path)
        if _sha256(path) != self._hashes[path.name]:
            raise ValueError(key)
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _sha256(path: Path) -> str:
    from artifactsync.transfer.hashing import hash_file

    return hash_file(path).sha256


PEERS: dict[str, Any] = {
    "artifactsync": Artifactsync,
    "artifactsync gs": ArtifactsyncGcs,
    "boto3": Boto3,
    "boto3 + CRT": Crt,
    "s3fs": S3fs,
    "opendal": Opendal,
    "opendal, sha256 as well": OpendalHashed,
    "google-cloud-storage": GoogleCloudStorage,
    "gcsfs": Gcsfs,
}


def s5cmd(endpoint_url: str, ca_file: str | None, source: str, target: str) -> tuple[list[str], dict[str, str]]:
    words = ["s5cmd", "--endpoint-url", endpoint_url]
    return [*words, "cp", source, target], {"AWS_CA_BUNDLE": ca_file, "SSL_CERT_FILE": ca_file} if ca_file else {}


def rclone(endpoint_url: str, ca_file: str | None, source: str, target: str) -> tuple[list[str], dict[str, str]]:
    remote = f":s3,provider=Other,env_auth=true,region=us-east-1,endpoint='{endpoint_url}':"
    words = [each.replace("s3://", remote).rstrip("*") for each in (source, target)]
    more = ["--ca-cert", ca_file] if ca_file else []
    return ["rclone", "copy", *words, "--config", "", "--s3-no-check-bucket", *more], {}


PROGRAMS: dict[str, Any] = {"s5cmd": s5cmd, "rclone": rclone}


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _memory_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    own = next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024
    return own + beside.memory_bytes(name)


def _cpu_s() -> float:
    return time.process_time() + beside.cpu_s()


def main() -> None:
    """Answer ``[up or down, folder, where to]`` with what it took, line by line."""
    name, endpoint_url, ca_file = sys.argv[1], sys.argv[2], sys.argv[3] or None
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    peer = PEERS[name](endpoint_url, ca_file)
    prepared = set()
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        direction, folder, where = json.loads(line)
        if direction == "down" and folder not in prepared:
            peer.prepare(Path(folder))
            prepared.add(folder)
        _reset_peak()
        before_bytes, cpu_s, began = _memory_bytes("VmRSS"), _cpu_s(), time.perf_counter()
        if direction == "up":
            peer.up(Path(folder), where)
        else:
            peer.down(Path(folder), Path(where))
        took = {"wall_s": time.perf_counter() - began, "cpu_s": _cpu_s() - cpu_s}
        print(json.dumps({**took, "peak_bytes": _memory_bytes("VmHWM") - before_bytes}), file=answers, flush=True)
    os._exit(0)  # without waiting for anybody's threads


if __name__ == "__main__":
    main()
