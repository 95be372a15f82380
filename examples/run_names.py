"""Where a run's name shows up: checkpoints, logs, TensorBoard, W&B, Comet, traces. Needs no account and no network.

    python examples/run_names.py --run-name my-cool-run-name --remote ./bucket
    artifactsync --remote ./bucket report my-cool-run-name

It goes through what Composer's page on run names describes, with artifactsync's imports. Loggers whose packages are
not installed are left out, and said so: ``pip install tensorboard wandb comet_ml psutil``.
"""

from __future__ import annotations

import argparse
import importlib.util
import os

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from artifactsync import Profiler, RemoteUploaderDownloader, Trainer, generate_run_name
from artifactsync.loggers import CometMLLogger, FileLogger, LoggerDestination, TensorboardLogger, WandBLogger
from artifactsync.training.profiler import JSONTraceHandler, cyclic_schedule


def loggers(folder: str) -> list[LoggerDestination]:
    """Every logger whose package is here; W&B and Comet write files to be sent later."""
    os.environ.setdefault("WANDB_MODE", "offline")
    os.environ.setdefault("WANDB_SILENT", "true")
    made: list[LoggerDestination] = [FileLogger()]  # {run_name}/logs-rank{rank}.txt
    for package, make in (
        ("tensorboard", lambda: TensorboardLogger(f"{folder}/tensorboard_logs")),  # a run called {run_name}
        ("wandb", lambda: WandBLogger(project="run-names")),  # W&B's run is called {run_name}
        ("comet_ml", lambda: CometMLLogger(project_name="run-names", offline=True)),  # so is Comet's experiment
    ):
        if importlib.util.find_spec(package):
            made.append(make())
        else:
            print(f"{package} is not installed: left out")
    return made


def main() -> None:
    """Train for two epochs, and list what carries the name."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--run-name", help="else a generated one, such as 1657932618-infrared-ferret")
    parser.add_argument("--remote", default="bucket")
    parser.add_argument("--local-root", default="runs")
    arguments = parser.parse_args()

    pixels, labels = load_digits(return_X_y=True)
    images = torch.tensor(pixels / 16, dtype=torch.float32)
    data = TensorDataset(images[:512], torch.tensor(labels[:512]))
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    uploader = RemoteUploaderDownloader(arguments.remote)

    with Trainer(
        model,
        DataLoader(data, batch_size=64, shuffle=True),
        optimizers=torch.optim.Adam(model.parameters(), lr=0.01),
        loss_fn=nn.CrossEntropyLoss(),
        max_duration="2ep",
        run_name=arguments.run_name or generate_run_name(),
        local_root=arguments.local_root,
        save_folder="{run_name}/checkpoints",
        save_filename="ep{epoch}-ba{batch}-rank{rank}.pt",
        autoresume=True,
        loggers=[uploader, *loggers(arguments.local_root)],
        profiler=Profiler(
            cyclic_schedule(wait=1, warmup=1, active=2, repeat=1),
            JSONTraceHandler("{run_name}/traces"),
            sys_prof_cpu=importlib.util.find_spec("psutil") is not None,
            torch_prof_folder="{run_name}/torch_traces",
        ),
        seed=7,
        device="cpu",
        progress_bar=False,
    ) as trainer:
        trainer.fit()
        name = trainer.state.run_name  # the name is an attribute of the state
        notes = trainer.run.local_dir / "notes.txt"
        notes.write_text(f"{name} ended with loss {float(trainer.state.loss):.3f}\n")
        uploader.upload_file("{run_name}/notes/{run_name}-foo-bar.txt", notes)  # a placeholder anywhere

    with RemoteUploaderDownloader(arguments.remote, run_name=name) as remote:
        for key in remote.list_remote_files("{run_name}/"):
            if "/.artifactsync/" not in key:
                print(key)


if __name__ == "__main__":
    main()
