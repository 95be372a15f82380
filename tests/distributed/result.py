"""What a run of ``ddp_digits`` ended with, so that an interrupted and an uninterrupted one can be compared."""

from __future__ import annotations

import torch

from artifactsync import Run
from artifactsync.checkpoint.load import load_file


def result(remote, host):
    """Every rank's state at the end, without clocks and the position of logs; and every rank's metric lines."""
    run = Run("digits", remote=str(remote), local_root=host / "look", read_only=True)
    assert run.status().state == "completed"
    latest = run.latest()
    local = run.ensure_local(latest)
    states, lines = {}, {}
    for path in sorted(local):
        state = load_file(local[path])
        for name in ("total_wct", "epoch_wct", "batch_wct"):
            if "timestamp" in state:
                del state["timestamp"][name]
        del state["loggers"]
        states[path.rpartition("/")[2]] = state
    for log in sorted((host / "digits").glob("logs-rank*.txt")):
        lines[log.name] = [line for line in log.read_text().splitlines() if line.startswith("[metric]")]
    return states, lines


def differences(one, other, path="state"):
    """Where two nested states differ; bit by bit."""
    if type(one) is not type(other):
        return [path]
    if isinstance(one, torch.Tensor):
        return [] if one.dtype == other.dtype and torch.equal(one, other) else [path]
    if isinstance(one, dict) and list(one) == list(other):
        return [found for name in one for found in differences(one[name], other[name], f"{path}[{name!r}]")]
    if isinstance(one, (list, tuple)) and len(one) == len(other):
        both = enumerate(zip(one, other, strict=True))
        return [found for index, (left, right) in both for found in differences(left, right, f"{path}[{index}]")]
    return [] if one == other else [path]
