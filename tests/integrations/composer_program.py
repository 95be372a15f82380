"""A training with Composer, in the environment that Composer wants: trained, killed and resumed by its test."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from pathlib import Path

import torch
from composer import Callback, ComposerModel, Trainer
from composer.utils import dist
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from artifactsync.integrations.composer import ArtifactSyncCheckpointSaver, RemoteUploaderDownloader


class Digits(ComposerModel):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3))

    def forward(self, batch):
        return self.net(batch[0])

    def loss(self, outputs, batch):
        return nn.functional.cross_entropy(outputs, batch[1])


class Death(Callback):
    def __init__(self, saver, kill_at):
        self.saver, self.kill_at = saver, kill_at

    def batch_end(self, state, logger):
        if state.timestamp.batch.value == self.kill_at:
            self.saver.held.run.wait()
            os.kill(os.getpid(), signal.SIGKILL)


def main(remote, local, kill_at=None):
    warnings.simplefilter("ignore")
    local = Path(local)
    torch.manual_seed(5)
    generator = torch.Generator().manual_seed(3)
    data = TensorDataset(torch.randn(32, 8, generator=generator), torch.randint(0, 3, (32,), generator=generator))
    saver = ArtifactSyncCheckpointSaver("digits", remote=remote, local_root=local, save_interval="3ba")
    uploader = RemoteUploaderDownloader(f"{remote}-files")
    model = Digits()
    loader = DataLoader(data, batch_size=8, sampler=dist.get_sampler(data, shuffle=True))  # an epoch's order is known
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    trainer = Trainer(
        model=model, train_dataloader=loader, optimizers=optimizer,
        max_duration="4ep", run_name="digits", seed=5, device="cpu", progress_bar=False, loggers=[uploader],
        callbacks=[saver, Death(saver, int(kill_at) if kill_at else None)], load_path=saver.load_path(),
    )  # fmt: skip
    trainer.fit()
    torch.save(model.state_dict(), local / "final.pt")
    torch.save(optimizer.state_dict(), local / "optimizer.pt")
    trainer.logger.upload_file("digits/final.pt", local / "final.pt")
    uploader.fit_end(trainer.state, trainer.logger)  # waits
    uploader.download_file("digits/final.pt", str(local / "back.pt"), progress_bar=False)
    trainer.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
