"""Lightning, with ModelCheckpoint, resuming from its newest ``last`` as its documentation says."""

import sys
import time

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

steps, every, step_s = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])


class Model(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(10, 1)

    def on_train_start(self):
        print("resumed", self.global_step, flush=True)

    def training_step(self, batch, index):
        time.sleep(step_s)
        return self.layer(batch[0]).square().mean()

    def on_train_batch_end(self, *_):
        print("step", self.global_step, flush=True)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


L.seed_everything(0)
data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(64, 10)), batch_size=4)
saver = ModelCheckpoint("ckpts", every_n_train_steps=every, save_last=True, save_top_k=2, monitor="step", mode="max")
trainer = L.Trainer(max_steps=steps, callbacks=[saver], logger=False, enable_progress_bar=False, accelerator="cpu")
trainer.fit(Model(), data, ckpt_path="last")
print("finished", trainer.global_step, flush=True)
