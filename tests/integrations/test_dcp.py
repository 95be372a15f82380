"""``torch.distributed.checkpoint`` by run name: killed, resumed on other ranks in another folder, the same bytes."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from artifactsync import Run
from tests.crash.figures import Tally, scaled
from tests.distributed.launch import Launcher, free_port
from tests.integrations import dcp_program

ROOT = Path(__file__).parents[2]


@pytest.fixture
def train(tmp_path):
    """Train on so many ranks on a host of its own; the exit codes, and the final bytes if there are any."""
    launcher = Launcher(tmp_path / "out")

    def start(world_size, host, remote, *more, environment=None):
        final = tmp_path / f"{host}.pt"
        argv = ["--remote", remote, "--local-root", tmp_path / host, "--final", final, *more]
        alone = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        codes = launcher.run(
            dcp_program.main,
            [str(word) for word in argv],
            world_size=world_size,
            environment={**(environment or {}), **(alone if world_size == 1 else {})},
        )
        assert set(codes) <= {0, -signal.SIGKILL}, launcher.output
        shutil.rmtree(tmp_path / host)  # the next one is another machine
        return codes, final.read_bytes() if final.exists() else b""

    return start


def test_killed_on_two_four_and_one_rank_it_ends_with_the_same_bytes(tmp_path, train, s3):
    codes, expected = train(2, "straight", tmp_path / "straight-remote")
    assert codes == [0, 0]
    remote = s3.fresh_url()
    run = Run("dcp", remote=remote, storage_options=s3.storage_options, read_only=True, local_root=tmp_path / "look")
    for ranks, kill_at, durable, *more in ((2, 4, 3), (4, 8, 6, "--spawned"), (1, 10, 9)):
        codes, _ = train(ranks, f"on-{ranks}", remote, "--kill-at", kill_at, *more, environment=s3.environment)
        assert codes == [-signal.SIGKILL] * ranks
        assert run.latest().step == durable
    assert train(2, "last", remote, environment=s3.environment) == ([0, 0], expected)
    assert [(c.step, c.attempt) for c in run.checkpoints()] == [(3, 1), (6, 2), (9, 3), (12, 4)]
    assert run.verify(deep=True).ok


def test_what_keeps_rank_0_from_loading_is_told_to_all(tmp_path, train):
    train(2, "first", tmp_path / "remote", "--until", 3)
    for shard in (tmp_path / "remote" / "dcp" / "checkpoints").rglob("*.distcp"):
        shard.write_bytes(b"x")
    launcher = Launcher(tmp_path / "out")
    argv = [str(tmp_path / name) for name in ("remote", "second", "out")]
    assert launcher.run(dcp_program.load_what_is_damaged, argv, world_size=2) == [0, 0], launcher.output
    first, second = ((tmp_path / "out" / f"rank{rank}.txt").read_text() for rank in (0, 1))
    assert first.startswith("DamagedError: no checkpoint of run 'dcp' is whole")
    assert second.startswith(f"ArtifactSyncError: rank 0 brought no checkpoint here: {first[:40]}")


@pytest.mark.crash
@pytest.mark.timeout(1200)  # a cold start of torch on each rank, many times
def test_torchruns_killed_at_random_moments_end_with_the_same_bytes(tmp_path, train, s3):
    _, expected = train(2, "straight", tmp_path / "straight-remote", "--until", 200, "--save-every", 1)
    tally, dice = Tally("changed", "lost", "damaged"), random.Random(11)
    for number in range(scaled(2)):
        remote, newest = s3.fresh_url(), 0
        run = Run("dcp", remote=remote, storage_options=s3.storage_options, read_only=True, local_root=tmp_path / "x")
        for attempt in range(1, 60):
            final = tmp_path / f"{number}-{attempt}.pt"
            ranks = dice.choice((1, 2, 4))
            where = ["--remote", remote, "--local-root", tmp_path / f"{number}-{attempt}", "--final", final]
            command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", ranks, "-m"]
            program = ["tests.integrations.dcp_program", *where, "--until", 200, "--save-every", 1]
            process = subprocess.Popen(
                [str(word) for word in (sys.executable, *command, *program)],
                env={**os.environ, "OMP_NUM_THREADS": "1", **s3.environment},
                cwd=ROOT,
                start_new_session=True,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            try:
                process.wait(dice.uniform(5, 25) if attempt < 4 else 300)
            except subprocess.TimeoutExpired:
                tally.count("kills")
                for each in (psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)):
                    each.kill()
                process.wait()
            checkpoints = run.checkpoints()
            if [c.step for c in checkpoints] != sorted({c.step for c in checkpoints}):
                tally.problem("changed", f"{remote}: {[(c.step, c.attempt) for c in checkpoints]}")
            if checkpoints and checkpoints[-1].step < newest:
                tally.problem("lost", f"{remote}: step {newest}")
            newest = checkpoints[-1].step if checkpoints else 0
            if process.returncode == 0:
                break
        tally.count("runs")
        if final.read_bytes() != expected:
            tally.problem("changed", f"{remote}: the final weights")
        if not run.verify(deep=True).ok:
            tally.problem("damaged", remote)
    tally.report("DCP under torchrun on 1, 2 and 4 ranks, killed at random moments", "kills", "runs")
