"""Ranks of two machines (folders) resume, whole or in part, or load a file; each says what it fetched of it."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import torch
from torch import distributed

from artifactsync import Run
from artifactsync.stores import open_store
from artifactsync.testing import FaultyStore
from artifactsync.training import load_path


def counted(url):
    """A store that counts the bytes that it gives of checkpoints, and the count."""
    count = [0]

    class Counted(FaultyStore):
        def get(self, key, *, start=0, end=None):
            data = super().get(key, start=start, end=end)
            count[0] += len(data) if key.endswith(".pt") else 0
            return data

    return Counted(open_store(url)), count


def main(argv=None):
    parser = argparse.ArgumentParser()
    parser.add_argument("--remote", required=True)
    parser.add_argument("--local-root", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--how", choices=["whole", "part", "file", "file-part"], required=True)
    args = parser.parse_args(argv)
    rank, on_host = int(os.environ["RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    os.environ["LOCAL_RANK"] = str(rank % on_host)
    host = Path(args.local_root) / f"host{rank // on_host}"
    distributed.init_process_group("gloo")
    store, count = counted(args.remote)
    only = "model" if "part" in args.how else None
    if args.how in {"whole", "part"}:
        with Run("r", remote=store, local_root=host) as run:
            state = run.resume(only=only).state
    else:
        load_path.open_store = lambda *_: counted_below(store)
        where = f"{args.remote}/r/checkpoints/ep0-ba1-rank0.pt"
        folder = host / "r" / ".artifactsync" / "loaded"
        state = load_path.read_checkpoint(
            where, run_name="x", storage_options=None, map_location="cpu", folder=folder, only=only and [only]
        )
    distributed.barrier()
    kept = [path.name for path in host.rglob("*") if path.is_file() and path.suffix in {".pt", ".part"}]
    said = {"bytes": count[0], "sum": float(state["model"]["w"].sum()), "names": sorted(state), "kept": kept}
    Path(args.out, f"rank{rank}.json").write_text(json.dumps(said))
    distributed.destroy_process_group()
    assert torch.equal(state["model"]["w"], torch.arange(300_000.0))


def counted_below(store):
    """The same store, from the folder of the checkpoints on."""
    from artifactsync.stores.prefix import PrefixStore  # noqa: PLC0415

    return PrefixStore(store, "r/checkpoints")
