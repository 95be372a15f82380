"""Trainings with large checkpoints, which a process beside them hashes and sends: it is killed, or they are."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from artifactsync import Run
from tests.crash.figures import Tally, scaled
from tests.crash.large_saves import TENSORS

SOON_S = 60


class Training:
    def __init__(self, remote, options, folder, output):
        self._output = output
        with output.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.crash.large_saves", remote, json.dumps(options), str(folder)],
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=Path(__file__).parents[2],
            )

    def said(self, word):
        return [int(number) for number in re.findall(rf"^{word} (\d+)$", self._output.read_text(), re.MULTILINE)]

    def wait_for(self, word, more_than=0):
        until_s = time.monotonic() + SOON_S
        while max(self.said(word), default=-1) <= more_than:
            assert self.process.poll() is None, self._output.read_text()[-3000:]
            assert time.monotonic() < until_s, self._output.read_text()[-3000:]
            time.sleep(0.005)


def play(remote, options, folder, kills, chance, tally):
    told = 0
    for number in range(kills):
        training = Training(remote, options, folder / f"machine-{number}", folder / f"{number}.txt")
        try:
            training.wait_for("courier")
            (resumed,) = training.said("resumed")
            if resumed < told:
                tally.problem("lost", f"{told} was committed, {resumed} restored")
            training.wait_for("committed", resumed)
            time.sleep(chance.uniform(0, 0.4))
            if chance.random() < 0.5:
                os.kill(training.said("courier")[0], signal.SIGKILL)
                tally.count("courier killed")
                training.wait_for("committed", max(training.said("committed")) + 2)  # it goes on
        finally:
            training.process.kill()
            training.process.wait()
        tally.count("training killed")
        told = max(training.said("committed"))
        view = Run("large", remote=remote, storage_options=options, local_root=folder / "reader", read_only=True)
        if not view.verify(deep=True).ok:
            tally.problem("damaged", f"after kill {number}")
    view.pull(folder / "pulled", only="checkpoints")
    (path,) = [folder / "pulled" / file.path for file in view.latest().files]
    state = torch.load(path, weights_only=True)
    values = {float(value) for tensor in state.values() for value in tensor.unique()}
    if len(state) != TENSORS or values != {float(view.latest().step)}:
        tally.problem("damaged", f"step {view.latest().step} holds {values}")


@pytest.fixture(params=["local", "s3", "gcs"])
def place(request, tmp_path):
    if request.param == "local":
        return str(tmp_path / "remote"), {}
    cloud = request.getfixturevalue(request.param)
    return cloud.fresh_url(), cloud.storage_options


def test_a_killed_courier_and_a_killed_training(tmp_path, s3):
    tally = Tally("lost", "damaged")
    play(s3.fresh_url(), s3.storage_options, tmp_path, 2, random.Random(5), tally)
    tally.report("large saves", "courier killed", "training killed")


@pytest.mark.crash
@pytest.mark.timeout(3000)
def test_many_killed_couriers_and_trainings(tmp_path, place, request):
    tally = Tally("lost", "damaged")
    for lane in range(scaled(20)):
        folder = tmp_path / str(lane)
        folder.mkdir()
        url, options = place
        play(f"{url}/{lane}", options, folder, 5, random.Random(lane), tally)
    tally.report(f"large saves, {request.node.callspec.id}", "courier killed", "training killed")
