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
        say(f"1. A training run named {run_name}; its remote is {url}")
        reference = train("an uninterrupted machine", run_name + "-reference", url, environment)
        reference.wait()
        print("   first, uninterrupted: the run that the interrupted one must equal")
        say(f"2. The same training again, as {run_name}, on machine-a …")
        killed = train("machine-a", run_name, url, environment)
        step = wait_for_commit(run_name, environment, killed)
        os.kill(killed.pid, signal.SIGKILL)
        killed.wait()
        print(f"   kill -9 after its checkpoint of step {step} was committed, in the middle of an epoch")
        say("3. What a colleague sees now:  artifactsync ls")
        artifactsync(["ls"], environment)
        say(f"4. Resume on machine-b: another folder, nothing but the name {run_name}")
        if train("machine-b", run_name, url, environment).wait():
            return 1
        say(f"5. Back on a laptop:  artifactsync pull {run_name}")
        artifactsync(["pull", run_name, str(DEMO / "pulled")], environment)
        say(f"6. Every committed byte, read and hashed again:  artifactsync verify {run_name} --deep")
        artifactsync(["verify", run_name, "--deep"], environment)
        artifactsync(["pull", run_name + "-reference", str(DEMO / "reference")], environment, quiet=True)
        return compare()


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


def train(machine: str, run_name: str, url: str, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start the training script of a "machine": a folder of its own, and nothing shared but the remote."""
    folder = DEMO / machine.replace(" ", "-")
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str((HERE / "mnist.py").absolute()), "--run-name", run_name, "--max-duration", DURATION]
    return subprocess.Popen(  # noqa: S603 - our own script
        [*command, "--remote", url, "--local-root", "runs"], cwd=folder, env={**environment, "RUN_NAME": run_name}
    )


def wait_for_commit(run_name: str, environment: dict[str, str], process: subprocess.Popen[bytes]) -> int:
    """Wait until the run has a committed checkpoint, and return its step."""
    while process.poll() is None:
        found = artifactsync(["--json", "status", run_name], environment, quiet=True)
        step = json.loads(found).get("durable_step") if found else None
        if step:
            return int(step)
        time.sleep(0.2)
    sys.exit("the training ended before it could be killed; see its output above")


def artifactsync(arguments: list[str], environment: dict[str, str], *, quiet: bool = False) -> str:
    """Run the command line as a user would, and return what it printed if it is not shown."""
    command = [sys.executable, "-m", "artifactsync", *arguments]
    hidden = subprocess.PIPE if quiet else None
    done = subprocess.run(command, env=environment, stdout=hidden, stderr=hidden, check=not quiet, text=True)  # noqa: S603
    return done.stdout or ""


def compare() -> int:
    """Compare the weights of the interrupted run with those of the uninterrupted one, bit for bit."""
    import torch  # noqa: PLC0415 - not before it is needed

    digests = {}
    for which in ("reference", "pulled"):
        newest = max((DEMO / which / "checkpoints").glob("ep*.pt"), key=lambda path: path.stat().st_mtime)
        state = torch.load(newest, weights_only=True)
        digest = hashlib.sha256()
        for name, tensor in sorted(state["state"]["model"].items()):
            digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
        digests[which] = digest.hexdigest()[:16]
    same = digests["reference"] == digests["pulled"]
    say(f"7. Final weights: uninterrupted {digests['reference']}, killed and resumed {digests['pulled']}")
    print(f"   {'bit-identical: verified' if same else 'THEY DIFFER'}")
    return 0 if same else 1


def say(text: str) -> None:
    """Print a headline."""
    print(f"\n{text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
