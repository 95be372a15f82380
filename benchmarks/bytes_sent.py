"""Bytes sent for each byte that changed: frozen backbone, last == best, one edited shard, a growing log.

What is sent is counted where it leaves: each chunk that a store takes of a checkpoint's file or of a log. Records of
the journal, pointers and heartbeats are counted apart. Copies inside the remote are no bytes sent.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import report

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from artifactsync.stores.protocol import Body

_MIB = 1 << 20


class _Counting:
    """A body whose bytes are counted as they are taken."""

    def __init__(self, body: Body, count: Callable[[int], None]) -> None:
        self._body, self._count = body, count

    @property
    def size_bytes(self) -> int:
        return self._body.size_bytes

    def chunks(self, chunk_bytes: int) -> Iterator[bytes]:
        for chunk in self._body.chunks(chunk_bytes):
            self._count(len(chunk))
            yield chunk


def measure() -> None:
    """Measure all four, and write them down."""
    import torch

    torch.set_num_threads(1)
    figures = {}
    with tempfile.TemporaryDirectory(prefix="artifactsync-bytes-") as name:
        for what, play in (
            ("frozen backbone", _frozen),
            ("last == best", _best),
            ("edited shard", _shard),
            ("growing log, 100 flushes", _log),
        ):
            folder = Path(name) / what.split()[0]
            figures[what] = play(folder)
    rows = [
        [what, f"{each['changed'] / _MIB:.2f}", f"{each['sent'] / _MIB:.2f}", f"{each['sent'] / each['changed']:.3f}"]
        for what, each in figures.items()
    ]
    report.save("bytes_sent", {"figures": figures})
    report.show("Bytes sent, bytes changed", ["what", "changed, MiB", "sent, MiB", "sent ÷ changed"], rows)


def _open(folder: Path) -> tuple[Any, dict[str, int]]:
    from artifactsync import Run
    from artifactsync.stores import open_store
    from artifactsync.stores.prefix import PrefixStore

    sent = {"files": 0, "logs": 0, "records": 0}

    class Watched(PrefixStore):
        """Counts what is put."""

        def put(self, key: str, body: Body | bytes) -> Any:
            kind = _kind(key)
            if isinstance(body, bytes):
                sent[kind] += len(body)
                return super().put(key, body)

            def count(size_bytes: int) -> None:
                sent[kind] += size_bytes

            return super().put(key, _Counting(body, count))

        def put_if_absent(self, key: str, body: Body | bytes) -> Any:
            sent[_kind(key)] += len(body) if isinstance(body, bytes) else body.size_bytes
            return super().put_if_absent(key, body)

    store = Watched(open_store(f"file://{folder}/remote"), "here")
    return Run("r", remote=store, local_root=folder / "runs"), sent


def _kind(key: str) -> str:
    if "/.artifactsync/tails/" in key:
        return "logs"
    return "records" if "/.artifactsync/" in key else "files" if "/checkpoints/" in key else "logs"


def _frozen(folder: Path) -> dict[str, Any]:
    """Ten checkpoints of a model whose backbone is frozen, after the two in which that becomes known."""
    import torch

    run, sent = _open(folder)
    model = torch.nn.ModuleDict({"backbone": torch.nn.Linear(4096, 4096), "head": torch.nn.Linear(4096, 1024)})
    model["backbone"].requires_grad_(requires_grad=False)
    head = model["head"]
    optimizer = torch.optim.Adam(head.parameters())
    per_step = 3 * sum(p.numel() * 4 for p in head.parameters())  # it, and Adam's two moments
    first_sent = 0
    steps = 12
    with run:
        for step in range(1, steps + 1):
            optimizer.zero_grad()
            head(torch.randn(8, 4096)).square().mean().backward()
            optimizer.step()
            run.save({"model": model, "optimizer": optimizer, "step": step}, step=step).result()
            if step == 2:
                first_sent = sent["files"]
    whole = sum(p.numel() * 4 for p in model.parameters()) + per_step * 2 // 3
    return {
        "changed": per_step * (steps - 2),
        "sent": sent["files"] - first_sent,
        "sent_in_the_first_two": first_sent,
        "whole_state": whole,
        "records": sent["records"],
    }


def _best(folder: Path) -> dict[str, Any]:
    """A file under the names of last and best, within one checkpoint and in a later one."""
    run, sent = _open(folder)
    changed = 0
    with run:
        for step in range(1, 6):
            data = os.urandom(8 * _MIB)
            changed += len(data)
            last, best = run.local_dir / f"last-{step}.pt", run.local_dir / f"best-{step}.pt"
            last.write_bytes(data)
            best.write_bytes(data)
            run.save_files(
                {f"checkpoints/{step}/last.pt": last, f"checkpoints/{step}/best.pt": best}, step=step
            ).result()
            run.save_files({f"checkpoints/best-at-{step}.pt": best}, step=step, name=f"best-{step}").result()
    return {"changed": changed, "sent": sent["files"], "records": sent["records"]}


def _shard(folder: Path) -> dict[str, Any]:
    """Sixteen shards, of which one changes from one checkpoint to the next."""
    run, sent = _open(folder)
    shards = [run.local_dir / f"shard{number}.pt" for number in range(16)]
    for shard in shards:
        shard.write_bytes(os.urandom(2 * _MIB))
    with run:
        run.save_files({f"checkpoints/{shard.name}": shard for shard in shards}, step=0).result()
        first, changed = sent["files"], 0
        for step in range(1, 11):
            edited = run.local_dir / f"edit{step}.pt"
            edited.write_bytes(os.urandom(2 * _MIB))
            changed += 2 * _MIB
            shards[step] = edited
            files = {f"checkpoints/shard{number}.pt": shard for number, shard in enumerate(shards)}
            run.save_files(files, step=step).result()
    return {"changed": changed, "sent": sent["files"] - first, "records": sent["records"]}


def _log(folder: Path) -> dict[str, Any]:
    """A log that is pushed a hundred times while it grows, and sealed at the end."""
    run, sent = _open(folder)
    file = run.local_dir / "logs-rank0.txt"
    with run:
        for number in range(100):
            with file.open("ab") as log:
                log.write(b"[metric][batch=%06d] loss 0.1234567890\n" % number * 500)
            run.push(file, growing=True).result()
    return {"changed": file.stat().st_size, "sent": sent["logs"], "records": sent["records"]}
