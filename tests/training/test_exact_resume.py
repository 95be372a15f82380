"""A run that is killed anywhere and resumed by name elsewhere ends with the bytes of one that never was."""

from __future__ import annotations

import os
import random
import shutil
import signal

import pytest
import torch

from artifactsync import Run
from tests.crash.figures import Tally, scaled
from tests.training import digits
from tests.warm import warm_context

_RANDOM_CASES = {
    "plain": [],
    "workers": ["--workers", "2"],
    "persistent workers, accumulation": ["--workers", "2", "--persistent", "--microbatch", "12"],
    "accumulation": ["--microbatch", "10"],
    "bf16, accumulation": ["--precision", "amp_bf16", "--microbatch", "10"],
}
_BATCHES = 26  # 2 epochs of 13: most kills are in the middle of one
_CASES = {
    "plain": ["--kill-at", "5,17,24"],
    "workers": ["--workers", "2", "--kill-at", "7,14"],
    "persistent workers, accumulation": ["--workers", "2", "--persistent", "--microbatch", "12", "--kill-at", "16"],
    "bf16, accumulation, saving per epoch": [
        "--precision", "amp_bf16", "--microbatch", "10", "--save-interval", "1ep", "--kill-at", "20",
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def train():
    """Start ``tests.training.digits`` in a process of its own; returns its exit code.

    A fork server that has imported torch already starts them: importing it costs more than training here.
    """
    context = warm_context()

    def start(arguments, *, remote, local_root, environment=None):
        arguments = ["--remote", str(remote), "--local-root", str(local_root), "--max-duration", "2ep", *arguments]
        process = context.Process(target=digits.main, args=(arguments, environment or {}))
        process.start()
        process.join(100)
        return process.exitcode

    return start


def _interrupted(train, arguments, kills, *, remote, folder, environment=None):
    for number, kill_at in enumerate(kills):
        extra = ["--kill-at", str(kill_at), *(["--when-durable"] if number == 0 else [])]
        host = folder / f"host{number}"
        assert train([*arguments, *extra], remote=remote, local_root=host, environment=environment) == -signal.SIGKILL
    host = folder / f"host{len(kills)}"
    assert train(arguments, remote=remote, local_root=host, environment=environment) == 0
    return host


def _result(remote, local_root, storage_options=None):
    """Everything of the last checkpoint but the clock and what names the attempt's own log; and the metric lines."""
    run = Run("digits", remote=str(remote), local_root=local_root, read_only=True, storage_options=storage_options)
    resumed = run.resume()
    state = resumed.state
    for name in ("total_wct", "epoch_wct", "batch_wct"):
        del state["timestamp"][name]
    del state["loggers"]
    lines = (local_root / "digits" / "logs-rank0.txt").read_text().splitlines()
    assert run.fs.cat_file("logs-rank0.txt").decode().splitlines() == lines
    assert run.status().state == "completed"
    return state, [line for line in lines if line.startswith("[metric]")]


def _assert_same(one, other, path="state"):
    assert type(one) is type(other), path
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype, path
        assert torch.equal(one, other), path
    elif isinstance(one, dict):
        assert list(one) == list(other), path
        for name in one:
            _assert_same(one[name], other[name], f"{path}[{name!r}]")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), path
        for index, (left, right) in enumerate(zip(one, other, strict=True)):
            _assert_same(left, right, f"{path}[{index}]")
    else:
        assert one == other, path


@pytest.mark.parametrize("case", _CASES)
def test_bit_identical_after_kills(tmp_path, train, case):
    *arguments, _, kills = _CASES[case]
    assert train(arguments, remote=tmp_path / "one", local_root=tmp_path / "straight") == 0
    expected, expected_lines = _result(tmp_path / "one", tmp_path / "straight")
    last = _interrupted(train, arguments, kills.split(","), remote=tmp_path / "two", folder=tmp_path)
    state, lines = _result(tmp_path / "two", last)
    assert lines == expected_lines
    _assert_same(state, expected)


def test_bit_identical_on_s3_killed_anywhere(tmp_path, train, s3):
    kill_at = random.Random(os.environ.get("PYTEST_CURRENT_TEST")).randint(4, 25)
    assert train([], remote=tmp_path / "one", local_root=tmp_path / "straight") == 0
    expected, expected_lines = _result(tmp_path / "one", tmp_path / "straight")
    remote = s3.fresh_url()
    last = _interrupted(train, [], [kill_at], remote=remote, folder=tmp_path, environment=s3.environment)
    state, lines = _result(remote, last, s3.storage_options)
    assert lines == expected_lines
    _assert_same(state, expected)


@pytest.mark.crash
@pytest.mark.parametrize("case", _RANDOM_CASES)
def test_killed_at_random_batches(tmp_path, train, case):
    arguments, chance = _RANDOM_CASES[case], random.Random(case + os.environ.get("CRASH_SEED", ""))
    tally = Tally("not bit-identical", "did not end")
    assert train(arguments, remote=tmp_path / "one", local_root=tmp_path / "straight") == 0
    expected, expected_lines = _result(tmp_path / "one", tmp_path / "straight")
    for number in range(scaled(25)):
        here = tmp_path / str(number)
        kill_at, durable = chance.randrange(_BATCHES), chance.random() < 0.5
        where = f"batch {kill_at}, {'durable' if durable else 'as it happened'}"
        kill = ["--kill-at", str(kill_at), *(["--when-durable"] if durable else [])]
        ended = train([*arguments, *kill], remote=here / "remote", local_root=here / "a")
        latest = Run("digits", remote=here / "remote", local_root=here / "look", read_only=True).latest()
        again = train(arguments, remote=here / "remote", local_root=here / "b")
        tally.count("kills")
        tally.count("resumes within an epoch", latest is not None and latest.batch % (_BATCHES // 2) != 0)
        if (ended, again) != (-signal.SIGKILL, 0):
            tally.problem("did not end", f"{where}: {ended}, {again}")
            continue
        state, lines = _result(here / "remote", here / "b")
        try:
            assert lines == expected_lines, "metrics"
            _assert_same(state, expected)
        except AssertionError as error:
            tally.problem("not bit-identical", f"{where}: {error}")
        shutil.rmtree(here)
    tally.report(f"Trainer, {case}, killed in the midst of a batch", "kills", "resumes within an epoch")
