"""What the job scripts beside it start: nothing in it knows of a scheduler, a cloud or a preemption.

The run's name and its remote come from ``ARTIFACTSYNC_RUN_NAME`` and ``ARTIFACTSYNC_REMOTE``; ``autoresume`` continues
a run of that name. A script of your own without the Trainer: see ``examples/plain_loop.py``, or put
``artifactsync run --`` before its command.
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from artifactsync import Trainer


def main() -> None:
    """Train on scikit-learn's handwritten digits."""
    pixels, labels = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(labels))
    torch.manual_seed(17)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Dropout(0.2), nn.Linear(128, 10))
    trainer = Trainer(
        model,
        DataLoader(data, batch_size=64, shuffle=True),
        optimizers=torch.optim.Adam(model.parameters(), lr=2e-3),
        loss_fn=nn.CrossEntropyLoss(),
        max_duration="3ep",
        save_interval="20ba",
        autoresume=True,
        seed=17,
        progress_bar=False,
    )
    with trainer:
        trainer.fit()
    print(
        f"run {trainer.state.run_name}: {trainer.state.timestamp.batch} batches, loss {float(trainer.state.loss):.3f}"
    )


if __name__ == "__main__":
    main()
