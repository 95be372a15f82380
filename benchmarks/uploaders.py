"""The contenders of ``uploader_cost``: each uploads one file behind the loop that trains, in the same process."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

from benchmarks import transfer_peers

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def open_uploader(name: str, endpoint_url: str) -> Callable[[Path, str], Callable[[], bool]]:
    """How a contender begins an upload; it returns whether that is done."""
    if name in {"polite", "normal"}:
        from artifactsync.stores import open_store
        from artifactsync.transfer.queue import UploadQueue

        options = {"endpoint_url": endpoint_url, "key": "k", "secret": "s"}
        queue = UploadQueue(lambda: open_store("s3://bucket", options), polite=name == "polite")
        return lambda path, key: _checked(queue.submit(key, path))
    if name == "floor":
        return _idle_process(endpoint_url)
    if name == "boto3":
        import boto3

        keys = {"aws_access_key_id": "k", "aws_secret_access_key": "s", "region_name": "us-east-1"}
        client = boto3.client("s3", endpoint_url=endpoint_url, **keys)
        return lambda path, key: _in_thread(lambda: client.upload_file(str(path), "bucket", key))
    if name in transfer_peers.PEERS and name != "s3fs":
        os.environ.update(transfer_peers.KEYS)
        peer = transfer_peers.PEERS[name](endpoint_url, None)
        return lambda path, key: _in_thread(lambda: peer.up(path.parent, key))
    import s3fs

    fs = s3fs.S3FileSystem(key="k", secret="s", endpoint_url=endpoint_url)
    return lambda path, key: _in_thread(lambda: fs.put_file(str(path), f"bucket/{key}"))


_IDLE_PROCESS = """if True:
    import hashlib, os, socket, sys
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    host, port = sys.argv[1].rpartition("/")[2].split(":")
    for line in sys.stdin:
        with socket.create_connection((host, int(port))) as there, open(line.strip(), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            there.sendall(f"PUT /bucket/floor HTTP/1.1\\r\\nHost: h\\r\\nContent-Length: {size}\\r\\n\\r\\n".encode())
            at = 0
            while at < size:
                at += os.sendfile(there.fileno(), file.fileno(), at, size - at)
            there.recv(65536)
            digest = hashlib.sha256()
            while data := file.read(1 << 22):
                digest.update(data)
        print("done", flush=True)
"""


def _idle_process(endpoint_url: str) -> Callable[[Path, str], Callable[[], bool]]:
    """What the machine itself takes: the same work by a process that is there already and yields to everybody."""
    child = subprocess.Popen(
        [sys.executable, "-c", _IDLE_PROCESS, endpoint_url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdin is not None
    assert child.stdout is not None
    stdin, stdout = child.stdin, child.stdout

    def begin(path: Path, _key: str) -> Callable[[], bool]:
        print(path, file=stdin, flush=True)
        return lambda: bool(select.select([stdout], [], [], 0)[0]) and bool(stdout.readline())

    return begin


def _checked(upload: Any) -> Callable[[], bool]:
    def is_done() -> bool:
        return upload.done() and bool(upload.result())

    return is_done


def _in_thread(call: Callable[[], object]) -> Callable[[], bool]:
    thread = threading.Thread(target=call)
    thread.start()
    return lambda: not thread.is_alive()
