"""Loading a checkpoint into an existing model and optimizer, against ``torch.load(mmap=True)`` and ``copy_`` by hand.

The file is in the page cache for both; rounds alternate.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import report

if TYPE_CHECKING:
    from collections.abc import Callable

_ROUNDS = 9
_LAYERS, _WIDTH = 128, 1024


def measure() -> None:
    """Measure, and write it down."""
    import torch

    from artifactsync.checkpoint.load import load_file, restore
    from artifactsync.checkpoint.snapshot import SnapshotBuffers, take_snapshot
    from artifactsync.checkpoint.write import write_snapshot

    torch.set_num_threads(1)
    model = torch.nn.Sequential(*(torch.nn.Linear(_WIDTH, _WIDTH, bias=False) for _ in range(_LAYERS)))
    with tempfile.TemporaryDirectory(prefix="artifactsync-load-") as name:
        path = Path(name) / "x.pt"
        size_bytes = write_snapshot(take_snapshot({"model": model}, SnapshotBuffers()), path).size_bytes

        def ours() -> None:
            restore({"model": model}, load_file(path))

        def by_hand() -> None:
            saved = torch.load(path, weights_only=True, mmap=True)["model"]
            with torch.no_grad():
                for key, parameter in model.state_dict().items():
                    parameter.copy_(saved[key])

        def torchs() -> None:
            model.load_state_dict(torch.load(path, weights_only=True)["model"])

        contenders: dict[str, Callable[[], None]] = {"ours": ours, "mmap + copy_": by_hand, "torch.load": torchs}
        taken: dict[str, list[float]] = {each: [] for each in contenders}
        for number in range(_ROUNDS + 1):  # the first one is to warm up
            for each, call in contenders.items():
                began = time.perf_counter()
                call()
                if number:
                    taken[each].append((time.perf_counter() - began) * 1e3)
    figures: dict[str, Any] = {
        each: {
            "ms": statistics.median(times),
            "ratio_to_ours": statistics.median(a / b for a, b in zip(taken["ours"], times, strict=True)),
        }
        for each, times in taken.items()
    }
    report.save("load", {"state_bytes": size_bytes, "rounds": _ROUNDS, "figures": figures})
    report.show(
        f"Load of {size_bytes / 2**20:.0f} MiB into an existing model, medians of {_ROUNDS}",
        ["how", "ms", "ours ÷ it"],
        [[each, f"{figure['ms']:.0f}", f"{figure['ratio_to_ours']:.2f}"] for each, figure in figures.items()],
    )
