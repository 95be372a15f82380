"""A training loop of your own, with a ``Run``: resume at the start, save every few batches. Nothing else changes.

    python examples/plain_loop.py --run-name digits --remote s3://bucket/runs
    python examples/plain_loop.py --run-name digits --remote s3://bucket/runs     # goes on where it was

Trains on the 1,797 handwritten digits that scikit-learn ships.
"""

from __future__ import annotations

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn

from artifactsync import Run
from artifactsync.checkpoint import RngState

BATCH = 64


def main() -> None:
    """Train, and say how well it went."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run-name", help="name of the run; generated if not given")
    parser.add_argument("--remote", required=True, help="where runs live: s3://bucket/prefix, gs://…, or a folder")
    parser.add_argument("--local-root", default="runs", help="local folder of all runs")
    parser.add_argument("--steps", type=int, default=300, help="batches to train on")
    parser.add_argument("--save-every", type=int, default=25, help="batches between checkpoints")
    args = parser.parse_args()

    pixels, labels = load_digits(return_X_y=True)
    inputs, targets = torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(labels)
    train, held_out = slice(0, 1500), slice(1500, None)

    torch.manual_seed(17)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Dropout(0.2), nn.Linear(128, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    loss_fn = nn.CrossEntropyLoss()

    # All that training is, by name. Objects with a state_dict() are saved and loaded in place.
    state = {"model": model, "optimizer": optimizer, "rng": RngState()}

    with Run(args.run_name, remote=args.remote, local_root=args.local_root) as run:
        resumed = run.resume(state)
        first = resumed.step if resumed else 0
        print(f"run {run.name}, attempt {run.attempt}: starting at step {first}")

        for step in range(first + 1, args.steps + 1):
            chosen = torch.randint(0, 1500, (BATCH,))
            loss = loss_fn(model(inputs[train][chosen]), targets[train][chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % args.save_every == 0 or step == args.steps:
                # Returns when the state is copied; writing and uploading go on behind the loop.
                run.save(state, step=step, metrics={"loss": loss.item()})
                print(f"step {step}: loss {loss.item():.3f}")

        model.eval()
        with torch.no_grad():
            accuracy = (model(inputs[held_out]).argmax(1) == targets[held_out]).float().mean().item()
    # Leaving the block waited until every checkpoint was durable.
    print(f"run {run.name} is durable up to step {max(first, args.steps)}; accuracy {accuracy:.3f}")


if __name__ == "__main__":
    main()
