"""The Trainer given a model that is sharded with FSDP2 (``--kind plain``: the same, whole), on several ranks or one.

Each rank writes down what it began and ended with: parameters and optimizer state, put together from all ranks.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import warnings
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader

from artifactsync import Callback, FileLogger, Trainer
from tests.distributed.plain_loop import sharded, whole
from tests.training.digits import Digits, accuracy


class Watch(Callback):
    """Notes the state after loading, and ends one rank where it is told to."""

    def __init__(self, kill_at):
        self.kill_at = kill_at
        self.at_start = None

    def after_load(self, state, logger):
        self.at_start = whole(state.model, state.optimizers[0])
        self.timestamp = state.timestamp

    def before_backward(self, state, logger):
        if state.timestamp.batch == self.kill_at:
            state.run.wait()
            os.kill(os.getpid(), signal.SIGKILL)


def main(argv=None):
    parser = argparse.ArgumentParser()
    parser.add_argument("--remote", required=True)
    parser.add_argument("--local-root", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--kind", choices=["fsdp", "plain"], default="fsdp")
    parser.add_argument("--max-duration", default="1ep")
    parser.add_argument("--save-interval", default="1ep")
    parser.add_argument("--kill-rank", type=int)
    parser.add_argument("--kill-at", type=int)
    args = parser.parse_args(argv)
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module="torch")
    torch.set_num_threads(1)
    rank = int(os.environ.get("RANK", "0"))
    if args.kind == "fsdp":
        torch.distributed.init_process_group("gloo")
    torch.manual_seed(3)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.GELU(), nn.Dropout(0.2), nn.Linear(24, 10))
    if args.kind == "fsdp":
        sharded(net)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    watch = Watch(args.kill_at if args.kill_rank == rank else None)
    with Trainer(
        net,
        DataLoader(Digits(240), batch_size=15, shuffle=True),
        DataLoader(Digits(60, moved=False), batch_size=15),
        optimizer,
        torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.8),
        args.max_duration,
        loss_fn=nn.CrossEntropyLoss(),
        eval_metrics={"accuracy": accuracy},
        device_train_microbatch_size=5,
        clip_grad_norm=1.0,
        run_name="shards",
        remote=args.remote,
        local_root=args.local_root,
        save_interval=args.save_interval,
        autoresume=True,
        seed=7,
        loggers=[FileLogger()],
        callbacks=[watch],
        progress_bar=False,
        device="cpu",
    ) as trainer:
        trainer.fit()
        said = {
            "at_start": watch.at_start,
            "began_at": watch.timestamp.batch,
            "epochs": trainer.state.timestamp.epoch,
            "samples": trainer.state.timestamp.sample,
            "at_end": whole(net, optimizer),
            "learning_rate": optimizer.param_groups[0]["lr"],
            "random": float(torch.rand(())),
            "eval": trainer.state.eval_metrics,
        }
    Path(args.out, f"rank{rank}.json").write_text(json.dumps(said))
    if args.kind == "fsdp":
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
