"""The whole promise in a minute: train, kill -9, resume by name on another machine, pull, verify.

    make demo                 # the remote is a local folder
    make demo REMOTE=s3       # an S3 server on this machine, started and stopped by the demo
    make demo REMOTE=gcs      # a Google Cloud Storage server likewise

Everything it leaves is in ``.demo/``: a folder for each "machine", the remote (if it is local), and the pulled run.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "localstack"))  # a folder of scripts, not a package

import cloud  # noqa: E402 - found through the line above

from artifactsync import generate_run_name  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator

DEMO = Path(".demo")
DURATION = "4ep"


def main() -> int:
    """Run the demo and return its exit code."""
    parser = argparse.ArgumentParser(description="train, kill -9, resume by name elsewhere, pull, verify")
    parser.add_argument("--remote", choices=("local", "s3", "gcs"), default="local")
    options = parser.parse_args()
    shutil.rmtree(DEMO, ignore_errors=True)
    run_name = generate_run_name()
    with remote_of(options.remote) as (url, environment):
        say("remote", f"{url}  (what the training prints is in {DEMO}/*/output.txt)")
        say("train", "a first run, never interrupted, for comparison")
        finish(train("undisturbed", "undisturbed", environment))
        say("train", f"the same on machine-a, as {run_name}")
        killed = train("machine-a", run_name, environment)
        step = wait_for_commit(run_name, environment, killed)
        os.kill(killed.pid, signal.SIGKILL)
        killed.wait()
        say("kill -9", f"in the middle of an epoch; the checkpoint of step {step} was committed")
        say("resume", "on machine-b: another folder, nothing but the name")
        finish(train("machine-b", run_name, environment))
        step = json.loads(artifactsync(["--json", "status", run_name], environment, quiet=True))["durable_step"]
        is_same = weights("machine-b", run_name) == weights("undisturbed", "undisturbed")
        say("", f"finished at step {step}; its final weights are {'the same bits' if is_same else 'NOT the same'}")
        say("ls", "artifactsync ls")
        artifactsync(["ls"], environment)
        say("verify", f"artifactsync verify {run_name} --deep")
        artifactsync(["verify", run_name, "--deep"], environment)
        say("pull", f"artifactsync pull {run_name} {DEMO}/pulled")
        artifactsync(["pull", run_name, str(DEMO / "pulled")], environment)
        return 0 if is_same else 1


@contextlib.contextmanager
def remote_of(kind: str) -> Iterator[tuple[str, dict[str, str]]]:
    """The remote's URL, and the environment that a process needs to reach it."""
    foreign = ("ARTIFACTSYNC_", "AWS_", "GOOGLE_", "STORAGE_EMULATOR_", "RUN_NAME")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    if kind == "local":
        url = str((DEMO / "bucket").absolute())
        yield url, {**clean, "ARTIFACTSYNC_REMOTE": url}
        return
    with cloud.s3() if kind == "s3" else cloud.gcs() as server:
        yield server.url, {**clean, **server.environment}


def train(machine: str, run_name: str, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start the training script of a "machine": a folder of its own, and nothing shared but the remote."""
    folder = DEMO / machine
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str((HERE / "mnist.py").absolute()), "--run-name", run_name, "--max-duration", DURATION]
    with (folder / "output.txt").open("wb") as output:
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT)  # noqa: S603


def finish(process: subprocess.Popen[bytes]) -> None:
    """Wait for a training that should end well."""
    if process.wait():
        sys.exit(f"the training failed; see {DEMO}/*/output.txt")


def wait_for_commit(run_name: str, environment: dict[str, str], process: subprocess.Popen[bytes]) -> int:
    """Wait until the run has a committed checkpoint, and return its step."""
    while process.poll() is None:
        found = artifactsync(["--json", "status", run_name], environment, quiet=True)
        step = json.loads(found).get("durable_step") if found else None
        if step:
            return int(step)
        time.sleep(0.2)
    sys.exit(f"the training ended before it could be killed; see {DEMO}/*/output.txt")


def artifactsync(arguments: list[str], environment: dict[str, str], *, quiet: bool = False) -> str:
    """Run the command line as a user would, and return what it printed if it is not shown."""
    command = [sys.executable, "-m", "artifactsync", *arguments]
    hidden = subprocess.PIPE if quiet else None
    done = subprocess.run(command, env=environment, stdout=hidden, stderr=hidden, check=not quiet, text=True)  # noqa: S603
    return done.stdout or ""


def weights(machine: str, run_name: str) -> str:
    """Return a digest of the final weights that a machine has on its disk."""
    import torch  # noqa: PLC0415 - two seconds, not before they are needed

    state = torch.load(DEMO / machine / "runs" / run_name / "checkpoints/latest-rank0.pt", weights_only=True)
    digest = hashlib.sha256()
    for name, tensor in sorted(state["model"].items()):
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def say(what: str, text: str) -> None:
    """Print a line."""
    print(f"{what:>8}  {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
