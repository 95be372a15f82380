"""A small training run with every logger, as a program: started, killed and resumed by the tests."""

from __future__ import annotations

import argparse
import os
import signal
import sys

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from artifactsync import Callback, FileLogger, Trainer
from artifactsync.loggers import CometMLLogger, MLFlowLogger, TensorboardLogger, WandBLogger
from artifactsync.loggers.service_logger import ServiceLogger

KINDS = {
    "tensorboard": lambda args: TensorboardLogger(log_dir=args.log_dir),
    "wandb": lambda _: WandBLogger(project="p"),
    "comet": lambda _: CometMLLogger(
        project_name="p",
        exp_kwargs={"log_git_metadata": False, "log_env_details": False, "display_summary_level": 0},
        offline=True,
    ),
    "mlflow": lambda _: MLFlowLogger("e"),
    "file": lambda _: FileLogger(),
}


class FailAt(Callback):
    """Ends training by an error, or by a stop signal."""

    def __init__(self, batch, *, stop):
        self.batch, self.stop = batch, stop

    def before_backward(self, state, logger):
        if state.timestamp.batch == self.batch:
            if not self.stop:
                raise RuntimeError("loss is nan")
            signal.raise_signal(signal.SIGTERM)


class KillAt(Callback):
    def __init__(self, batch):
        self.batch = batch

    def batch_end(self, state, logger):
        print("batch", state.timestamp.batch)
        if state.timestamp.batch == self.batch:
            logger.deliver()
            for destination in logger.destinations:
                if isinstance(destination, ServiceLogger):
                    assert destination.wait(60)
            for files in logger.flush():
                files.result(30)
            state.run.wait()
            os.kill(os.getpid(), signal.SIGKILL)


def main(argv=None):
    parser = argparse.ArgumentParser()
    parser.add_argument("--remote", required=True)
    parser.add_argument("--local-root", required=True)
    parser.add_argument("--log-dir", required=True)
    parser.add_argument("--kill-at", type=int)
    parser.add_argument("--fail-at", type=int)
    parser.add_argument("--stop", action="store_true", help="at --fail-at, instead of an error")
    parser.add_argument("--duration", default="16ba")
    parser.add_argument("--kinds", default=",".join(KINDS))
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    data = TensorDataset(torch.randn(32, 4), torch.randint(0, 2, (32,)))
    net = nn.Linear(4, 2)
    with Trainer(
        net,
        DataLoader(data, batch_size=8),
        DataLoader(data, batch_size=16),
        torch.optim.SGD(net.parameters(), lr=0.1),
        max_duration=args.duration,
        run_name="my-run",
        remote=args.remote,
        local_root=args.local_root,
        loss_fn=nn.CrossEntropyLoss(),
        save_interval="5ba",
        eval_interval="1ep",
        autoresume=True,
        seed=7,
        device="cpu",
        progress_bar=False,
        loggers=[KINDS[kind](args) for kind in args.kinds.split(",")],
        callbacks=[KillAt(args.kill_at), FailAt(args.fail_at, stop=args.stop)],
    ) as trainer:
        trainer.fit()


if __name__ == "__main__":
    main(sys.argv[1:])
