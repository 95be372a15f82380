"""A small training run on real images, as a program: started, killed and resumed by the tests.

Everything that may differ between an interrupted and an uninterrupted run is in it: dropout, batch norm, shuffling,
random transforms in the dataset, a scheduler, Adam's state, gradient accumulation, an evaluation.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import warnings

import torch
import torch._dynamo  # the optimizers import it, which takes seconds: the fork server shall have done that
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Dataset

from artifactsync import Callback, FileLogger, Trainer


class Digits(Dataset):
    """scikit-learn's 1,797 handwritten digits, moved about at random."""

    def __init__(self, count=400, *, moved=True):
        images, labels = load_digits(return_X_y=True)
        self.images = torch.tensor(images[:count] / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)
        self.labels = torch.tensor(labels[:count])
        self.moved = moved

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        image = self.images[index]
        if self.moved:
            image = torch.roll(image, random.randint(-1, 1), dims=2) + 0.05 * torch.randn(1, 8, 8)
        return image, self.labels[index]


def model():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Flatten(),
        nn.Linear(8 * 64, 10),
    )


class KillAt(Callback):
    """SIGKILL to itself in the middle of a batch, once what was saved by then is committed or not, as it happens."""

    def __init__(self, batch, *, when_durable):
        self.batch, self.when_durable = batch, when_durable

    def before_backward(self, state, logger):
        if state.timestamp.batch == self.batch:
            if self.when_durable:
                state.run.wait()
            os.kill(os.getpid(), signal.SIGKILL)


def accuracy(outputs, batch):
    return (outputs.argmax(1) == batch[1]).float().mean()


def build(args, more_callbacks=(), **more):
    torch.manual_seed(1)
    net = model()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    data = DataLoader(
        Digits(args.count),
        batch_size=32,
        shuffle=True,
        num_workers=args.workers,
        multiprocessing_context="fork" if args.workers else None,  # not what started this process
        persistent_workers=bool(args.workers) and args.persistent,
    )
    held_out = DataLoader(Digits(100, moved=False), batch_size=50)
    callbacks = [] if args.kill_at is None else [KillAt(args.kill_at, when_durable=args.when_durable)]
    callbacks += more_callbacks
    return Trainer(
        net,
        data,
        held_out,
        optimizer,
        torch.optim.lr_scheduler.StepLR(optimizer, 7, 0.7),
        args.max_duration,
        loss_fn=nn.CrossEntropyLoss(),
        eval_metrics={"accuracy": accuracy},
        step_schedulers_every_batch=True,
        device_train_microbatch_size=args.microbatch,
        run_name=args.run_name,
        remote=args.remote,
        local_root=args.local_root,
        save_interval=args.save_interval,
        autoresume=True,
        seed=7,
        precision=args.precision,
        clip_grad_norm=1.0,
        loggers=[FileLogger(flush_interval=5)],
        callbacks=callbacks,
        progress_bar=False,
        device="cpu",
        **more,
    )


def arguments(argv=None):
    parser = argparse.ArgumentParser()
    parser.add_argument("--run-name", default="digits")
    parser.add_argument("--remote")
    parser.add_argument("--local-root", required=True)
    parser.add_argument("--max-duration", default="3ep")
    parser.add_argument("--save-interval", default="3ba")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--persistent", action="store_true")
    parser.add_argument("--microbatch", type=int)
    parser.add_argument("--precision")
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--kill-at", type=int)
    parser.add_argument("--when-durable", action="store_true")
    return parser.parse_args(argv)


def main(argv=None, environment=None):
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", message=".*fork", category=DeprecationWarning)  # of torch's own workers
    os.environ.update(environment or {})
    torch.set_num_threads(1)
    with build(arguments(argv)) as trainer:
        trainer.fit()


if __name__ == "__main__":
    main()
