"""What other ways of saving stop a training loop for; one process per contender, told by ``stall`` when to save.

Runs by its path under any Python that has torch, also one that has no artifactsync: Composer and Lightning may need a
torch of their own.
"""

# ruff: noqa: SLF001 - each contender's libraries are its own, and none says when its upload is over

from __future__ import annotations

import contextlib
import io
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

LAYERS, WIDTH, BATCH = 40, 1024, 24
_STEPS_ALONE = 5
_GIVE_UP_S = 60.0
BUCKET = "bucket"


class Training:
    """A loop of one thread over a model whose state, with AdamW's, is 0.5 GB in 320 tensors."""

    def __init__(self) -> None:
        import torch

        torch.set_num_threads(1)
        torch.manual_seed(0)
        self.model = torch.nn.Sequential(*(torch.nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        self.batch = torch.randn(BATCH, WIDTH)
        self.steps = 0
        self.step()

    def step(self) -> float:
        """Train on a batch; returns the seconds of forward and backward."""
        self.steps += 1
        began = time.perf_counter()
        self.model(self.batch).square().mean().backward()
        took_s = time.perf_counter() - began
        self.optimizer.step()
        self.optimizer.zero_grad()
        return took_s

    @property
    def state(self) -> dict[str, Any]:
        """What is saved."""
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}


def torch_save_boto3(training: Training, endpoint_url: str, folder: Path) -> Any:
    import boto3
    import torch

    client = boto3.client("s3", endpoint_url=endpoint_url)

    def save(number: int) -> tuple[float, Callable[[], bool]]:
        began = time.perf_counter()
        path = folder / "inline.pt"
        torch.save(training.state, path)
        client.upload_file(str(path), BUCKET, f"inline/{number}.pt")
        return time.perf_counter() - began, lambda: True

    return save


def dcp_async(training: Training, endpoint_url: str, _folder: Path) -> Any:
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint._fsspec_filesystem import FsspecWriter

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)

    def save(number: int) -> tuple[float, Callable[[], bool]]:
        options = {"endpoint_url": endpoint_url, "key": "k", "secret": "s"}
        began = time.perf_counter()
        writer = FsspecWriter(f"s3://{BUCKET}/dcp/{number}", **options)
        future = dcp.async_save(training.state, storage_writer=writer)
        return time.perf_counter() - began, future.done

    return save


def lightning_async(training: Training, _endpoint_url: str, _folder: Path) -> Any:
    from lightning.pytorch.plugins.io import AsyncCheckpointIO, TorchCheckpointIO

    plugin = AsyncCheckpointIO(TorchCheckpointIO())

    def save(number: int) -> tuple[float, Callable[[], bool]]:
        began = time.perf_counter()
        plugin.save_checkpoint(training.state, f"s3://{BUCKET}/lightning/{number}.ckpt")
        took_s = time.perf_counter() - began
        return took_s, lambda: plugin._executor._work_queue.empty() and plugin._executor._idle_semaphore._value > 0

    return save


def composer_own(_training: Training, endpoint_url: str, folder: Path) -> Any:
    import torch
    from composer import ComposerModel, Trainer
    from composer.callbacks import CheckpointSaver
    from composer.loggers import RemoteUploaderDownloader

    os.environ["S3_ENDPOINT_URL"] = endpoint_url

    class Model(ComposerModel):
        def __init__(self) -> None:
            super().__init__()
            self.net = _training.model

        def forward(self, batch: Any) -> Any:
            return self.net(batch[0])

        def loss(self, outputs: Any, _batch: Any) -> Any:
            return outputs.square().mean()

    data = torch.utils.data.TensorDataset(torch.randn(BATCH * 1000, WIDTH))
    model = Model()
    uploader = RemoteUploaderDownloader(f"s3://{BUCKET}", upload_staging_folder=str(folder / "staging"))
    took: list[float] = []
    saver = CheckpointSaver(str(folder / "composer"), "ba{batch}.pt", remote_file_name="c/ba{batch}.pt",
                            save_interval="1ba", num_checkpoints_to_keep=1)  # fmt: skip
    real = saver._save_checkpoint

    def timed(*arguments: Any, **more: Any) -> None:
        began = time.perf_counter()
        real(*arguments, **more)
        took.append(time.perf_counter() - began)

    saver._save_checkpoint = timed
    trainer = Trainer(
        model=model,
        train_dataloader=torch.utils.data.DataLoader(data, batch_size=BATCH),
        optimizers=torch.optim.AdamW(model.parameters(), lr=1e-4),
        max_duration="1ba",
        callbacks=[saver],
        loggers=[uploader],
        progress_bar=False,
        device="cpu",
        run_name="bench",
    )
    trainer.fit()

    def is_uploaded() -> bool:
        return not uploader._logged_objects and not uploader._enqueued_objects

    def save(_number: int) -> tuple[float, Callable[[], bool]]:
        took.clear()
        trainer.fit(duration="1ba")
        _training.steps += 1
        return sum(took), is_uploaded

    return save


CONTENDERS = {
    "torch.save + boto3": torch_save_boto3,
    "DCP async_save + s3fs": dcp_async,
    "Lightning AsyncCheckpointIO": lightning_async,
    "Composer": composer_own,
}


def contend(make: Callable[[Training, str, Path], Any], endpoint_url: str, *, answer: Any) -> None:
    """Save once for each line of stdin, training on until it is uploaded; one JSON line each to ``answer``."""
    keys = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_DEFAULT_REGION": "us-east-1"}
    os.environ.update(keys)
    os.environ.update(FSSPEC_S3_ENDPOINT_URL=endpoint_url, FSSPEC_S3_KEY="k", FSSPEC_S3_SECRET="s")
    with tempfile.TemporaryDirectory(prefix="artifactsync-stall-") as folder:
        training = Training()
        save = make(training, endpoint_url, Path(folder))
        print(json.dumps({"ready": versions()}), file=answer, flush=True)
        for number, _ in enumerate(sys.stdin):
            forward_backward_s, alone_s = zip(*(_timed(training.step) for _ in range(_STEPS_ALONE)), strict=True)
            began, steps = time.perf_counter(), training.steps
            stall_s, is_done = save(number)
            while not is_done():
                training.step()
                if time.perf_counter() - began > _GIVE_UP_S:
                    break
            took_s, steps = time.perf_counter() - began, training.steps - steps
            more = getattr(save, "more", dict)()
            figures = {
                "stall_s": stall_s,
                "lost_s": took_s - steps * statistics.median(alone_s) - more.get("apart_s", 0.0),
                "until_uploaded_s": took_s,
                "forward_backward_s": statistics.median(forward_backward_s),
                "steps_beside": steps,
            }
            print(json.dumps({**figures, **more}), file=answer, flush=True)


def _timed(step: Callable[[], float]) -> tuple[float, float]:
    """What a step says that it took, and what it took in all."""
    began = time.perf_counter()
    return step(), time.perf_counter() - began


def versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("torch", "mosaicml", "lightning", "s3fs", "boto3"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


if __name__ == "__main__":
    del sys.path[0]  # this folder, whose names are not theirs
    output = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the libraries print
    sys.stdout = io.TextIOWrapper(os.fdopen(os.dup(2), "wb"))
    contend(CONTENDERS[sys.argv[1]], sys.argv[2], answer=output)
