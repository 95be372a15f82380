"""What the Slurm test trains: digits, on one CPU. In the middle of batch 5 of its first try it waits to be stopped."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from torch import nn
from torch.utils.data import DataLoader

from artifactsync import Callback, Trainer
from artifactsync.batch import job_env
from tests.training.digits import Digits, model


class Wait(Callback):
    def before_backward(self, state, logger):
        if state.timestamp.batch == 5 and job_env().attempt_hint == 1 and "wait" in sys.argv:
            signal.pthread_sigmask(signal.SIG_BLOCK, job_stops)
            Path(f"waiting-{os.environ['SLURM_JOB_ID']}").touch()
            came = signal.sigwait(job_stops)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, job_stops)
            signal.raise_signal(came)  # as if it had come just now


if __name__ == "__main__":
    job_stops = {getattr(signal, name) for name in job_env().stop_signals}
    torch.set_num_threads(1)
    torch.manual_seed(3)
    network = model()
    trainer = Trainer(
        network,
        DataLoader(Digits(), batch_size=50, shuffle=True),
        optimizers=torch.optim.Adam(network.parameters(), lr=0.01),
        loss_fn=nn.CrossEntropyLoss(),
        max_duration="2ep",
        save_interval="100ep",
        autoresume=True,
        callbacks=Wait(),
        seed=3,
        device="cpu",
        progress_bar=False,
    )
    with trainer:
        trainer.fit()
    torch.save(network.state_dict(), f"final-{sys.argv[-1]}.pt")
    print("done, try", job_env().attempt_hint, "as", job_env().name_hint)
