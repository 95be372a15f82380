"""What a user does first after `pip install artifactsync[EXTRA]`, in the fresh environment that has nothing else.

    python -I .ci/smoke.py EXTRA        ends with 0, or with a traceback

Owns: one short use of each extra. Does not own: the environments (`package_check.py`), nor what the tests hold already.
"""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import tempfile
from pathlib import Path

COMMAND = Path(sys.executable).parent / "artifactsync"
STEPS = 8


def command(*arguments: str) -> str:
    """The installed command's output; it must end with 0."""
    done = subprocess.run([COMMAND, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def core(remote: str) -> None:
    """Version, help, and a file that goes there and comes back."""
    import artifactsync
    from artifactsync import Run

    assert (Path(artifactsync.__file__).parent / "py.typed").exists()
    assert "site-packages" in artifactsync.__file__, artifactsync.__file__
    assert command("--version").split()[1] == importlib.metadata.version("artifactsync") == artifactsync.__version__
    assert "Exit codes" in command("--help")
    with Run("smoke", remote=remote) as run:
        file = run.local_dir / "model.bin"
        file.write_bytes(os.urandom(100_000))
        run.save_files([file], step=1).result(60)
    command("--remote", remote, "pull", "smoke", "pulled")
    assert Path("pulled/model.bin").read_bytes() == file.read_bytes()
    command("--remote", remote, "verify", "smoke", "--deep")


def torch(remote: str) -> None:
    """A state is saved, and is back by name."""
    import torch

    from artifactsync import Run

    with Run("state", remote=remote) as run:
        run.save({"w": torch.arange(8.0)}, step=3).result(60)
    with Run("state", remote=remote, local_root="elsewhere") as run:
        resumed = run.resume()
    assert resumed is not None
    assert torch.equal(resumed.state["w"], torch.arange(8.0))


def lightning(remote: str) -> None:
    """A Trainer's checkpoints are committed."""
    import lightning.pytorch as pl
    import torch

    from artifactsync.integrations.lightning import ArtifactSyncCallback

    class Line(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = torch.nn.Linear(2, 1)

        def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
            return self.net(batch[0]).square().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    sync = ArtifactSyncCallback("line", remote=remote)
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(STEPS, 2)))
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(max_epochs=1, callbacks=[sync], accelerator="cpu", **quiet)
    trainer.fit(Line(), data, ckpt_path=sync.ckpt_path())
    assert '"last_step": 8' in command("--remote", remote, "--json", "ls")


def transformers(remote: str) -> None:
    """Hugging Face's Trainer, likewise; and Accelerate."""
    import torch
    from accelerate import Accelerator
    from transformers import Trainer, TrainingArguments

    from artifactsync.integrations.accelerate import ArtifactSyncState
    from artifactsync.integrations.transformers import ArtifactSyncCallback

    class Line(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = torch.nn.Linear(2, 1)

        def forward(self, inputs: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": (self.net(inputs) - labels).square().mean()}

    sync = ArtifactSyncCallback("line", remote=remote)
    data = [{"inputs": torch.ones(2), "labels": torch.ones(1)} for _ in range(STEPS)]
    arguments = TrainingArguments(output_dir="out", save_steps=4, max_steps=STEPS, use_cpu=True, report_to=[])
    trainer = Trainer(model=Line(), args=arguments, train_dataset=data, callbacks=[sync])
    trainer.train(resume_from_checkpoint=sync.resume_from_checkpoint())
    accelerator = Accelerator(cpu=True)
    accelerator.prepare(Line())
    with ArtifactSyncState(accelerator, "loop", remote=remote) as state:
        assert state.load_state() == 0
        state.save_state(step=1)
    assert '"line"' in (names := command("--remote", remote, "--json", "ls"))
    assert '"loop"' in names


def logger(name: str, **options: object) -> None:
    """A logger of that name takes metrics, and leaves files below the run or in its own folder."""
    import artifactsync
    from artifactsync import Run
    from artifactsync.loggers import Logger, context_of_run

    with Run("curves", remote="bucket") as run:
        log = Logger([getattr(artifactsync, name)(**options)])
        log.open(context_of_run(run))
        log.start(resumed_at=None)
        for step in range(1, STEPS):
            log.log_metrics({"loss": 1 / step}, step)
        for files in log.flush():
            files.result()
        log.close()
    command("--remote", "bucket", "pull", "curves", "curves")
    assert [path for path in Path("curves").rglob("*") if path.is_file()]


def ui(remote: str) -> None:
    """The local page answers."""
    from urllib.request import HTTPCookieProcessor, build_opener

    with subprocess.Popen(
        [COMMAND, "--remote", remote, "ui", "--no-browser"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        try:
            line = next(line for line in process.stdout if "http://127.0.0.1" in line)
            url = next(word for word in line.split() if word.startswith("http://127.0.0.1"))
            with build_opener(HTTPCookieProcessor()).open(url, timeout=30) as answer:  # the address gives a cookie
                assert "smoke" in answer.read().decode()
        finally:
            process.kill()


def profiler(_: str) -> None:
    """The counters' package is there, and is what a Profiler asks for."""
    from artifactsync import Profiler

    Profiler(sys_prof_cpu=True, sys_prof_memory=True)


FEATURES = {
    "torch": torch,
    "lightning": lightning,
    "transformers": transformers,
    "tensorboard": lambda _: logger("TensorboardLogger"),
    "wandb": lambda _: logger("WandBLogger", project="smoke"),
    "comet": lambda _: logger("CometMLLogger", project_name="smoke", offline=True),
    "mlflow": lambda _: logger("MLFlowLogger", experiment_name="smoke"),
    "profiler": profiler,
    "ui": ui,
}
"""What is tried besides :func:`core`, which for ``s3``, ``gcs`` and ``azure`` is done on such a remote."""


def main(extras: list[str]) -> None:
    """Try the core and each named extra, in a folder that is removed."""
    remote, before = os.environ.get("ARTIFACTSYNC_REMOTE", "bucket"), Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        core(remote)
        for extra in extras:
            if extra in FEATURES:
                FEATURES[extra](remote)
        os.chdir(before)


if __name__ == "__main__":
    main(sys.argv[1:])
