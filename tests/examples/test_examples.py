"""The examples as a newcomer runs them: as programs, twice, the second time on another machine."""

from __future__ import annotations

from artifactsync import Run
from tests.examples.programs import run_program


def test_mnist_trains_and_goes_on_elsewhere(tmp_path, s3):
    arguments = ["--run-name", "digits", "--remote", s3.fresh_url(), "--save-interval", "10ba"]

    def train(host, duration):
        more = ["--local-root", tmp_path / host, "--max-duration", duration]
        return run_program("mnist.py", *arguments, *more, folder=tmp_path / f"{host}-out", environment=s3.environment)

    first = train("a", "1ep")
    assert first.returncode == 0, first.stderr
    assert "run digits: accuracy 0." in first.stdout
    second = train("b", "2ep")
    assert second.returncode == 0, second.stderr
    assert "continuing after batch 24" in second.stderr
    accuracy = float(second.stdout.split("accuracy ")[1])
    assert accuracy > 0.8
    run = Run("digits", remote=arguments[3], read_only=True, storage_options=s3.storage_options)
    assert [c.name for c in run.checkpoints()] == [
        "ep0-ba10",
        "ep0-ba20",
        "ep1-ba24",
        "ep1-ba30",
        "ep1-ba40",
        "ep2-ba48",
    ]
    assert run.status().state == "completed"


def test_plain_loop_goes_on_with_the_same_numbers(tmp_path):
    def train(name, host, steps):
        arguments = ["--run-name", name, "--remote", tmp_path / "r", "--local-root", tmp_path / host, "--steps", steps]
        return run_program("plain_loop.py", *arguments, folder=tmp_path / f"{host}-out")

    first = train("p", "a", 300)
    assert first.returncode == 0, first.stderr
    for steps, host in ((110, "b"), (300, "c")):
        again = train("q", host, steps)
        assert again.returncode == 0, again.stderr
    assert "attempt 2: starting at step 110" in again.stdout
    assert again.stdout.splitlines()[-2] == first.stdout.splitlines()[-2]  # the last loss
    assert again.stdout.split("accuracy")[1] == first.stdout.split("accuracy")[1]
    assert "durable up to step 300" in again.stdout


def test_a_runs_name_shows_up_everywhere(tmp_path):
    arguments = ["--run-name", "my-cool-run-name", "--remote", tmp_path / "bucket", "--local-root", tmp_path / "runs"]
    quiet = {"COMET_DISABLE_ANNOUNCEMENT": "1", "WANDB_ERROR_REPORTING": "false", "WANDB_DISABLE_GIT": "true"}
    done = run_program("run_names.py", *arguments, folder=tmp_path / "out", environment=quiet)
    assert done.returncode == 0, done.stderr
    listed = [line.removeprefix("my-cool-run-name/") for line in done.stdout.splitlines() if "/" in line]
    for expected in (
        "checkpoints/ep2-ba16-rank0.pt",
        "logs-rank0.txt",
        "metrics-rank0.jsonl",
        "notes/my-cool-run-name-foo-bar.txt",
        "tensorboard/my-cool-run-name/events.out.tfevents",
        "wandb/offline-run-",
        "comet/",
        "traces/ep0-ba4-rank0.json",
        "torch_traces/rank0.4.pt.trace.json",
    ):
        assert any(path.startswith(expected) for path in listed), (expected, listed)
