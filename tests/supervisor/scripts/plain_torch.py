"""As in many a tutorial: one file per step, the newest is loaded."""

import glob
import os
import sys
import time

import torch

steps, every, step_s = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
torch.manual_seed(0)
model = torch.nn.Linear(50, 50)
optimizer = torch.optim.AdamW(model.parameters())
start = 0
os.makedirs("checkpoints", exist_ok=True)
found = sorted(glob.glob("checkpoints/step_*.pt"), key=lambda path: int(path.rpartition("_")[2][:-3]))
if found:
    saved = torch.load(found[-1], weights_only=True)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    start = saved["step"]
print("resumed", start, flush=True)
for step in range(start + 1, steps + 1):
    loss = model(torch.randn(8, 50)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    time.sleep(step_s)
    print("step", step, flush=True)
    if step % every == 0:
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
        torch.save(state, f"checkpoints/step_{step}.pt")
print("finished", steps, flush=True)
