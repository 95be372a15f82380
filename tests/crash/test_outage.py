"""The store is down, hung or full for a whole run: training does not notice, and everything arrives afterwards.

Down: every request is refused. Hung: connections are taken and nothing is ever answered. Full: a local remote whose
disk has no space left. The trouble begins when training does and ends seconds after the last batch.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from artifactsync import Callback, FileLogger, Run, Trainer
from artifactsync.errors import WaitTimeoutError
from artifactsync.stores import open_store
from artifactsync.testing import Fault, FaultyStore
from tests.fault_proxy import BlackHole

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


TROUBLES = ("down", "hung", "full")


@dataclass
class Place:
    """A remote that can be taken away."""

    arguments: dict[str, Any]
    reader: dict[str, Any]
    begin: Callable[[], None]
    end: Callable[[], None]
    refused: Callable[[], int]


@pytest.fixture(params=TROUBLES)
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    if request.param == "hung":
        cloud = request.getfixturevalue("s3")
        line = request.getfixturevalue("fault_proxy")(cloud)
        url = line.fresh_url()
        yield Place(
            {"remote": url, "storage_options": line.storage_options},
            {"remote": url, "storage_options": cloud.storage_options},
            lambda: line.proxy.add(BlackHole()),
            line.proxy.heal,
            lambda: sum(1 for seen in line.proxy.seen() if seen.status is None),
        )
        return
    remote = tmp_path / "remote"
    if request.param == "down":
        faulty = FaultyStore(open_store(remote))
        yield Place(
            {"remote": faulty},
            {"remote": str(remote)},
            lambda: setattr(faulty._plan, "faults", [Fault(kind="unreachable")]),
            lambda: setattr(faulty._plan, "faults", []),
            lambda: faulty.faults_hit,
        )
        return
    disk = FullDisk(remote)
    monkeypatch.setattr(os, "write", disk.write)
    yield Place({"remote": str(remote)}, {"remote": str(remote)}, disk.fill, disk.clear, lambda: disk.refused)


class FullDisk:
    """``os.write`` below one folder, on a disk that has no space left."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._write, self._is_full = str(folder), os.write, False
        self.refused = 0

    def fill(self) -> None:
        self._is_full = True

    def clear(self) -> None:
        self._is_full = False

    def write(self, fd: int, data: Any) -> int:
        if self._is_full and self._path_of(fd).startswith(self._folder):
            self.refused += 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self._write(fd, data)

    @staticmethod
    def _path_of(fd: int) -> str:
        try:
            return str(Path(f"/proc/self/fd/{fd}").readlink())
        except OSError:
            return ""


