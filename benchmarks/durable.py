"""Time to durable: a snapshot to a whole local file and a whole object, against ``cp`` and ``s5cmd cp`` of its bytes.

Ours begins with the snapshot in memory and ends when the file has its name after fsync and the object is whole, sha256
and CRC64NVME included. The peers begin with the file in the page cache, hash nothing, and fsync nothing either, but for
a second form of them (``sync``). The object store is the native sink of this folder: it takes what it is sent and keeps
none of it. They take turns, and who begins changes; all write new files, and what was written before is removed first:
where a virtual machine gives freed memory back to its host, who writes to pages that were freed long ago pays a second
for each 512 MiB.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import beside, report
from benchmarks.uploader_cost import _sink

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Self

_ROUNDS = int(os.environ.get("ARTIFACTSYNC_BENCH_ROUNDS", "7"))
_TENSORS, _TENSOR_BYTES = 128, 4 << 20
_KEYS = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_REGION": "us-east-1"}


class _PeakMemory:
    """Most resident memory of this process, and of the one beside it, while inside, above what it was, in bytes."""

    def __enter__(self) -> Self:
        self._before = self.peak = _resident_bytes()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    @property
    def above_bytes(self) -> int:
        return self.peak - self._before

    def _watch(self) -> None:
        while not self._end.wait(0.005):
            self.peak = max(self.peak, _resident_bytes())


def measure() -> None:
    import torch

    from artifactsync.checkpoint.image import FileImage
    from artifactsync.checkpoint.snapshot import SnapshotBuffers, take_snapshot
    from artifactsync.checkpoint.write import FileWriting
    from artifactsync.stores import open_store
    from artifactsync.transfer.courier import begin_courier
    from artifactsync.transfer.queue import UploadQueue

    torch.set_num_threads(1)
    state = {f"layer{n}.weight": torch.randn(_TENSOR_BYTES // 4) for n in range(_TENSORS)}
    snapshot = take_snapshot(state, SnapshotBuffers())
    snapshot.wait()
    del state
    with tempfile.TemporaryDirectory(prefix="artifactsync-durable-") as name:
        folder = Path(name)
        with _sink(folder) as endpoint_url:
            stores = {
                "s3 sink": open_store("s3://bucket", {"endpoint_url": endpoint_url, "key": "k", "secret": "s"}),
                "local remote": open_store(f"file://{folder}/remote"),
            }
            queues = {where: UploadQueue(store) for where, store in stores.items()}
            starting = begin_courier(stores["s3 sink"])  # as in a training, which has it since its first save
            if starting is not None:
                starting.join()

            def ours(where: str) -> None:
                writing = FileWriting(FileImage(snapshot.state), folder / "ours.pt", hashes_beside=True)
                with queues[where].watching():
                    upload = queues[where].submit("run/ours.pt", folder / "ours.pt", writing=writing.source)
                    writing.run()
                    upload.result()

            def peers(where: str, *, synced: bool = False) -> None:
                source, copy = folder / "source.pt", folder / "copy.pt"
                _run("cp", source, copy)
                if synced:
                    _run("sync", copy)
                if where == "s3 sink":
                    s5cmd = Path(sys.executable).with_name("s5cmd")
                    _run(s5cmd, "--endpoint-url", endpoint_url, "cp", source, "s3://bucket/run/peer.pt")
                else:
                    _run("cp", source, folder / "remote" / "run" / "peer.pt")
                    if synced:
                        _run("sync", folder / "remote" / "run" / "peer.pt")

            def tidy() -> None:
                for old in ("ours.pt", "copy.pt"):
                    (folder / old).unlink(missing_ok=True)
                # The root stays: a store takes another folder in its place for a mount that was lost, and waits.
                shutil.rmtree(folder / "remote" / "run", ignore_errors=True)
                (folder / "remote" / "run").mkdir(parents=True)

            writing = FileWriting(FileImage(snapshot.state), folder / "source.pt")
            size_bytes = writing.run().size_bytes
            figures, rows = {}, []
            for where in stores:
                figures[where] = _compare(
                    lambda where=where: ours(where),
                    lambda where=where: peers(where),
                    lambda where=where: peers(where, synced=True),
                    tidy,
                )
                each = figures[where]
                rows.append(
                    [
                        where,
                        *(
                            f"{each[key]:.2f}"
                            for key in ("ours_s", "peers_s", "ratio", "synced_s", "ratio_to_synced", "peak_mib")
                        ),
                    ]
                )
    report.save("durable", {"state_bytes": size_bytes, "rounds": _ROUNDS, "figures": figures})
    report.show(
        f"Time to durable of {size_bytes / 2**20:.0f} MiB in {_TENSORS} tensors, medians of {_ROUNDS}",
        ["to", "ours, s", "cp + cp, s", "ours ÷ it", "with sync, s", "ours ÷ it", "peak above the snapshot, MiB"],
        rows,
    )


def _compare(
    ours: Callable[[], None], peers: Callable[[], None], synced: Callable[[], None], tidy: Callable[[], None]
) -> dict[str, Any]:
    calls = {"ours": ours, "peers": peers, "synced": synced}
    taken: dict[str, list[float]] = {name: [] for name in calls}
    peak_bytes = 0
    for number in range(_ROUNDS + 1):  # the first one is to warm up
        names = list(calls)[number % len(calls) :] + list(calls)[: number % len(calls)]
        for name in names:  # each comes after each other one as often
            call = calls[name]
            tidy()
            with _PeakMemory() as memory:
                seconds = _timed(call)
            if number:
                taken[name].append(seconds)
                peak_bytes = max(peak_bytes, memory.above_bytes if name == "ours" else 0)

    def ratio(name: str) -> float:
        return statistics.median(mine / theirs for mine, theirs in zip(taken["ours"], taken[name], strict=True))

    return {
        **{f"{name}_s": statistics.median(times) for name, times in taken.items()},
        "ratio": ratio("peers"),
        "ratio_to_synced": ratio("synced"),
        "peak_mib": peak_bytes / 2**20,
        "rounds_s": taken,
    }


def _timed(call: Callable[[], None]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _run(*command: object) -> None:
    subprocess.run([str(word) for word in command], check=True, capture_output=True, env={**os.environ, **_KEYS})


def _resident_bytes() -> int:
    own = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return own + beside.memory_bytes("VmRSS")
