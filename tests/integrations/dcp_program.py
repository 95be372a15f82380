"""Plain ``torch.distributed.checkpoint`` with FSDP2 and a ``Stateful``, as PyTorch's own recipe has it.

Every rank takes the whole batch, so that two, four or one of them end with the same bits: a mean of equal numbers over
a power of two is exact. With ``--kill-at`` all ranks are killed there, as when a machine is lost.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import warnings
from pathlib import Path

import torch
from torch import distributed, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.checkpoint.stateful import Stateful
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from artifactsync import ArtifactSyncError
from artifactsync.integrations.distributed import DistributedCheckpoints


class AppState(Stateful):
    def __init__(self, model, optimizer):
        self.model, self.optimizer = model, optimizer

    def state_dict(self):
        model, optimizer = get_state_dict(self.model, self.optimizer)
        return {"model": model, "optimizer": optimizer}

    def load_state_dict(self, state_dict):
        set_state_dict(
            self.model, self.optimizer, model_state_dict=state_dict["model"], optim_state_dict=state_dict["optimizer"]
        )


def begin_as_spawned():
    """As ranks of ``torch.multiprocessing.spawn`` begin: nothing in the environment tells which one this is."""
    rank, world_size = int(os.environ.pop("RANK")), int(os.environ.pop("WORLD_SIZE"))
    where = f"tcp://127.0.0.1:{os.environ.pop('MASTER_PORT')}"
    distributed.init_process_group("gloo", init_method=where, rank=rank, world_size=world_size)


def load_what_is_damaged(argv):
    """What each rank is told, into a file of its own."""
    remote, local_root, out = argv
    distributed.init_process_group("gloo")
    sync = DistributedCheckpoints("dcp", remote=remote, local_root=local_root)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            sync.load({"w": torch.zeros(4)})
        except ArtifactSyncError as error:
            Path(out, f"rank{distributed.get_rank()}.txt").write_text(f"{type(error).__name__}: {error}")
    distributed.barrier()
    sync.close("failed")
    distributed.destroy_process_group()


def main(argv=None):
    parser = argparse.ArgumentParser()
    parser.add_argument("--remote", required=True)
    parser.add_argument("--local-root", required=True)
    parser.add_argument("--final", type=Path)
    parser.add_argument("--until", type=int, default=12)
    parser.add_argument("--save-every", type=int, default=3)
    parser.add_argument("--kill-at", type=int)
    parser.add_argument("--spawned", action="store_true")
    args = parser.parse_args(argv)
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module="torch")
    torch.set_num_threads(1)
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 16))
    if args.spawned:
        begin_as_spawned()
    else:
        distributed.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)

    sync = DistributedCheckpoints("dcp", remote=args.remote, local_root=args.local_root)
    state = {"app": AppState(model, optimizer)}
    first = sync.load(state) + 1
    for step in range(first, args.until + 1):
        batch = torch.randn(16, 32, generator=torch.Generator().manual_seed(step))
        model(batch).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if step == args.kill_at:
            if sync.is_writer:
                sync.run.wait()
            distributed.barrier()
            os.kill(os.getpid(), signal.SIGKILL)
        if step % args.save_every == 0:
            sync.save(state, step=step)
    sync.close()
    whole = get_state_dict(model, optimizer, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if distributed.get_rank() == 0 and args.final:
        with args.final.open("wb") as file:  # a path's name would be in the bytes
            torch.save(whole, file)
    distributed.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
