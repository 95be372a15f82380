"""What coming back to a run asks of its store, however long the run was; and what ``ls`` of many runs takes.

Requests are counted twice: where the program hands them to its store, and on the line to the server, where retries and
whatever a library asks by itself are seen too. ``ls`` takes turns with the store's own listing of the same keys (A B A
B …), medians. Peers that are not installed are said to be missing.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import boto3
import torch

from artifactsync import Run
from artifactsync.journal.attempt import claim
from artifactsync.journal.catalogue import CheckpointFile
from artifactsync.journal.log import JournalLog
from artifactsync.journal.runs import list_runs
from artifactsync.journal.writer import WriterIdentity
from artifactsync.stores import open_store
from artifactsync.testing import FaultyStore
from benchmarks.report import save, show
from tests.fault_proxy import FaultProxy

sys.path.insert(0, str(Path(__file__).parent.parent / "localstack"))

import servers  # localstack/ is no package: it would hide the one of that name on PyPI

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from artifactsync.stores.protocol import Store

LENGTHS = (10, 1_000, 10_000)
"""Checkpoints of a run."""
LARGE_WEIGHTS = 5 * 2**20
"""Of four bytes, in the state of one more run: a file that is fetched in three ranges."""
RUNS = 1_000
"""Runs that are listed, of three checkpoints each."""
OBJECTS = {13: 7, 200: 3}
"""Objects of a run, and rounds: the listing of 200,000 keys takes the others minutes."""
BAR_REQUESTS = 5
BAR_LISTING = 1.5
_BIN = Path(sys.executable).parent
_DEAD = replace(WriterIdentity.of_this_process(), started="1")


def measure() -> None:
    """Count and time, print and save; what was measured stays, whatever follows."""
    figures: dict[str, Any] = {"bars": {"requests": BAR_REQUESTS, "ls": BAR_LISTING}, "ls": []}
    with tempfile.TemporaryDirectory(prefix="artifactsync-bench-") as folder, servers.FakeGCS() as google:
        figures["ls_elsewhere"] = {
            "local": _time_elsewhere(open_store(f"{folder}/many")),
            "fake-gcs-server": _time_elsewhere(
                open_store(f"{google.make_bucket('artifactsync-bench')}/many", google.storage_options)
            ),
        }
    show(
        "ls of 100 runs in process",
        ["remote", "s", "÷ its own listing"],
        [[name, *seconds] for name, seconds in figures["ls_elsewhere"].items()],
    )
    with tempfile.TemporaryDirectory(prefix="artifactsync-bench-") as folder, servers.SeaweedFS() as server:
        small, large = (_state_file(Path(folder), weights) for weights in (4, LARGE_WEIGHTS))
        bucket = server.make_bucket("artifactsync-bench")
        line = FaultProxy(server.endpoint_url)
        slow = {name: value.replace(server.origin, line.url) for name, value in server.storage_options.items()}
        remotes = {
            "local": (open_store(f"{folder}/remote"),) * 2,
            "SeaweedFS": (open_store(f"{bucket}/long", server.storage_options), open_store(f"{bucket}/long", slow)),
        }
        for objects in OBJECTS:
            if objects == max(OBJECTS):  # before so many objects slow the server down
                figures["requests"] = counts = [
                    _count(remote, straight, counted, length, state, line if remote == "SeaweedFS" else None)
                    for remote, (straight, counted) in remotes.items()
                    for length, state in [*((length, small) for length in LENGTHS), (min(LENGTHS), large)]
                ]
                show("requests", list(counts[0]), [[str(each[name]) for name in each] for each in counts])
                save("requests", figures)
            figures["ls"].append(_time_listing(server, bucket, folder, objects))
            _tell_listing(figures["ls"][-1])
            save("requests", figures)
        line.close()


def _tell_listing(listing: dict[str, Any]) -> None:
    base = statistics.median(listing["seconds"]["list_objects_v2, boto3"])
    show(
        f"ls of {RUNS} runs ({listing['objects']} objects), s",
        ["lister", "median", "min", "max", "÷ list_objects_v2"],
        [
            [name, *(f"{v:.2f}" for v in (statistics.median(s), min(s), max(s), statistics.median(s) / base))]
            for name, s in listing["seconds"].items()
        ]
        + [[name, "missing", "", "", ""] for name in listing["missing"]],
    )
    listing["ratio"] = statistics.median(listing["seconds"]["artifactsync ls (in process)"]) / base


def _time_elsewhere(store: Store, runs: int = 100, rounds: int = 5) -> list[str]:
    """``ls`` of fewer runs on another kind of store, and how that compares with listing every key of it."""
    objects = [item for number in range(runs) for item in _small_run(f"run-{number:04d}", 13)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda item: store.put(*item), objects))
    ours, whole = [], []
    for _ in range(rounds):
        began = time.perf_counter()
        assert len(list_runs(store)) == runs
        ours.append(time.perf_counter() - began)
        began = time.perf_counter()
        assert len(list(store.list())) == len(objects)
        whole.append(time.perf_counter() - began)
    store.close()
    return [f"{statistics.median(ours):.2f}", f"{statistics.median(ours) / statistics.median(whole):.2f}"]


def _count(
    remote: str, straight: Store, store: Store, length: int, state: bytes, line: FaultProxy | None
) -> dict[str, Any]:
    """Requests to come back to one run of ``length`` checkpoints."""
    name = f"run{length}-{len(state)}"
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda item: straight.put(*item), _run_objects(name, length, state)))
    figures: dict[str, Any] = {"remote": remote, "checkpoints": length, "bytes of the file": len(state)}
    with tempfile.TemporaryDirectory() as local, mock.patch("artifactsync.run.writing.Heart"):
        for what, read_only in (("read-only: open, resume", True), ("open for writing, resume", False)):
            counting = FaultyStore(store)
            if not read_only:  # the probe of the store is once for each process and remote
                Run("probed", remote=counting, local_root=local).close()
            before, on_line = counting.calls.total(), len(line.seen()) if line else 0
            run = Run(name, remote=counting, local_root=f"{local}/{read_only}", read_only=read_only)
            resumed = run.resume()
            assert resumed is not None
            assert resumed.step == length
            figures[what] = counting.calls.total() - before
            figures[f"{what}, on the line"] = len(line.seen()) - on_line if line else "-"
            before = counting.calls.total()
            if read_only:
                assert len(run.checkpoints()) == length
                figures["all checkpoints"] = counting.calls.total() - before
            else:
                run.close()
    return figures


def _run_objects(name: str, length: int, state: bytes) -> Iterator[tuple[str, bytes]]:
    """The objects of a run that was killed after so many checkpoints, all of the same bytes."""
    store = open_store(f"memory://bench-{name}-{os.getpid()}-{time.monotonic_ns()}")
    log = JournalLog(store, name)
    attempt = claim(log, writer=_DEAD)
    digest = hashlib.sha256(state).hexdigest()
    last = ""
    for step in range(1, length + 1):
        path = f"checkpoints/ba{step}-rank0.pt"
        last = f"{name}/{path}"
        file = CheckpointFile(path=path, key=last, size=len(state), sha256=digest)
        attempt.commit(name=f"ba{step}", step=step, epoch=0, batch=step, metrics={"loss": 1 / step}, files=[file])
        log.advise(attempt.head.record.seq)
    for info in store.list(f"{name}/"):
        yield info.key, store.get(info.key)
    yield last, state
    store.close()


def _state_file(folder: Path, weights: int) -> bytes:
    torch.save({"step": torch.zeros(weights)}, folder / "state.pt")
    return (folder / "state.pt").read_bytes()


def _time_listing(server: Any, bucket: str, folder: str, per_run: int) -> dict[str, Any]:
    """``ls`` and the listing of the same keys by others, in turn."""
    root = f"many{per_run}"
    store = open_store(f"{bucket}/{root}", server.storage_options)
    objects = [item for number in range(RUNS) for item in _small_run(f"run-{number:04d}", per_run)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda item: store.put(*item), objects))
    environment = {**os.environ, **server.environment}
    endpoint, plain = server.endpoint_url, bucket.removeprefix("s3://")
    config = Path(folder, "rclone.conf")
    config.write_text(f"[s]\ntype = s3\nprovider = Other\nenv_auth = true\nendpoint = {endpoint}\n")

    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
    )

    def pages() -> None:
        found = client.get_paginator("list_objects_v2").paginate(Bucket=plain, Prefix=f"{root}/")
        assert sum(len(page.get("Contents", ())) for page in found) == len(objects)

    def names() -> None:
        found = client.get_paginator("list_objects_v2").paginate(Bucket=plain, Prefix=f"{root}/", Delimiter="/")
        assert sum(len(page.get("CommonPrefixes", ())) for page in found) == RUNS

    def ours() -> None:
        runs = list_runs(store)
        assert len(runs) == RUNS
        assert {run.checkpoints for run in runs} == {3}

    def process(*command: str) -> Callable[[], None]:
        return lambda: subprocess.run(command, check=True, capture_output=True, env=environment) and None  # type: ignore[func-returns-value]

    listers: dict[str, Callable[[], None]] = {
        "list_objects_v2, boto3": pages,
        "the names alone, boto3": names,
        "artifactsync ls (in process)": ours,
        "artifactsync ls": process(str(_BIN / "artifactsync"), "--remote", f"{bucket}/{root}", "--json", "ls"),
        "s5cmd ls": process(str(_BIN / "s5cmd"), "--endpoint-url", endpoint, "ls", f"{bucket}/{root}/*"),
        "rclone lsf -R": process(str(_BIN / "rclone"), "--config", str(config), "lsf", "-R", f"s:{plain}/{root}"),
    }
    programs = {"s5cmd ls": "s5cmd", "rclone lsf -R": "rclone"}
    missing = [name for name, program in programs.items() if shutil.which(str(_BIN / program)) is None]
    seconds: dict[str, list[float]] = {name: [] for name in listers if name not in missing}
    for _ in range(OBJECTS[per_run]):
        for name, taken in seconds.items():
            began = time.perf_counter()
            listers[name]()
            taken.append(time.perf_counter() - began)
    store.close()
    return {"runs": RUNS, "objects": len(objects), "rounds": OBJECTS[per_run], "seconds": seconds, "missing": missing}


def _small_run(name: str, objects: int) -> Iterator[tuple[str, bytes]]:
    """A finished run of three checkpoints of two files, a log, and traces up to so many objects."""
    store = open_store(f"memory://bench-{name}-{time.monotonic_ns()}")
    log = JournalLog(store, name)
    attempt = claim(log, writer=_DEAD)
    for step in (1, 2, 3):
        files = [
            CheckpointFile(path=f"c/ba{step}-{n}.pt", key=f"{name}/c/ba{step}-{n}.pt", size=1, sha256="0" * 64)
            for n in (0, 1)
        ]
        attempt.commit(name=f"ba{step}", step=step, epoch=0, batch=step, metrics={}, files=files)
        yield from ((file.key, b"x") for file in files)
    attempt.finish("completed")
    log.advise(attempt.head.record.seq)
    yield f"{name}/logs-rank0.txt", b"log\n"
    yield from ((f"{name}/traces/{number}.json", b"{}") for number in range(objects - 13))
    for info in store.list(f"{name}/"):
        yield info.key, store.get(info.key)
    store.close()
