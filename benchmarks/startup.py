"""What a user waits for before anything happens: ``artifactsync --help``, against peers of the same kind.

Whole processes, taking turns; wall seconds, medians of ``ROUNDS``. Peers that are not installed are said to be missing.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.report import save, show

ROUNDS = 15
BAR_S = 0.3
_BIN = Path(sys.executable).parent


def measure() -> None:
    """Time each command's ``--help``, and the bare interpreter as the floor; print and save."""
    commands = {
        "python -c pass (the floor)": [sys.executable, "-c", "pass"],
        "artifactsync --help": [str(_BIN / "artifactsync"), "--help"],
        "artifactsync ls --help": [str(_BIN / "artifactsync"), "ls", "--help"],
        "aws --version": [str(_BIN / "aws"), "--version"],
        "s5cmd --help": [str(_BIN / "s5cmd"), "--help"],
        "rclone --help": [str(_BIN / "rclone"), "--help"],
    }
    missing = [name for name, command in commands.items() if shutil.which(command[0]) is None]
    present = {name: command for name, command in commands.items() if name not in missing}
    seconds: dict[str, list[float]] = {name: [] for name in present}
    for _ in range(ROUNDS):
        for name, command in present.items():
            began = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            seconds[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    rows = [
        [name, f"{medians[name] * 1000:.0f}", f"{min(values) * 1000:.0f}", f"{max(values) * 1000:.0f}"]
        for name, values in seconds.items()
    ]
    show("start-up, ms", ["command", "median", "min", "max"], [*rows, *([name, "missing", "", ""] for name in missing)])
    save("startup", {"rounds": ROUNDS, "bar_s": BAR_S, "seconds": seconds, "median_s": medians, "missing": missing})
