"""What an uploader takes from a training loop beside it, and what ``submit`` costs the caller.

A one-thread loop of small torch operations runs while a file is uploaded from the same process to a native sink in a
process of its own. Lost time is the loop's time less what its steps take when nothing is uploaded, measured right
before and after; it is given per GiB. The contenders take turns (A B C D A B C D …), each in its own process.

On a shared machine that difference is mostly other people's load. So the time that the loop's thread was *blocked* is
given too: its wall time less what it ran and less what it waited for a core, both by the kernel's count. The loop never
waits for anything by itself, so this is what it stood still for the interpreter lock.

The sink is scheduled as idle, so that it never takes a core from the loop: what is lost, the uploader took.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import beside, plots, uploaders
from benchmarks.native_sink import native_sink
from benchmarks.report import save, show

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CONTENDERS = {
    "polite": "artifactsync, polite (default)",
    "normal": "artifactsync, normal priority",
    "boto3": "boto3 upload_file in a thread",
    "s3fs": "s3fs put_file in a thread",
    "boto3 + CRT": "boto3's CRT transfer manager",
    "opendal": "opendal in a thread",
    "floor": "the floor: sendfile and sha256 in an idle process",
}
FILE_BYTES = 256 * 1024 * 1024
ROUNDS = int(os.environ.get("ARTIFACTSYNC_BENCH_ROUNDS", "5"))
SATURATED_ROUNDS = min(3, ROUNDS)  # each takes long
_GIVE_UP_S = 60.0  # of one upload
_ALONE_S = 0.6
_GIB = 2**30


def measure() -> None:
    """Run every contender on a quiet machine, ours also on a saturated one; print and save."""
    with tempfile.TemporaryDirectory(prefix="artifactsync-bench-") as folder, _sink(Path(folder)) as endpoint_url:
        path = Path(folder, "files", "model.pt")
        path.parent.mkdir()
        with path.open("wb") as file:
            for _ in range(FILE_BYTES >> 24):
                file.write(os.urandom(1 << 24))
        missing: dict[str, str] = {}
        quiet = _take_turns(list(CONTENDERS), endpoint_url, path, rounds_wanted=ROUNDS, missing=missing)
        saturated = _take_turns(
            ["polite", "normal"],
            endpoint_url,
            path,
            rounds_wanted=SATURATED_ROUNDS,
            burners=len(os.sched_getaffinity(0)),
            missing=missing,
        )
        submit = _child("submit", endpoint_url, path)
        submit_us = json.loads(submit.communicate("\n", timeout=60)[0].splitlines()[-1])
    figures = {
        "file_bytes": FILE_BYTES,
        "rounds": ROUNDS,
        "quiet": {name: _summary(rounds, quiet["polite"]) for name, rounds in quiet.items()},
        "saturated": {name: _summary(rounds, saturated["polite"]) for name, rounds in saturated.items()},
        "submit_us": submit_us,
        "missing": missing,
        "raw": {"quiet": quiet, "saturated": saturated},
    }
    rounds_of = {"quiet": ROUNDS, "saturated": SATURATED_ROUNDS}
    for title, key in (("with cores to spare", "quiet"), ("with every core kept busy by other processes", "saturated")):
        show(
            f"Training time lost per GiB uploaded, {title} (medians of {rounds_of[key]})",
            [
                "uploader",
                "blocked ms/GiB",
                "lost ms/GiB",
                "worst round",
                "upload s/GiB",
                "CPU s/GiB",
                "longest step ms",
                "p99 step ÷ alone",
            ],
            [
                [
                    CONTENDERS[name],
                    f"{row['blocked_ms_per_gib']:.0f}",
                    f"{row['lost_ms_per_gib']:.0f}",
                    f"{row['worst_lost_ms_per_gib']:.0f}",
                    f"{row['upload_s_per_gib']:.2f}",
                    f"{row['cpu_s_per_gib']:.2f}",
                    f"{row['longest_step_ms']:.1f}",
                    f"{row['p99_ratio']:.2f}",
                ]
                for name, row in figures[key].items()  # type: ignore[attr-defined]  # a dict of dicts
            ],
        )
    show(
        "What submit() costs its caller, in microseconds",
        ["state of the queue", "median", "99 %", "longest"],
        [[state, *(f"{row[column]:.0f}" for column in ("p50", "p99", "max"))] for state, row in submit_us.items()],
    )
    print(f"saved to {save('uploader_cost', figures)}")
    plots.draw_uploader_cost()


def _take_turns(
    names: list[str], endpoint_url: str, path: Path, *, rounds_wanted: int, missing: dict[str, str], burners: int = 0
) -> dict[str, list[dict[str, float]]]:
    children = {name: _child(name, endpoint_url, path) for name in names}
    burning = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(burners)]
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    try:
        for number in range(rounds_wanted + 1):  # the first one is to warm up
            for name, child in list(children.items()):
                assert child.stdin is not None
                assert child.stdout is not None
                with contextlib.suppress(BrokenPipeError):
                    child.stdin.write("\n")
                    child.stdin.flush()
                line = child.stdout.readline()
                if not line:
                    missing[name] = "its process ended; what it said is above"
                    children.pop(name).wait()
                    rounds.pop(name)
                    continue
                if number:
                    rounds[name].append(json.loads(line))
    finally:
        for process in [*burning, *children.values()]:
            process.kill()
            process.wait()
    return rounds


def _summary(rounds: list[dict[str, float]], reference: list[dict[str, float]]) -> dict[str, Any]:
    median = {key: statistics.median(entry[key] for entry in rounds) for key in rounds[0]}
    against = statistics.median(
        mine["upload_s_per_gib"] / theirs["upload_s_per_gib"] for mine, theirs in zip(rounds, reference, strict=True)
    )
    worst = max(entry["lost_ms_per_gib"] for entry in rounds)
    return {**median, "worst_lost_ms_per_gib": worst, "upload_time_ratio_to_polite": against}


def _child(name: str, endpoint_url: str, path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.uploader_cost", name, endpoint_url, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    )


@contextlib.contextmanager
def _sink(folder: Path) -> Iterator[str]:
    """Compile and start the sink."""
    with native_sink(folder, is_idle=True) as sink:
        yield sink.endpoint_url


# In the child: the loop, and one contender.


def _contend(name: str, endpoint_url: str, path: Path) -> None:
    import torch

    torch.set_num_threads(1)
    weights = torch.randn(64, 64)
    state = torch.randn(16, 64)

    def step() -> None:
        nonlocal state
        for _ in range(20):
            state = torch.tanh(state @ weights)

    upload = uploaders.open_uploader(name, endpoint_url)
    for number, _ in enumerate(sys.stdin):
        before_s = _steps_s(step)
        cpu_s = time.process_time() + beside.cpu_s()
        is_done = upload(path, f"model{number}.pt")
        blocked_s = -_ran_or_ready_s()
        began = time.perf_counter()
        durations, last = [], began
        while not is_done():
            assert last - began < _GIVE_UP_S, f"{name} does not end"
            step()
            now = time.perf_counter()
            durations.append(now - last)
            last = now
        took_s = time.perf_counter() - began
        blocked_s = took_s - (blocked_s + _ran_or_ready_s())
        cpu_s = time.process_time() + beside.cpu_s() - cpu_s
        after_s, steps = _steps_s(step), len(durations)
        alone_s = (statistics.fmean(before_s) + statistics.fmean(after_s)) / 2
        gib = path.stat().st_size / _GIB
        print(
            json.dumps(
                {
                    "lost_ms_per_gib": (took_s - steps * alone_s) * 1000 / gib,
                    "blocked_ms_per_gib": blocked_s * 1000 / gib,
                    "upload_s_per_gib": took_s / gib,
                    "cpu_s_per_gib": (cpu_s - steps * alone_s) / gib,
                    "longest_step_ms": max(durations) * 1000,
                    "p99_ratio": _p99(durations) / _p99(before_s + after_s),
                    "step_alone_us": alone_s * 1e6,
                }
            ),
            flush=True,
        )


def _ran_or_ready_s() -> float:
    """Seconds that this thread has run or waited for a core so far."""
    ran_ns, ready_ns, _ = Path("/proc/thread-self/schedstat").read_text().split()
    return (int(ran_ns) + int(ready_ns)) / 1e9


def _steps_s(step: Callable[[], None]) -> list[float]:
    """Seconds of each step when nothing else runs in this process."""
    began = last = time.perf_counter()
    durations = []
    while last - began < _ALONE_S:
        step()
        now = time.perf_counter()
        durations.append(now - last)
        last = now
    return durations


def _p99(values: list[float]) -> float:
    return sorted(values)[int(len(values) * 0.99)]


def _time_submit(endpoint_url: str, path: Path) -> None:
    """Time ``submit`` of the big file while nothing, and while much, is under way."""
    from artifactsync.stores import open_store
    from artifactsync.transfer.queue import UploadQueue

    options = {"endpoint_url": endpoint_url, "key": "k", "secret": "s"}
    queue = UploadQueue(lambda: open_store("s3://bucket", options))
    small = path.parent.with_name("small")
    small.write_bytes(b"x" * 1000)
    queue.submit("warm", small).result()

    def times(paths: list[Path]) -> dict[str, float]:
        taken = []
        for number, each in enumerate(paths):
            began = time.perf_counter()
            queue.submit(f"k{number}", each)
            taken.append((time.perf_counter() - began) * 1e6)
            time.sleep(0.001)  # a training loop does something in between
        taken.sort()
        return {"p50": statistics.median(taken), "p99": taken[int(len(taken) * 0.99)], "max": taken[-1]}

    figures = {"small files, one by one": times([small] * 500)}
    queue.wait()
    figures["256 MiB files, eight being uploaded"] = times([path] * 500)
    print(json.dumps(figures), flush=True)
    with contextlib.suppress(Exception):
        queue.close(0)
    os._exit(0)


if __name__ == "__main__":
    if len(sys.argv) == 1:
        measure()
    elif sys.argv[1] == "submit":
        _time_submit(sys.argv[2], Path(sys.argv[3]))
    else:
        _contend(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
