"""What ``artifactsync run`` takes from the command that it supervises.

A command with one thread does a fixed amount of work, alone and supervised, in turns (A B A B). Two of them: one prints
and writes a checkpoint of 4 MB every few hundred milliseconds, so that something is always on its way; one works beside
10,000 files that do not change, which are looked at again and again. What counts is the command's own time from its
first step to its last, not how long Python takes to start.

*Durable* is how long after a checkpoint was written its commit is in the journal: a machine that goes without a word
takes along what is younger. The very first one is left alone for ``--settle`` (1 s), and not among these.
"""

from __future__ import annotations

import datetime as dt
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil

from artifactsync import Run
from benchmarks.report import save, show

LIMIT = 0.02
ROUNDS = int(os.environ.get("ROUNDS", "5"))
SECONDS = 4.0
CHECKPOINTS = 12
FILES = 10_000

_COMMAND = """
import hashlib, os, sys, time, zipfile
steps, checkpoints = int(sys.argv[1]), int(sys.argv[2])
block, began, began_cpu = os.urandom(1 << 20), time.perf_counter(), time.process_time()
for step in range(steps):
    for _ in range(8):
        hashlib.sha256(block).digest()
    if step % 10 == 0:
        print("step", step, flush=True)
    if checkpoints and step % (steps // checkpoints) == 0:
        with zipfile.ZipFile(f"step-{step}.pt", "w") as archive:
            archive.writestr("archive/data/0", block * 4)
print("seconds", time.perf_counter() - began, time.process_time() - began_cpu, flush=True)
"""


def run_once(
    steps: int, *, checkpoints: int, files: int, is_supervised: bool
) -> tuple[float, float, float, list[float]]:
    """Run the command once.

    Returns:
        Its wall seconds, its processor seconds, the share of a core that its parent took, and how long it took each
        checkpoint to be durable.
    """
    with tempfile.TemporaryDirectory(prefix="supervisor-cost-") as folder:
        work = Path(folder) / "work"
        for number in range(files):
            path = work / "data" / str(number % 100) / f"{number}.bin"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x")
        work.mkdir(exist_ok=True)
        command = [sys.executable, "-c", _COMMAND, str(steps), str(checkpoints)]
        if is_supervised:
            program = str(Path(sys.executable).parent / "artifactsync")
            command = [program, "--remote", f"{folder}/bucket", "run", "--name", "r", "--", *command]
        with subprocess.Popen(
            command, cwd=work, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            began_s = _cpu_s(process.pid)
            for line in process.stdout:
                if line.startswith("seconds"):
                    taken_s = _cpu_s(process.pid) - began_s
                    _, wall_s, cpu_s = line.split()
        if process.returncode:
            raise SystemExit(f"the command ended with {process.returncode}")
        delays_s = _delays_s(f"{folder}/bucket", work) if is_supervised and checkpoints else []
        return float(wall_s), float(cpu_s), taken_s / float(wall_s), delays_s


def _delays_s(remote: str, work: Path) -> list[float]:
    """From the last write of each checkpoint to its commit."""
    delays_s = []
    for checkpoint in Run("r", remote=remote, read_only=True).checkpoints():
        committed_s = dt.datetime.fromisoformat(checkpoint.committed_at.replace("Z", "+00:00")).timestamp()
        delays_s.append(committed_s - (work / checkpoint.files[0].path).stat().st_mtime)
    return delays_s


def _cpu_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def measure() -> None:
    """Measure, print, and keep the figures."""
    trial_s, *_ = run_once(100, checkpoints=0, files=0, is_supervised=False)
    steps = max(40, round(100 * SECONDS / trial_s))
    scenes = {
        f"{CHECKPOINTS} checkpoints of 4 MB in {SECONDS:.0f} s": {"checkpoints": CHECKPOINTS, "files": 0},
        f"{FILES:,} files that do not change": {"checkpoints": 0, "files": FILES},
    }
    figures, rows = {}, []
    for scene, what in scenes.items():
        pairs = [
            (
                run_once(steps, is_supervised=False, **what),
                run_once(steps, is_supervised=True, **what),
            )
            for _ in range(ROUNDS)
        ]
        wall = [after[0] / before[0] - 1 for before, after in pairs]
        cpu = [after[1] / before[1] - 1 for before, after in pairs]
        cores = statistics.median(after[2] for _, after in pairs)
        delays_s = [delay for _, after in pairs for delay in after[3][1:]]
        figures[scene] = {"slowdown": wall, "more_cpu": cpu, "supervisor_cores": cores, "pairs": pairs}
        rows.append(
            [
                scene,
                f"{statistics.median(wall):+.1%}",
                f"{min(wall):+.1%} to {max(wall):+.1%}",
                f"{statistics.median(cpu):+.1%}",
                f"{cores:.1%}",
                f"{statistics.median(delays_s) * 1000:.0f} ms, {max(delays_s) * 1000:.0f} at most" if delays_s else "",
                f"{LIMIT:.0%}",
            ]
        )
        print(*rows[-1], sep=" | ", flush=True)
    show(
        f"artifactsync run, medians of {ROUNDS} pairs",
        ["command with one thread", "slowdown", "range", "its own CPU", "supervisor, of a core", "durable", "bar"],
        rows,
    )
    save("supervisor_cost", {"limit": LIMIT, "scenes": figures})


if __name__ == "__main__":
    measure()