class Watch(Callback):
    """Begins the trouble with the first batch, and notes how long each batch takes."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.batches_s: list[float] = []
        self._since = 0.0

    def fit_start(self, state: Any, logger: Any) -> None:
        self.place.begin()
        self._since = time.monotonic()

    def batch_end(self, state: Any, logger: Any) -> None:
        now = time.monotonic()
        self.batches_s.append(now - self._since)
        self._since = now


def trainer(place: Place, tmp_path: Path, *, epochs: int, callbacks: tuple[Callback, ...]) -> Trainer:
    torch.manual_seed(1)
    data = TensorDataset(torch.randn(160, 8), torch.randint(0, 4, (160,)))
    net = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 4))
    return Trainer(
        net,
        DataLoader(data, batch_size=16),
        loss_fn=nn.functional.cross_entropy,
        optimizers=torch.optim.SGD(net.parameters(), lr=0.1),
        max_duration=f"{epochs}ep",
        run_name="exp7",
        local_root=tmp_path / "runs",
        save_interval="5ba",
        loggers=[FileLogger(flush_interval=1)],
        callbacks=list(callbacks),
        progress_bar=False,
        **place.arguments,
    )


def train_through(place: Place, tmp_path: Path, *, epochs: int, outage_s: float) -> tuple[Watch, float]:
    """Train while the remote is away, and return how the batches went and how long catching up took."""
    watch = Watch(place)
    began, ended = time.monotonic(), [0.0]

    def come_back() -> None:
        place.end()
        ended[0] = time.monotonic()

    timers: list[threading.Timer] = []

    class Last(Callback):
        def fit_end(self, state: Any, logger: Any) -> None:
            assert state.run.status().durable_step is None, "the remote was there all the time"
            timers.append(threading.Timer(max(1.0, outage_s - (time.monotonic() - began)), come_back))
            timers[0].start()

    with trainer(place, tmp_path, epochs=epochs, callbacks=(watch, Last())) as training:
        training.fit()
        caught_up_s = time.monotonic() - ended[0]
    timers[0].join()
    return watch, caught_up_s


def check(place: Place, tmp_path: Path, *, epochs: int) -> int:
    """Everything is there, whole, and in order; returns how many checkpoints."""
    run = Run("exp7", read_only=True, local_root=tmp_path / "nowhere", **place.reader)
    steps = [checkpoint.step for checkpoint in run.checkpoints()]
    assert steps == sorted(steps)
    assert steps[-1] == epochs * 10
    assert run.verify(deep=True).ok
    assert run.status().state == "completed"
    run.pull(tmp_path / "pulled")
    whole = (tmp_path / "runs/exp7/logs-rank0.txt").read_bytes()
    assert (tmp_path / "pulled/logs-rank0.txt").read_bytes() == whole
    assert whole.count(b"loss/train/total") == epochs * 10
    return len(steps)


def test_training_goes_on_without_the_store_and_all_arrives(place: Place, tmp_path: Path) -> None:
    watch, _ = train_through(place, tmp_path, epochs=2, outage_s=2.0)
    assert place.refused() >= 1
    assert len(watch.batches_s) == 20
    assert max(watch.batches_s) < 5  # no batch waited for the store
    check(place, tmp_path, epochs=2)


def test_a_store_that_does_not_come_back_is_told_at_the_end_only(tmp_path: Path) -> None:
    faulty = FaultyStore(open_store(tmp_path / "remote"))
    run = Run("exp7", remote=faulty, local_root=tmp_path / "runs")
    faulty._plan.faults = [Fault(kind="unreachable")]
    log = run.local_dir / "log.txt"
    for step in range(50):
        (run.local_dir / f"{step}.pt").write_bytes(b"%d" % step)
        run.save_files([run.local_dir / f"{step}.pt"], step=step)
        with log.open("ab") as file:
            file.write(b"step %d\n" % step)
        run.push(log, growing=True)
    status = run.status()
    assert (status.durable_step, status.local_step) == (None, 49)
    began = time.monotonic()
    with pytest.raises(WaitTimeoutError, match="50 checkpoint"):
        run.close(0.5)
    assert time.monotonic() - began < 5
    assert log.read_bytes().count(b"\n") == 50  # what is not durable is here


def test_a_store_that_goes_away_at_the_very_end_does_not_hold_the_process(tmp_path: Path) -> None:
    faulty = FaultyStore(open_store(tmp_path / "remote"))
    run = Run("exp7", remote=faulty, local_root=tmp_path / "runs")
    (run.local_dir / "1.pt").write_bytes(b"1")
    run.save_files([run.local_dir / "1.pt"], step=1).result(30)
    faulty._plan.faults = [Fault(kind="unreachable")]
    began = time.monotonic()
    with pytest.raises(WaitTimeoutError, match="how run"):
        run.close(0.5)
    assert time.monotonic() - began < 10


@pytest.mark.crash
def test_training_goes_on_without_the_store_for_longer(place: Place, tmp_path: Path) -> None:
    watch, caught_up_s = train_through(place, tmp_path, epochs=30, outage_s=45.0)
    checkpoints = check(place, tmp_path, epochs=30)
    slowest = max(watch.batches_s)
    print(
        f"store away for a whole run of {len(watch.batches_s)} batches and at least 45 s: 0 exceptions in training, "
        f"{place.refused()} requests refused, slowest batch {slowest:.2f} s, {checkpoints} checkpoints durable "
        f"{caught_up_s:.1f} s after it was back"
    )
    assert slowest < 5
