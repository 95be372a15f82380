"""How much of a slow line an upload and a download use: 20 ms away, at 500 Mbit/s and at 5 Gbit/s.

The native sink shapes the line itself: what all connections together receive or send passes a token bucket, and every
answer and every new connection waits for the latency. *Share* is bytes over seconds over the line's bandwidth, from
the first request to the last answer, sha256 included for ours; bytes of protocol do not count.
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import plots, report
from benchmarks.native_sink import native_sink
from benchmarks.transfer_contenders import MissingError, contender
from benchmarks.transfers import fast_folder

LINES = {"500 Mbit/s": (500e6 / 8, 256 << 20), "5 Gbit/s": (5e9 / 8, 1024 << 20)}
LATENCY_S = 0.020
NAMES = ("artifactsync", "s5cmd", "boto3 + CRT", "boto3")
ROUNDS = int(os.environ.get("ARTIFACTSYNC_BENCH_ROUNDS", "5"))
BAR = 0.95


def measure() -> None:
    figures: dict[str, Any] = {"rounds": ROUNDS, "latency_s": LATENCY_S, "bar": BAR, "share": {}, "missing": {}}
    with tempfile.TemporaryDirectory(prefix="artifactsync-bench-", dir=fast_folder()) as name:
        folder = Path(name)
        for line, (bytes_per_s, size_bytes) in LINES.items():
            source = folder / "s3" / "one"
            source.mkdir(parents=True)
            with (source / "model.bin").open("wb") as file:
                for _ in range(size_bytes >> 24):
                    file.write(os.urandom(1 << 24))
            with native_sink(folder, root=folder / "s3", bytes_per_s=bytes_per_s, latency_s=LATENCY_S) as sink:
                for name_of in NAMES:
                    try:
                        with contender(name_of, sink, folder) as each:
                            for direction in ("up", "down"):
                                shares = [
                                    size_bytes
                                    / each.move(direction, source, f"{number}-{name_of}")["wall_s"]
                                    / bytes_per_s
                                    for number in range(ROUNDS)
                                ]
                                spread = {"median": statistics.median(shares), "min": min(shares), "max": max(shares)}
                                figures["share"].setdefault(f"{line}, {direction}", {})[name_of] = spread
                    except MissingError as error:
                        figures["missing"][name_of] = str(error)
            shutil.rmtree(folder / "s3")
    report.save("shaped_link", figures)
    plots.draw_shaped_link()
    report.show(
        f"Share of the line's bandwidth in use, {LATENCY_S * 1000:.0f} ms away, medians of {ROUNDS} (bar {BAR})",
        ["line", *NAMES],
        [
            [line, *(f"{shares[name]['median']:.2f}" if name in shares else "missing" for name in NAMES)]
            for line, shares in figures["share"].items()
        ],
    )
    for name_of, reason in figures["missing"].items():
        print(f"missing: {name_of}: {reason}", file=sys.stderr)
