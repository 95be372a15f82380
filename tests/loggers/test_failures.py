"""Loggers that fail, and packages that are not there: training goes on, and the user is told once."""

from __future__ import annotations

import sys
import threading
import warnings

import pytest
import torch

from artifactsync import Callback, MLFlowLogger, TensorboardLogger, Trainer, WandBLogger
from artifactsync.errors import ConfigurationError, MissingPackageError, RunFencedError
from artifactsync.loggers import CometMLLogger, LogContext, Logger, LoggerDestination
from artifactsync.loggers.service_logger import ServiceLogger
from artifactsync.loggers.wandb_file import read_history


def _context(folder, *, rank=0):
    return LogContext(
        run_name="r", local_dir=folder / "r", placeholders={"rank": rank}, identity=lambda: "0123456789abcdef" * 2
    )


class Broken(LoggerDestination):
    def __init__(self, error=None):
        self.error = error or OSError("no space left")

    def log_metrics(self, metrics, step):
        raise self.error

    def flush(self):
        raise self.error


class Kept(LoggerDestination):
    def __init__(self):
        self.steps = []
        self.told = []

    def ended(self, state):
        self.told.append(state)

    def close(self):
        self.told.append("closed")

    def log_metrics(self, metrics, step):
        self.steps.append(step)


class Fails(Callback):
    def before_forward(self, state, logger):
        raise FloatingPointError("loss is nan")


class Service(ServiceLogger):
    """A service that can be down."""

    def __init__(self, *, is_up=True, has=()):
        super().__init__(close_timeout_s=20)
        self.up = threading.Event()
        if is_up:
            self.up.set()
        self.tried = threading.Event()
        self.has = list(has)

    def _service_connect(self, context):
        self.tried.set()
        if not self.up.is_set():
            raise ConnectionError("nobody answers")

    def _service_finish(self):
        self.end = self._end

    def _service_recorded(self, floor):
        return {(step, name) for step, name in self.has if step >= floor}

    def _service_send(self, rows):
        self.has += [(step, name) for step, row in rows for name in row]


def _begin(destination, folder, *, state=None, resumed_at=None):
    destination.open(_context(folder))
    if state is not None:
        destination.load_state_dict(state)
    destination.start(resumed_at=resumed_at)
    return destination


def test_one_that_fails_is_told_once_and_the_others_go_on():
    kept = Kept()
    logger = Logger([Broken(), kept])
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for step in range(3):
            logger.log_metrics({"loss": 1.0}, step)
            logger.flush()
        logger.close()
    assert [str(w.message) for w in told] == ["Broken fails, and training goes on: OSError: no space left"]
    assert kept.steps == [0, 1, 2]


@pytest.mark.parametrize(("callbacks", "state"), [([], "completed"), ([Fails()], "failed")])
def test_every_logger_is_told_how_training_ended(callbacks, state, tmp_path):
    kept, service, net = Kept(), Service(), torch.nn.Linear(2, 2)
    trainer = Trainer(
        net,
        [(torch.ones(4, 2), torch.zeros(4, dtype=torch.int64))],
        optimizers=torch.optim.SGD(net.parameters(), lr=0.1),
        max_duration="1ep",
        loss_fn=torch.nn.CrossEntropyLoss(),
        run_name="r",
        local_root=tmp_path,
        loggers=[kept, service],
        callbacks=callbacks,
        progress_bar=False,
        device="cpu",
    )
    if callbacks:
        with pytest.raises(FloatingPointError):
            trainer.fit()
    else:
        trainer.fit()
    trainer.close()
    assert (kept.told, service.end) == ([state, "closed"], state)


def test_that_another_process_owns_the_run_is_no_failure_of_a_logger():
    logger = Logger([Broken(RunFencedError("another"))])
    with pytest.raises(RunFencedError):
        logger.flush()


@pytest.mark.parametrize(
    ("kind", "package", "extra"),
    [
        (TensorboardLogger, "tensorboard", "tensorboard"),
        (WandBLogger, "wandb", "wandb"),
        (CometMLLogger, "comet_ml", "comet"),
        (MLFlowLogger, "mlflow", "mlflow"),
        (MLFlowLogger, "sqlalchemy", "mlflow"),
    ],
)
def test_a_missing_package_is_one_line_with_the_command(kind, package, extra, tmp_path, monkeypatch):
    for name in [package, *(n for n in sys.modules if n.startswith(f"{package}."))]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingPackageError, match=f"{kind.__name__} needs the Python package {package}") as raised:
        Logger([kind()]).open(_context(tmp_path))
    assert raised.value.hint == f"pip install 'artifactsync[{extra}]'"
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", [TensorboardLogger, WandBLogger, CometMLLogger, MLFlowLogger])
def test_other_ranks_write_nothing(kind, tmp_path):
    logger = Logger([kind()])
    logger.open(_context(tmp_path, rank=1))
    logger.start()
    logger.log_metrics({"loss": 1.0}, 1)
    assert logger.flush() == []
    assert logger.state_dict() == {}
    logger.close()
    assert not list(tmp_path.iterdir())


def test_a_service_that_is_down_gets_everything_later(tmp_path):
    service = _begin(Service(is_up=False), tmp_path)
    assert service.tried.wait(10)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for step in range(1, 6):
            service.log_metrics({"loss": 1.0}, step)
        assert [step for step, _ in service.state_dict()["rows"]] == [1, 2, 3, 4, 5]
        service.up.set()
        assert service.wait(20)
        service.close()
    assert len([each for each in told if "nobody answers" in str(each.message)]) == 1
    assert service.has == [(step, "loss") for step in range(1, 6)]


def test_a_resumed_one_sends_what_is_missing_and_nothing_twice(tmp_path):
    # The killed attempt had sent steps up to 7 but for 5, which the checkpoint at 5 holds.
    has = [(step, "loss") for step in (1, 2, 3, 4, 6, 7)]
    service = Service(has=has)
    _begin(service, tmp_path, state={"identity": "x", "rows": [[5, {"loss": 1.0}]]}, resumed_at=5)
    for step in range(6, 11):
        service.log_metrics({"loss": 1.0}, step)
    service.close()
    assert sorted(service.has) == [(step, "loss") for step in range(1, 11)]


def test_a_torn_wandb_file_is_read_to_its_last_whole_record(tmp_path):
    file = tmp_path / "run.wandb"
    file.write_bytes(b":W&B\xe8\xee\x00" + b"\x00" * 4 + b"\xff\xff\x01torn")
    assert read_history(file) == []


def test_mistakes():
    with pytest.raises(ConfigurationError):
        TensorboardLogger(flush_interval=0)
