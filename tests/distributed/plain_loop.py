"""A loop of the user's own under torchrun, as a program: FSDP2 or DDP, saved and resumed by ``Run``.

``--until N`` optimizer steps in all, a checkpoint after every one of ``--save-at``; prints what each rank ended with.
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import json
import os
import random
import signal
import sys
import threading
import time
import warnings
from pathlib import Path

import torch
from torch import distributed, nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from artifactsync import ArtifactSyncError, Run
from artifactsync.checkpoint import RngState, together
from artifactsync.errors import RemoteUnreachableError
from artifactsync.journal import part_publisher
from artifactsync.journal import together as gathering
from artifactsync.stores import open_store
from artifactsync.testing import FaultyStore
from tests.fault_proxy import FaultProxy


def model():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(10, 24), nn.GELU(), nn.Linear(24, 16), nn.GELU(), nn.Linear(16, 4))


def digest(state):
    """A hash of everything in a nested state, tensors whole."""
    found = hashlib.sha256()

    def add(value):
        if isinstance(value, dict):
            for key in sorted(value, key=str):
                found.update(str(key).encode())
                add(value[key])
        elif isinstance(value, (list, tuple)):
            for each in value:
                add(each)
        elif isinstance(value, torch.Tensor):
            whole = value.full_tensor() if hasattr(value, "full_tensor") else value
            found.update(whole.detach().contiguous().numpy().tobytes())
        else:
            found.update(repr(value).encode())

    add(state)
    return found.hexdigest()[:16]


def whole(net, optimizer):
    return digest(get_model_state_dict(net)), digest(get_optimizer_state_dict(net, optimizer)["state"])


def said(out, rank):
    """What a rank wrote down at its end."""
    return json.loads(Path(out, f"rank{rank}.json").read_text())


def arguments(argv=None):
    parser = argparse.ArgumentParser()
    parser.add_argument("--remote", required=True)
    parser.add_argument("--local-root", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--kind", choices=["fsdp", "ddp", "plain"], default="fsdp")
    parser.add_argument("--until", type=int, default=3)
    parser.add_argument("--save-at", type=int, nargs="*", default=[])
    parser.add_argument("--kill-rank", type=int)
    parser.add_argument("--kill-in", default="write")
    parser.add_argument("--kill-at", type=int)
    parser.add_argument("--kill-call", help="like put:*__1_0.distcp:before, instead of --kill-in")
    parser.add_argument("--down-rank", type=int)
    parser.add_argument(
        "--line-to", help="the server to which --down-rank has a line, which is cut; else its calls fail"
    )
    parser.add_argument("--part-timeout", type=float, default=60.0)
    return parser.parse_args(argv)


def arm(args, step, rank):
    """Have this very rank killed in the midst of the save of ``step``."""
    if args.kill_rank != rank or args.kill_at != step or args.kill_call:
        return

    def die(*_, **__):
        os.kill(os.getpid(), signal.SIGKILL)

    if args.kill_in == "write":
        together.write_whole = die
    elif rank:
        part_publisher.deliver_part = die
    else:
        gathering.gather = die


def faulty(args, is_on):
    """The remote of a rank that has trouble of its own once ``is_on`` is set."""
    operation, pattern, moment = (args.kill_call or "::").split(":")

    def die(call):
        if is_on.is_set() and call.operation == operation and fnmatch.fnmatchcase(call.key, pattern):
            os.kill(os.getpid(), signal.SIGKILL)

    def fail(call):
        if is_on.is_set():
            raise RemoteUnreachableError(f"{call.key}: no route", url=args.remote)

    hooks = {"before": {"on_call": die}, "after": {"on_answer": die}, "": {"on_call": fail}}
    return FaultyStore(open_store(args.remote), **hooks[moment])


def own_line(origin):
    """A line to the server for this process alone; to be cut."""
    line = FaultProxy(origin)
    os.environ.update({name: value.replace(origin, line.url) for name, value in os.environ.items() if origin in value})
    return line


def train(call, optimizer, step, rank):
    """One optimizer step on this rank's share of a batch that depends on the step alone."""
    batch = torch.randn(8, 10, generator=torch.Generator().manual_seed(step))
    share = batch.chunk(distributed.get_world_size())[rank] if distributed.is_initialized() else batch
    optimizer.zero_grad()
    call(share).square().mean().backward()
    optimizer.step()


def sharded(net):
    """FSDP2 over all ranks."""
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    for layer in net:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    fully_shard(net, mesh=mesh)


def main(argv=None):  # noqa: C901, PLR0915  (a script)
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module="torch")
    args = arguments(argv)
    torch.set_num_threads(1)
    many = int(os.environ.get("WORLD_SIZE", "1")) > 1
    rank = int(os.environ.get("RANK", "0"))
    if many:
        distributed.init_process_group("gloo")
    net = model()
    if args.kind == "fsdp" and many:
        sharded(net)
    call = nn.parallel.DistributedDataParallel(net) if args.kind == "ddp" else net
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
    progress = {"step": 0}
    state = {
        "model": net, "optimizer": optimizer, "scheduler": scheduler, "progress": progress,
        "mine": {"rank": rank}, "rng": RngState(),
    }  # fmt: skip
    torch.manual_seed(100 + rank)
    random.seed(200 + rank)
    errors, out, trouble = [], {"rank": rank}, threading.Event()
    remote, line = args.remote, None
    if args.down_rank == rank and args.line_to:
        line = own_line(args.line_to)
    elif args.down_rank == rank or (args.kill_call and args.kill_rank == rank):
        remote = faulty(args, trouble)
    try:
        with Run("many", remote=remote, local_root=args.local_root, part_timeout_s=args.part_timeout) as run:
            resumed = run.resume(state, per_rank=["mine"])
            out["resumed"] = None if resumed is None else resumed.step
            out["mine"] = state["mine"]
            out["at_start"] = whole(net, optimizer)
            out["draws"] = [float(torch.rand(())), random.random()]
            for step in range(progress["step"] + 1, args.until + 1):
                arm(args, step, rank)
                if step == args.kill_at:
                    trouble.set()
                    if line:
                        line.cut()
                train(call, optimizer, step, rank)
                scheduler.step()
                progress["step"] = step
                if step in args.save_at:
                    before = time.monotonic()
                    pending = run.save(state, step=step, per_rank=["mine"])
                    try:
                        out["files"] = [file.path for file in pending.result(90).files]
                    except ArtifactSyncError as error:
                        errors.append(f"{type(error).__name__}: {error}")
                    out["seconds"] = time.monotonic() - before
            out["next_draws"] = [float(torch.rand(())), random.random()]
            out["at_end"] = whole(net, optimizer)
    except ArtifactSyncError as error:
        out["closing"] = f"{type(error).__name__}: {error}"
    out["errors"] = errors
    Path(args.out, f"rank{rank}.json").write_text(json.dumps(out))
    if many:
        distributed.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
