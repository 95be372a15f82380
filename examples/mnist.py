"""Train a small network on handwritten digits. Kill it at any moment and start it again, here or elsewhere.

    python examples/mnist.py --run-name digits --remote s3://bucket/runs
    python examples/mnist.py --run-name digits --remote s3://bucket/runs     # goes on where it was
    artifactsync --remote s3://bucket/runs pull digits

With ``--data DIR`` it uses MNIST (torchvision downloads it there: 60,000 images); without, or where the download
fails, the 1,797 digits that scikit-learn ships.
"""

from __future__ import annotations

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision.datasets import MNIST
from torchvision.ops import Conv2dNormActivation
from torchvision.transforms import v2

from artifactsync import ConsoleLogger, FileLogger, Trainer


class Digits(Dataset):
    """scikit-learn's handwritten digits, 8 by 8 pixels, as (image, label)."""

    def __init__(self, transform: v2.Transform) -> None:
        pixels, labels = load_digits(return_X_y=True)
        self.images = torch.tensor(pixels / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)
        self.labels, self.transform = torch.tensor(labels), transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.transform(self.images[index]), self.labels[index]


def datasets(folder: str | None) -> tuple[Dataset, Dataset]:
    """Training images, moved about at random, and held-out ones as they are."""
    plain = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    moved = v2.Compose([plain, v2.RandomAffine(degrees=10, translate=(0.1, 0.1))])
    if folder is not None:
        try:
            return MNIST(folder, train=True, download=True, transform=moved), MNIST(
                folder, train=False, transform=plain
            )
        except (OSError, RuntimeError) as error:
            print(f"MNIST cannot be downloaded ({error})")
    print("data: the 1,797 handwritten digits of scikit-learn")
    return Subset(Digits(moved), range(1500)), Subset(Digits(plain), range(1500, 1797))


def network() -> nn.Module:
    """A small convolutional network from torchvision's blocks; any image size."""
    return nn.Sequential(
        Conv2dNormActivation(1, 32),
        Conv2dNormActivation(32, 64, stride=2),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Dropout(0.25),
        nn.Linear(64 * 16, 10),
    )


def accuracy(outputs: torch.Tensor, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """The part of a batch that is recognised."""
    return (outputs.argmax(1) == batch[1]).float().mean()


def main() -> None:
    """Train, and say how well it went."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run-name", help="name of the run; generated if not given")
    parser.add_argument("--remote", help="where runs live: s3://bucket/prefix, gs://…, or a folder")
    parser.add_argument("--local-root", default="runs", help="local folder of all runs")
    parser.add_argument("--max-duration", default="5ep", help="for example 5ep or 300ba")
    parser.add_argument("--save-interval", default="20ba", help="for example 1ep or 50ba")
    parser.add_argument("--data", metavar="DIR", help="folder of MNIST; downloaded if it is not there")
    args = parser.parse_args()

    train, held_out = datasets(args.data)
    torch.manual_seed(17)  # the same first weights every time
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    trainer = Trainer(
        model,
        DataLoader(train, batch_size=64, shuffle=True),
        DataLoader(held_out, batch_size=256),
        optimizer,
        torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.7),
        max_duration=args.max_duration,
        loss_fn=nn.CrossEntropyLoss(),
        eval_metrics={"accuracy": accuracy},
        run_name=args.run_name,
        remote=args.remote,
        local_root=args.local_root,
        save_interval=args.save_interval,
        autoresume=True,
        seed=17,
        loggers=[FileLogger(), ConsoleLogger(log_interval=20)],
    )
    with trainer:
        trainer.fit()
        results = trainer.state.eval_metrics
    print(f"run {trainer.state.run_name}: accuracy {results['metrics/eval/accuracy']:.3f}")


if __name__ == "__main__":
    main()
