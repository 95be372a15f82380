"""What `artifactsync run` costs the command that it supervises.

    python -m benchmarks.supervisor_cost [--rounds 5] [--seconds 8]

A command with one thread does a fixed amount of work, prints a line now and then, and writes a checkpoint of 4 MB 20
times; alone and supervised in turns (A B A B). What counts is its own time from its first to its last step,
not how long starting Python takes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil

RESULTS = Path(__file__).parent / "results" / "supervisor_cost.json"
LIMIT = 0.02

_COMMAND = """
import hashlib, os, sys, time, zipfile
block, began = os.urandom(1 << 20), time.perf_counter()
for step in range(int(sys.argv[1])):
    for _ in range(8):
        hashlib.sha256(block).digest()
    if step % 10 == 0:
        print("step", step, flush=True)
    if step % (int(sys.argv[1]) // 20) == 0:
        with zipfile.ZipFile(f"step-{step}.pt", "w") as archive:
            archive.writestr("archive/data/0", block * 4)
print("seconds", time.perf_counter() - began, flush=True)
"""


def seconds_of(steps: int, costs: list[float], *, is_supervised: bool) -> float:
    """Run the command once; return how long it says it took, and note the share of a core that its parent took."""
    with tempfile.TemporaryDirectory(prefix="supervisor-cost-") as folder:
        (Path(folder) / "work").mkdir()
        command = [sys.executable, "-c", _COMMAND, str(steps)]
        if is_supervised:
            program = str(Path(sys.executable).parent / "artifactsync")
            command = [program, "--remote", f"{folder}/bucket", "run", "--name", "r", "--", *command]
        with subprocess.Popen(command, cwd=f"{folder}/work", stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            process.stdout.readline()
            began_s = cpu_s(process.pid)
            lines = [line for line in process.stdout if _noted(line, process.pid, costs, began_s)]
        return float(lines[-1].split()[1])


def _noted(line: str, pid: int, costs: list[float], began_s: float) -> bool:
    """Whether it is the command's last line; at that moment the cost of its parent is noted."""
    if not line.startswith("seconds"):
        return False
    costs.append((cpu_s(pid) - began_s) / float(line.split()[1]))
    return True


def cpu_s(pid: int) -> float:
    """Processor seconds of a process so far."""
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def main() -> None:
    """Measure, print, and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8.0)
    options = parser.parse_args()
    steps = max(40, round(200 * options.seconds / seconds_of(200, [], is_supervised=False)))
    alone, supervised, costs = [], [], []
    for _ in range(options.rounds):
        alone.append(seconds_of(steps, [], is_supervised=False))
        supervised.append(seconds_of(steps, costs, is_supervised=True))
    ratios = [after / before - 1 for before, after in zip(alone, supervised, strict=True)]
    slowdown = statistics.median(ratios)
    print(
        f"alone {statistics.median(alone):.2f} s, supervised {statistics.median(supervised):.2f} s: "
        f"slowdown {slowdown:+.1%} (median of {options.rounds} pairs, {min(ratios):+.1%} to {max(ratios):+.1%}; "
        f"limit {LIMIT:.0%}); the supervisor took {statistics.median(costs):.1%} of one core meanwhile"
    )
    RESULTS.write_text(
        json.dumps(
            {
                "slowdown": slowdown,
                "supervisor_cores": statistics.median(costs),
                "ratios": ratios,
                "alone_s": alone,
                "supervised_s": supervised,
            },
            indent=2,
        )
        + "\n"
    )


if __name__ == "__main__":
    main()
