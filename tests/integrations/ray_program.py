"""`examples/batch/ray_train.py` as it is, and what becomes of its workers: the file named by ``PLAN`` says it.

``worker``: rank 1 is killed once the checkpoint of step 60 is durable, in the first attempt. ``stand``: all workers
stand still there, until the whole cluster is killed. With ``storage`` as the first argument: Ray's own storage, through
a run.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import threading
from pathlib import Path

import ray.train
from pyarrow.fs import FSSpecHandler, PyFileSystem
from ray.train import Checkpoint, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from artifactsync import Run
from examples.batch import ray_train

AT = 60
_train, _save = ray_train.train, Run.save


def train(config):
    """The example's loop; each worker runs it."""
    plan = Path(os.environ["PLAN"])

    def save_and_obey(run, state, *, step, **options):
        pending = _save(run, state, step=step, **options)
        if step == AT:
            order = plan.read_text()
            if order:
                pending.result()
            if order == "worker" and run.attempt == 1 and os.environ["RANK"] == "1":
                os.kill(os.getpid(), signal.SIGKILL)
            if order == "stand":
                plan.with_name(f"stands{os.environ['RANK']}").touch()
                threading.Event().wait()
        return pending

    Run.save = save_and_obey
    _train(config)


def report(config):
    """A loop that gives Ray one more checkpoint than it had."""
    last, done = ray.train.get_checkpoint(), 0
    if last:
        with last.as_directory() as folder:
            done = json.loads(Path(folder, "state.json").read_text())["done"]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "state.json").write_text(json.dumps({"done": done + 1}))
        ray.train.report({"done": done + 1}, checkpoint=Checkpoint.from_directory(folder))


def store_through(remote):
    """Ray's own storage below a run's folder, as docs/frameworks/ray.md has it."""
    with Run("stored", remote=remote) as run:
        files = PyFileSystem(FSSpecHandler(run.fs))
        storage = RunConfig(name="digits", storage_path="ray", storage_filesystem=files)
        TorchTrainer(report, scaling_config=ScalingConfig(num_workers=1), run_config=storage).fit()


if __name__ == "__main__":
    if sys.argv[1] == "storage":
        store_through(sys.argv[2])
    else:
        ray_train.train = train
        ray_train.main()
