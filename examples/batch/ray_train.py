"""A Ray Train job: the workers that Ray starts, on spot machines too, continue one run by name.

    ray job submit --working-dir . -- python examples/batch/ray_train.py --run-name digits --remote s3://bucket/runs

Ray starts the workers again after a failure (``FailureConfig``); what they have saved comes back from the bucket, so
that no shared disk and none of Ray's own storage is needed.
"""

from __future__ import annotations

import argparse
import os

import torch
from sklearn.datasets import load_digits
from torch import nn

from artifactsync import Run


def train(config: dict[str, str]) -> None:
    """One worker's loop; every worker runs it."""
    rank = int(os.environ.get("RANK", "0"))  # set by Ray's TorchTrainer
    pixels, labels = load_digits(return_X_y=True)
    inputs, targets = torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(labels)
    torch.manual_seed(17)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    if torch.distributed.is_initialized():
        model = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    state = {"model": model, "optimizer": optimizer}
    with Run(config["run_name"], remote=config["remote"]) as run:
        resumed = run.resume(state)
        for step in range(resumed.step + 1 if resumed else 1, int(config["steps"]) + 1):
            chosen = torch.randint(0, len(targets), (64,), generator=torch.Generator().manual_seed(1000 * step + rank))
            loss = nn.functional.cross_entropy(model(inputs[chosen]), targets[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % 20 == 0:
                run.save(state, step=step, metrics={"loss": loss.item()})
    print(f"rank {rank}: done")


def main() -> None:
    """Start the workers."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig  # noqa: PLC0415  (the loop above works without Ray)
    from ray.train.torch import TorchTrainer  # noqa: PLC0415

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run-name", required=True)
    parser.add_argument("--remote", required=True)
    parser.add_argument("--steps", default="100")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    TorchTrainer(
        train,
        train_loop_config=vars(arguments),
        scaling_config=ScalingConfig(num_workers=arguments.workers),
        run_config=RunConfig(failure_config=FailureConfig(max_failures=10)),
    ).fit()


if __name__ == "__main__":
    main()
