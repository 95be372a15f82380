"""Every logger, read back with its tool's own reader: killed twice, resumed on other machines, finished."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from artifactsync import Run
from tests.loggers.readers import LOSS

ROOT = Path(__file__).parents[2]
EVAL = "loss/eval/total"
OFFLINE = {
    "WANDB_MODE": "offline",
    "WANDB_SILENT": "true",
    "WANDB_ERROR_REPORTING": "false",
    "WANDB_DISABLE_GIT": "true",
    "COMET_DISABLE_ANNOUNCEMENT": "1",
    "COMET_AUTO_LOG_ENV_DETAILS": "0",  # it asks the network where it is
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "1",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(ROOT),
}


def _start(module, *arguments, cwd):
    environment = {**{k: v for k, v in os.environ.items() if not k.startswith(("WANDB", "COMET", "MLFLOW"))}, **OFFLINE}
    return subprocess.run(
        [sys.executable, "-m", f"tests.loggers.{module}", *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


def _train(folder, host, *more):
    places = ["--remote", folder / "remote", "--local-root", folder / host, "--log-dir", folder / host / "tb"]
    return _start("victim", *map(str, places), *more, cwd=folder)


def _read(folder, name, reader="everything"):
    destination = folder / name
    Run("my-run", remote=folder / "remote", read_only=True).pull(destination, checkpoint="none")
    done = _start("readers", reader, str(destination), cwd=folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def _steps(curves, name=LOSS):
    return [step for step, _ in curves[name]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run that was killed three steps after its last checkpoint."""
    folder = tmp_path_factory.mktemp("loggers")
    done = _train(folder, "host0", "--kill-at", "8")
    assert done.returncode == -signal.SIGKILL, done.stderr
    return folder


@pytest.fixture(scope="module")
def killed(folder):
    """What a pull on another machine shows then."""
    run = Run("my-run", remote=folder / "remote", read_only=True)
    assert run.latest().step == 5
    paths = {artifact.path for artifact in run.artifacts()}
    return paths, _read(folder, "early", "unfinished"), folder


@pytest.fixture(scope="module")
def finished(killed):
    """What it shows after the run went on on another machine, to its end."""
    _, _, folder = killed
    done = _train(folder, "host1")
    assert done.returncode == 0, done.stderr
    return _read(folder, "pulled"), folder


def _kinds():
    return ["tensorboard", "wandb", "comet", "mlflow", "file"]


def test_a_killed_process_leaves_the_files_of_every_tool_on_the_remote(killed):
    paths, read, _ = killed
    for pattern in ("tensorboard/my-run/", "wandb/offline-run-", "comet/open/", "mlflow/mlflow.db", "logs-rank0.txt"):
        assert any(path.startswith(pattern) for path in paths), pattern
    for kind, (name, curves) in read.items():
        assert name in {None, "my-run"}
        # W&B takes a step as a whole, so the newest is written when the next begins: until then the checkpoint has it.
        assert _steps(curves) == list(range(1, 8 if kind == "wandb" else 9)), kind


@pytest.mark.parametrize("kind", _kinds())
def test_the_run_has_its_name_where_the_tool_shows_it(finished, kind):
    read, _ = finished
    assert read[kind][0] == (None if kind == "file" else "my-run")


@pytest.mark.parametrize("kind", _kinds())
def test_every_step_once_and_none_missing(finished, kind):
    read, _ = finished
    curves = read[kind][1]
    assert _steps(curves) == list(range(1, 17))
    assert _steps(curves, EVAL) == [4, 8, 12, 16]
    expected = dict(map(tuple, read["file"][1][LOSS]))
    assert dict(map(tuple, curves[LOSS])) == pytest.approx(expected, rel=1e-6)


def test_tensorboard_on_the_machine_that_goes_on_shows_the_whole_curve(finished):
    read, folder = finished
    done = _start("readers", "tensorboard", str(folder / "host1" / "tb"), cwd=folder)
    assert json.loads(done.stdout.splitlines()[-1]) == read["tensorboard"]


def test_what_was_printed_is_in_the_log_once(finished):
    _, folder = finished
    lines = (folder / "pulled" / "logs-rank0.txt").read_text().splitlines()
    assert [line for line in lines if line.startswith("[stdout]: batch")] == [
        f"[stdout]: batch {n}" for n in range(1, 17)
    ]


def test_nothing_is_left_running(finished):
    _, folder = finished
    left = [p for p in psutil.process_iter(["cmdline"]) if str(folder) in " ".join(p.info["cmdline"] or ())]
    assert not left


@pytest.mark.crash
def test_killed_again_and_again_before_the_first_checkpoint_too(tmp_path):
    kills = [3, *sorted(random.Random(5).sample(range(4, 16), 5))]
    for number, kill_at in enumerate(kills):
        done = _train(tmp_path, f"host{number}", "--kill-at", str(kill_at))
        assert done.returncode == -signal.SIGKILL, done.stderr
    done = _train(tmp_path, "last")
    assert done.returncode == 0, done.stderr
    for kind, (_, curves) in _read(tmp_path, "pulled").items():
        assert _steps(curves) == list(range(1, 17)), kind
        assert _steps(curves, EVAL) == [4, 8, 12, 16], kind
    print(f"killed at batches {kills}, each time resumed elsewhere: in 5 logs, 16 steps of 16, each once")


@pytest.mark.crash  # three services, twice imported; test_failures has what tells them
@pytest.mark.parametrize(
    ("more", "code", "expected"),
    [
        ([], 1, {"wandb": [1, False], "comet": [True, "training failed"], "mlflow": "FAILED"}),
        (
            ["--stop"],
            -signal.SIGTERM,
            {"wandb": [1, True], "comet": [True, "training was preempted"], "mlflow": "KILLED"},
        ),
    ],
)
def test_training_that_failed_is_not_shown_as_finished(more, code, expected, tmp_path):
    done = _train(tmp_path, "host0", "--fail-at", "3", "--kinds", "wandb,comet,mlflow", *more)
    assert done.returncode == code, done.stderr
    assert _read(tmp_path, "pulled", "ends") == expected
