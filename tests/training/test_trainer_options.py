"""What the Trainer takes besides a model and data: stop signals, selective loading, metrics, units, kept files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
import torchmetrics
from torch import nn
from torch.utils.data import DataLoader

from artifactsync import Callback, Run, Trainer
from artifactsync.errors import ConfigurationError
from artifactsync.training.callbacks import WeightsExporter
from tests.batch.metadata_servers import EC2
from tests.training.digits import Digits


class Net(nn.Module):
    """A body and a head, so that one of them can be left alone."""

    def __init__(self, classes=10):
        super().__init__()
        self.body, self.head = nn.Linear(64, 8), nn.Linear(8, classes)

    def forward(self, images):
        return self.head(self.body(images.flatten(1)).relu())


def _trainer(tmp_path, net=None, host="a", **more):
    torch.manual_seed(0)
    net = net or Net()
    settings = {
        "optimizers": torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9),
        "loss_fn": nn.CrossEntropyLoss(),
        "run_name": "r",
        "remote": tmp_path / "remote",
        "local_root": tmp_path / host,
        "max_duration": "1ep",
        "progress_bar": False,
        "device": "cpu",
        "seed": 5,
        **more,
    }
    return Trainer(net, DataLoader(Digits(48, moved=False), batch_size=8), **settings)


@pytest.mark.parametrize(("duration", "batches"), [("20tok", 3), ("17sp", 3), ("4ba", 4), ("1ep", 6)])
def test_training_ends_in_every_unit(tmp_path, duration, batches):
    class Texts(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(()))

        def forward(self, batch):
            return self.weight * batch["input_ids"].sum()

        def loss(self, outputs, batch):
            return outputs

    data = [{"input_ids": torch.ones(8, 1, dtype=torch.int64)}] * 6
    net = Texts()
    with Trainer(
        net, data, None, torch.optim.SGD(net.parameters(), 0.1), None, duration, run_name="r", local_root=tmp_path,
        progress_bar=False, device="cpu",
    ) as trainer:  # fmt: skip
        trainer.fit()
    assert trainer.state.timestamp.batch == batches


def test_training_ends_by_the_clock(tmp_path):
    with _trainer(tmp_path, max_duration="0.001s", save_folder=None) as trainer:
        trainer.fit()
    assert trainer.state.timestamp.total_wct >= 0.001
    assert trainer.state.timestamp.batch <= 12


def test_several_schedulers_per_epoch_and_per_batch(tmp_path):
    for every_batch, steps in ((False, 2), (True, 12)):
        net = Net()
        optimizers = [torch.optim.SGD(net.body.parameters(), lr=1.0), torch.optim.SGD(net.head.parameters(), lr=2.0)]
        schedulers = [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5) for optimizer in optimizers]
        with _trainer(
            tmp_path, net, run_name=f"r{steps}", optimizers=optimizers, schedulers=schedulers, max_duration="2ep",
            step_schedulers_every_batch=every_batch, save_folder=None,
        ) as trainer:  # fmt: skip
            trainer.fit()
        assert [s.get_last_lr()[0] for s in schedulers] == pytest.approx([0.5**steps, 2 * 0.5**steps])


def test_metrics_of_torchmetrics_and_of_the_model(tmp_path):
    class Measured(Net):
        def get_metrics(self, is_train):
            assert not is_train
            return {"own": torchmetrics.MeanMetric()}

    metrics = {
        "accuracy": torchmetrics.classification.MulticlassAccuracy(10, average="micro"),
        "each": torchmetrics.classification.MulticlassRecall(10, average=None),
        "plain": lambda outputs, batch: (outputs.argmax(1) == batch[1]).float().mean(),
    }
    data = DataLoader(Digits(48, moved=False), batch_size=20)  # the last batch is smaller
    with _trainer(tmp_path, eval_dataloader=data, eval_metrics=metrics, save_folder=None, max_duration="3ep") as t:
        t.fit()
        first, again = t.eval(), t.eval()
    assert first == again  # they are reset
    assert first["metrics/eval/accuracy"] == pytest.approx(first["metrics/eval/plain"])
    assert len([name for name in first if name.startswith("metrics/eval/each/")]) == 10

    class Said(Measured):
        def update_metric(self, batch, outputs, metric):
            metric.update(outputs.detach().mean())

    with _trainer(tmp_path, Said(), run_name="s", eval_dataloader=data, save_folder=None) as trainer:
        assert "metrics/eval/own" in trainer.eval()


def test_load_ignore_keys(tmp_path):
    with _trainer(tmp_path) as trainer:
        trainer.fit()
    path = tmp_path / "a" / "r" / "checkpoints" / "ep1-ba6-rank0.pt"
    saved = torch.load(path, weights_only=True)
    torch.manual_seed(99)
    other = Net(classes=3)
    head = other.head.weight.detach().clone()
    ignored = ["state/model/head.*", "optimizers", "rng"]
    with _trainer(tmp_path, other, run_name="tuned", load_path=path, load_ignore_keys=ignored) as tuned:
        assert torch.equal(other.body.weight, saved["model"]["body.weight"])
        assert torch.equal(other.head.weight, head)
        assert tuned.state.timestamp.epoch == 1
        assert tuned.state.optimizers[0].state_dict()["state"] == {}
    with pytest.raises(ConfigurationError, match="matches nothing"):
        _trainer(tmp_path, run_name="typo", load_path=path, load_ignore_keys=["model/haed.*"])
    with _trainer(
        tmp_path, run_name="function", load_path=path, load_ignore_keys=lambda saved: saved["timestamp"].clear()
    ) as t:
        assert t.state.timestamp.batch == 0


def test_the_weights_alone_are_exported_and_loaded(tmp_path):
    with _trainer(tmp_path, callbacks=WeightsExporter(interval="3ba")) as trainer:
        trainer.fit()
    exported = sorted(path.name for path in (tmp_path / "remote" / "r" / "weights").iterdir())
    assert exported == ["ep0-ba3.pt", "ep1-ba6.pt"]
    assert Run("r", remote=tmp_path / "remote", read_only=True).latest().name == "ep1-ba6"
    path = f"file://{tmp_path}/remote/{{run_name}}/weights/ep1-ba6.pt".replace("{run_name}", "r")
    with _trainer(tmp_path, run_name="w", load_path=path, load_weights_only=True) as loaded:
        assert torch.equal(loaded.state.model.head.weight, trainer.state.model.head.weight)


def test_local_files_of_earlier_attempts_count_among_those_kept(tmp_path):
    with _trainer(tmp_path, save_interval="1ba", max_duration="5ba") as trainer:
        trainer.fit()
    folder = tmp_path / "a" / "r" / "checkpoints"
    assert len(list(folder.glob("ep*.pt"))) == 5
    with _trainer(
        tmp_path, save_interval="1ba", max_duration="9ba", autoresume=True, save_num_checkpoints_to_keep=3
    ) as trainer:
        trainer.fit()
    assert sorted(path.name for path in folder.glob("ep*.pt")) == [f"ep1-ba{n}-rank0.pt" for n in (7, 8, 9)]
    assert len(Run("r", remote=tmp_path / "remote", read_only=True).checkpoints()) == 9


class StopAt(Callback):
    """SIGTERM to this very process in the middle of a batch."""

    def before_backward(self, state, logger):
        if state.timestamp.batch == 3:
            signal.raise_signal(signal.SIGTERM)


def test_a_stop_signal_saves_and_the_resumed_run_ends_the_same(tmp_path):
    program = (
        "import sys, pathlib\n"
        "from tests.training.test_trainer_options import StopAt, _trainer\n"
        "_trainer(pathlib.Path(sys.argv[1]), callbacks=StopAt(), max_duration='2ep', save_interval='2ep').fit()\n"
        "print('not reached')\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False, timeout=100, capture_output=True)
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, b""), done.stderr
    run = Run("r", remote=tmp_path / "remote", read_only=True)
    assert (run.status().state, run.latest().name) == ("preempted", "ep0-ba4")
    with _trainer(tmp_path, host="b", autoresume=True, max_duration="2ep") as resumed:
        resumed.fit()
    with _trainer(tmp_path, run_name="straight", max_duration="2ep") as straight:
        straight.fit()
    pairs = zip(resumed.state.model.parameters(), straight.state.model.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize("is_immune", [False, pytest.param(True, marks=pytest.mark.crash)])  # as a container's first is
def test_a_clouds_notice_saves_and_ends_by_sigterm(is_immune, tmp_path):
    program = (
        "import sys, pathlib, signal, threading\n"
        f"signal.pthread_sigmask(signal.SIG_BLOCK, {[int(signal.SIGTERM)] if is_immune else []})\n"
        "from artifactsync import Callback\n"
        "from tests.training.test_trainer_options import _trainer\n"
        "class Wait(Callback):\n"
        "    def before_backward(self, state, logger):\n"
        "        if state.timestamp.batch == 3:\n"
        "            (watch,) = [each for each in threading.enumerate() if each.name == 'artifactsync-notice']\n"
        "            watch.join(60)\n"
        "_trainer(pathlib.Path(sys.argv[1]), callbacks=Wait(), max_duration='2ep', save_interval='2ep').fit()\n"
    )
    with EC2() as server:
        server.action = json.dumps(
            {"action": "terminate", "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 100))}
        )
        machine = {"ARTIFACTSYNC_NOTICE": "aws", "AWS_EC2_METADATA_SERVICE_ENDPOINT": server.url}
        done = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path)],
            check=False,
            timeout=100,
            capture_output=True,
            text=True,
            env={**os.environ, **machine},
        )
    assert done.returncode == (128 + signal.SIGTERM if is_immune else -signal.SIGTERM), done.stderr
    assert "EC2 will terminate this spot instance, in " in done.stderr
    run = Run("r", remote=tmp_path / "remote", read_only=True)
    assert run.status().state == "preempted"
    assert run.latest().step <= 4


def test_a_handler_of_the_users_own_is_left_in_place(tmp_path):
    seen = []
    before = signal.signal(signal.SIGTERM, lambda *_: seen.append(1))
    try:
        with _trainer(tmp_path, callbacks=StopAt(), save_folder=None) as trainer:
            trainer.fit()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (seen, trainer.state.timestamp.batch) == ([1], 6)
    assert signal.getsignal(signal.SIGTERM) is before
