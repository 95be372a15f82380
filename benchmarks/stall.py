"""How long training stands still for a save, against other ways, and against one ``copy_`` of the state.

One process per contender trains a model whose state is 0.5 GB in 320 tensors, with one thread. They take turns; in a
turn a contender saves once and trains on until all is uploaded to a native sink in a process of its own. *Stall* is
what the call that saves takes, and, where the copy overlaps training, what the optimizer then waits for the rest.
*Lost* is all: the time from the save until its upload is over, less what the steps made meanwhile take alone.

Composer and Lightning run under the Python that ``ARTIFACTSYNC_BENCH_PEERS`` names (``uv venv peers && uv pip install
--python peers/bin/python mosaicml lightning s3fs boto3``): Composer wants an older torch. Without it they are missing.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import beside, plots, report, stall_peers
from benchmarks.uploader_cost import _sink

if TYPE_CHECKING:
    from collections.abc import Callable

ROUNDS = int(os.environ.get("ARTIFACTSYNC_BENCH_ROUNDS", "5"))
"""Five took seven minutes at a load average of 11 on two cores, with the start of the peers."""
OURS = ("artifactsync", "artifactsync, overlapped")
BARS = {"torch.save + boto3": 50, "DCP async_save + s3fs": 10, "Composer": 20, "Lightning AsyncCheckpointIO": 10}
_LARGE_BYTES = 1 << 20
_FOREIGN = ("Composer", "Lightning AsyncCheckpointIO")


def measure() -> None:
    with tempfile.TemporaryDirectory(prefix="artifactsync-bench-") as folder, _sink(Path(folder)) as endpoint_url:
        children, missing = _start(endpoint_url)
        versions = {}
        for name, child in list(children.items()):
            line = child.stdout.readline() if child.stdout else ""
            if line:
                versions[name] = json.loads(line)["ready"]
            else:
                missing[name] = f"its process ended: {_last_words(children.pop(name))}"
        rounds: dict[str, list[dict[str, float]]] = {name: [] for name in children}
        try:
            for number in range(ROUNDS + 1):  # the first one is to warm up
                for name, child in list(children.items()):
                    answer = _ask(child)
                    if answer is None:
                        missing[name] = f"its process ended in round {number}: {_last_words(children.pop(name))}"
                    elif number:
                        rounds[name].append(answer)
        finally:
            for child in children.values():
                os.killpg(child.pid, signal.SIGKILL)  # Composer has uploading processes of its own
                child.wait()
    _tell({name: rounds[name] for name in children}, missing, versions)


def _tell(rounds: dict[str, list[dict[str, float]]], missing: dict[str, str], versions: dict[str, Any]) -> None:
    plain, overlapped = (rounds[name] for name in OURS)
    stall_s = {name: [each["stall_s"] for each in taken] for name, taken in rounds.items()}
    to_copy = {
        name: _spread([each["stall_s"] / each["copy_s"] for each in taken])
        for name, taken in (zip(OURS, (plain, overlapped), strict=True))
    }
    against = {
        name: {
            ours: _spread([theirs / mine for theirs, mine in zip(stall_s[name], stall_s[ours], strict=True)])
            for ours in OURS
        }
        for name in rounds
        if name not in OURS
    }
    figures: dict[str, Any] = {
        "rounds": ROUNDS,
        "state_bytes": int(plain[0]["state_bytes"]),
        "stall_s": {name: _spread(values) for name, values in stall_s.items()},
        "lost_s": {name: _spread([each["lost_s"] for each in taken]) for name, taken in rounds.items()},
        "lost_peers_to_ours": {
            name: {
                ours: statistics.median(a["lost_s"] / b["lost_s"] for a, b in zip(taken, rounds[ours], strict=True))
                for ours in OURS
            }
            for name, taken in rounds.items()
            if name not in OURS
        },
        "copy_s": _spread([each["copy_s"] for each in plain + overlapped]),
        "forward_backward_s": _spread([each["forward_backward_s"] for each in overlapped]),
        "stall_to_copy": to_copy,
        "stall_to_copy_bars": dict(zip(OURS, (1.10, 0.15), strict=True)),
        "peers_to_ours": against,
        "peers_bars": BARS,
        "peak_above_state_bytes": {name: max(each["peak_bytes"] for each in rounds[name]) for name in OURS},
        "missing": missing,
        "versions": versions,
        "raw": rounds,
    }
    report.save("stall", figures)
    plots.draw_stall()
    rows = []
    for name, values in stall_s.items():
        spread = _spread(values)
        ratio = [f"{to_copy[name]['median']:.2f}" if name in to_copy else ""]
        ratio += [f"{against[name][ours]['median']:.0f}" if name in against else "" for ours in OURS]
        ratio += [f"{figures['lost_s'][name]['median'] * 1000:.0f}"]
        rows.append([name, *(f"{spread[key] * 1000:.1f}" for key in ("median", "min", "max")), *ratio])
    rows += [[name, "missing", *[""] * 6] for name in missing]
    report.show(
        f"Stall for one save of {figures['state_bytes'] / 1e9:.2f} GB in ms, medians of {ROUNDS}; "
        f"one copy_ takes {figures['copy_s']['median'] * 1000:.1f}, "
        f"forward and backward {figures['forward_backward_s']['median'] * 1000:.0f}",
        ["contender", "median", "min", "max", "÷ copy_", "÷ ours", "÷ ours, overlapped", "lost in all"],
        rows,
    )
    for name, reason in missing.items():
        print(f"missing: {name}: {reason}")
    peaks = {name: f"{size / 2**20:.0f} MiB" for name, size in figures["peak_above_state_bytes"].items()}
    print(f"peak memory above the state and training: {peaks}, of {figures['state_bytes'] / 2**20:.0f} MiB of state")


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def _start(endpoint_url: str) -> tuple[dict[str, subprocess.Popen[str]], dict[str, str]]:
    children, missing = {}, {}
    peers = os.environ.get("ARTIFACTSYNC_BENCH_PEERS")
    script = str(Path(stall_peers.__file__))
    for name in (*OURS, *stall_peers.CONTENDERS):
        command = [sys.executable, script, name, endpoint_url]
        if name in OURS:
            command = [sys.executable, "-m", "benchmarks.stall", name, endpoint_url]
        elif name in _FOREIGN:
            if peers is None or not Path(peers).exists():
                missing[name] = "ARTIFACTSYNC_BENCH_PEERS names no Python that has it"
                continue
            command[0] = peers
        children[name] = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[1],
            start_new_session=True,
        )
    return children, missing


def _ask(child: subprocess.Popen[str]) -> dict[str, float] | None:
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        child.stdin.write("\n")
        child.stdin.flush()
    except BrokenPipeError:
        return None
    line = child.stdout.readline()
    return json.loads(line) if line else None


def _last_words(child: subprocess.Popen[str]) -> str:
    child.kill()
    _, errors = child.communicate()
    return (errors.strip().splitlines() or ["no words"])[-1][:300]


# In the child: ours.


class _SinkStore:
    """The sink for what is large; the memory of this process for the journal, which wants to be read again."""

    def __init__(self, endpoint_url: str) -> None:
        from artifactsync.stores import open_store

        self._journal = open_store("memory://bench", None)
        self._sink = open_store("s3://bucket", {"endpoint_url": endpoint_url, "key": "k", "secret": "s"})
        self.origin = self._sink.origin  # what is large may be sent by the process beside this one

    def put(self, key: str, body: Any) -> Any:
        is_large = not isinstance(body, bytes) and body.size_bytes >= _LARGE_BYTES
        return (self._sink if is_large else self._journal).put(key, body)

    def head(self, key: str) -> Any:
        return (self._sink if key.endswith(".pt") else self._journal).head(key)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._journal, name)


def _ours(training: stall_peers.Training, endpoint_url: str, folder: Path, *, overlap: bool) -> Any:
    import torch

    from artifactsync import Run
    from artifactsync.checkpoint.savers import saver_of

    run = Run("bench", remote=_SinkStore(endpoint_url), local_root=folder)
    training.step()
    tensors = [*training.model.state_dict().values()]
    tensors += [each for kept in training.optimizer.state.values() for each in kept.values()]
    copies = [tensor.clone() for tensor in tensors]
    size_bytes = sum(tensor.nbytes for tensor in tensors)
    _reset_peak()
    training.step()  # its gradients are not what saving takes
    before_bytes = _peak_bytes()
    _reset_peak()
    run.prepare(training.state)
    copied: list[float] = []

    def copy_s() -> float:
        began = time.perf_counter()
        with torch.no_grad():
            for target, source in zip(copies, tensors, strict=True):
                target.copy_(source)
        return time.perf_counter() - began

    def save(number: int) -> tuple[float, Callable[[], bool]]:
        copied[:] = [copy_s()]
        began = time.perf_counter()
        state = {"model": training.model, "optimizer": training.optimizer}
        pending = run.save(state, step=number, overlap=[training.optimizer] if overlap else [])
        took_s = time.perf_counter() - began
        if overlap:
            training.step()
            took_s += saver_of(run)._snapshot.waited_s  # type: ignore[union-attr]  # noqa: SLF001
        copied.append(copy_s())

        def is_done() -> bool:
            if not pending.done():
                return False
            pending.result()
            for file in run.local_dir.rglob("*.pt"):
                file.unlink()
            return True

        return took_s, is_done

    save.more = lambda: {  # type: ignore[attr-defined]
        "copy_s": statistics.mean(copied),
        "apart_s": sum(copied),  # measured within the time that is looked at
        "state_bytes": size_bytes,
        "peak_bytes": _peak_bytes() - before_bytes,
    }
    return save


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _peak_bytes() -> int:
    """Most memory in use since the last reset; with the most that the process beside this one ever had."""
    lines = Path("/proc/self/status").read_text().splitlines()
    own = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024
    return own + beside.memory_bytes("VmHWM")


if __name__ == "__main__":
    is_overlapped = sys.argv[1] == OURS[1]
    stall_peers.contend(
        lambda training, url, folder: _ours(training, url, folder, overlap=is_overlapped),
        sys.argv[2],
        answer=sys.stdout,
    )
