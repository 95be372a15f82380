"""What the Slurm test trains: digits, on one CPU. In the middle of batches 5, 7, … it waits until it is stopped."""

from __future__ import annotations

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


class WaitToBeStopped(Callback):
    def before_backward(self, state, logger):
        attempt = job_env().attempt_hint or 0
        if 0 < attempt <= stops and state.timestamp.batch == 3 + 2 * attempt:
            signal.pthread_sigmask(signal.SIG_BLOCK, job_stops)
            Path(f"waiting-{attempt}").touch()
            came = signal.sigwait(job_stops)
            print("stopped by", signal.Signals(came).name, "on try", attempt, flush=True)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, job_stops)
            signal.raise_signal(came)  # as if it had come just now


if __name__ == "__main__":
    job_stops = {getattr(signal, name) for name in job_env().stop_signals}
    stops = int(sys.argv[1]) if len(sys.argv) > 1 else 0
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
        callbacks=WaitToBeStopped(),
        seed=3,
        device="cpu",
        progress_bar=False,
    )
    with trainer:
        trainer.fit()
    torch.save(network.state_dict(), "final.pt")
    print("done as", job_env().name_hint, "on try", job_env().attempt_hint)
