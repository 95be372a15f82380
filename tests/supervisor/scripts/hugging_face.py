"""Hugging Face's Trainer, resuming as its documentation says."""

import os
import sys
import time

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

steps, every, step_s = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(10, 1)

    def forward(self, x, labels):
        out = self.layer(x)
        return {"loss": (out.squeeze(-1) - labels).square().mean(), "logits": out}


class Say(TrainerCallback):
    def on_train_begin(self, args, state, control, **more):
        print("resumed", state.global_step, flush=True)

    def on_step_end(self, args, state, control, **more):
        time.sleep(step_s)
        print("step", state.global_step, flush=True)


torch.manual_seed(0)
data = [{"x": torch.randn(10), "labels": torch.randn(())} for _ in range(64)]
arguments = TrainingArguments(
    "out",
    max_steps=steps,
    save_steps=every,
    save_total_limit=2,
    per_device_train_batch_size=4,
    logging_steps=every,
    report_to=[],
    disable_tqdm=True,
    use_cpu=True,
)
trainer = Trainer(Model(), arguments, train_dataset=data, callbacks=[Say()])
last = get_last_checkpoint("out") if os.path.isdir("out") else None
trainer.train(resume_from_checkpoint=last)
print("finished", trainer.state.global_step, flush=True)
