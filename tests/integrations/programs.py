"""What users of each framework write, made small: trained, killed and resumed by the tests."""

from __future__ import annotations

import logging
import os
import signal
import warnings

import torch
from accelerate import Accelerator
from lightning import pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import Trainer, TrainingArguments

from artifactsync import RetentionPolicy
from artifactsync.integrations.accelerate import ArtifactSyncState
from artifactsync.integrations.lightning import ArtifactSyncCallback as LightningSync
from artifactsync.integrations.transformers import ArtifactSyncCallback as TransformersSync

STEPS_PER_EPOCH = 4
EPOCHS = 4


def _data():
    generator = torch.Generator().manual_seed(3)
    return TensorDataset(torch.randn(32, 8, generator=generator), torch.randint(0, 3, (32,), generator=generator))


def _net():
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3))


def _die(sync):
    """As a spot instance does, when what was saved is durable."""
    sync.run.wait()
    os.kill(os.getpid(), signal.SIGKILL)


class Digits(pl.LightningModule):
    def __init__(self, sync=None, kill_at=None, odd=None):
        super().__init__()
        self.net, self.loss, self.sync, self.kill_at = _net(), nn.CrossEntropyLoss(), sync, kill_at
        if odd is not None:
            self.save_hyperparameters({"odd": odd})

    def training_step(self, batch, _):
        loss = self.loss(self.net(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def on_train_batch_end(self, *_):
        if self.kill_at is not None and self.global_step == self.kill_at:
            _die(self.sync)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.01)


def lightning(remote, local, kill_at=None, save_top_k=-1, url=None):
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    pl.seed_everything(5)
    sync = LightningSync("digits", remote=remote, local_root=local)
    trainer = pl.Trainer(
        max_epochs=EPOCHS, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=local,
        callbacks=[sync, ModelCheckpoint(save_top_k=save_top_k, monitor="loss" if save_top_k == 1 else None)],
    )  # fmt: skip
    module = Digits(sync, kill_at)
    trainer.fit(module, DataLoader(_data(), batch_size=8, shuffle=True), ckpt_path=url or sync.ckpt_path())
    torch.save(module.state_dict(), local / "final.pt")
    torch.save(trainer.optimizers[0].state_dict(), local / "optimizer.pt")


class _Model(nn.Module):
    def __init__(self, sync, kill_at):
        super().__init__()
        self.net, self.loss, self.sync, self.kill_at, self.seen = _net(), nn.CrossEntropyLoss(), sync, kill_at, 0

    def forward(self, inputs, labels):
        logits = self.net(inputs)
        if self.training:
            self.seen += 1
            if self.seen == self.kill_at:
                _die(self.sync)
        return {"loss": self.loss(logits, labels), "logits": logits}


def transformers(remote, local, kill_at=None, save_total_limit=None, strategy="steps"):
    warnings.simplefilter("ignore")
    sync = TransformersSync("digits", remote=remote, local_root=local, retention=RetentionPolicy(keep_last=2))
    arguments = TrainingArguments(
        output_dir=str(local / "out"), num_train_epochs=EPOCHS, per_device_train_batch_size=8, seed=5, use_cpu=True,
        save_strategy=strategy, save_steps=3, save_total_limit=save_total_limit, report_to=[], disable_tqdm=True,
        logging_steps=2,
    )  # fmt: skip
    torch.manual_seed(5)
    data = [{"inputs": inputs, "labels": labels} for inputs, labels in _data()]
    trainer = Trainer(model=_Model(sync, kill_at), args=arguments, train_dataset=data, callbacks=[sync])
    trainer.train(resume_from_checkpoint=sync.resume_from_checkpoint())
    torch.save(trainer.model.state_dict(), local / "final.pt")
    torch.save(trainer.optimizer.state_dict(), local / "optimizer.pt")


def accelerate(remote, local, kill_at=None):
    warnings.simplefilter("ignore")
    torch.manual_seed(5)
    accelerator = Accelerator(cpu=True)
    net = _net()
    net, optimizer, loader = accelerator.prepare(
        net, torch.optim.AdamW(net.parameters(), lr=0.01), DataLoader(_data(), batch_size=8, shuffle=True)
    )
    loss_fn = nn.CrossEntropyLoss()
    with ArtifactSyncState(accelerator, "digits", remote=remote, local_root=local) as sync:
        step = sync.load_state()
        for epoch in range(step // STEPS_PER_EPOCH, EPOCHS):
            for inputs, labels in loader:
                loss = loss_fn(net(inputs), labels)
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
                step += 1
                if step == kill_at:
                    _die(sync)
            sync.save_state(step=step, epoch=epoch + 1, metrics={"loss": loss})
    torch.save(net.state_dict(), local / "final.pt")
    torch.save(optimizer.state_dict(), local / "optimizer.pt")
