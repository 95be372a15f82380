"""torch.distributed.checkpoint, a folder per step, by two ranks under torchrun."""

import glob
import os
import sys
import time

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

steps, every, step_s = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
dist.init_process_group("gloo")
torch.manual_seed(dist.get_rank())
mine = {f"weight{dist.get_rank()}": torch.zeros(20_000)}
shared = {"step": torch.zeros(1)}
found = sorted(glob.glob("dcp/step-*"), key=lambda path: int(path.rpartition("-")[2]))
start = 0
if found:
    state = {**mine, **shared}
    dcp.load(state, checkpoint_id=found[-1])
    start = int(shared["step"].item())
    assert all((value == start).all() for value in mine.values()), "half of one checkpoint, half of another"
if dist.get_rank() == 0:
    print("resumed", start, flush=True)
for step in range(start + 1, steps + 1):
    for value in mine.values():
        value += 1
    time.sleep(step_s)
    if dist.get_rank() == 0:
        print("step", step, flush=True)
    if step % every == 0:
        shared["step"].fill_(step)
        os.makedirs(f"dcp/step-{step}", exist_ok=True)
        dcp.save({**mine, **shared}, checkpoint_id=f"dcp/step-{step}")
dist.barrier()
if dist.get_rank() == 0:
    print("finished", steps, flush=True)
dist.destroy_process_group()
