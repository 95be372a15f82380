"""How ranks find each other: a process group, torchrun itself, or the remote alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from artifactsync import Run
from artifactsync.batch import Placement
from artifactsync.errors import ConfigurationError, RunIsLiveError, WaitTimeoutError
from artifactsync.run import launch
from artifactsync.run.launch import Launch, launch_id
from tests.distributed import files_loop
from tests.distributed.result import differences, result


class Words:
    """A channel within one process."""

    def __init__(self):
        self.said = {}

    def tell(self, topic, word):
        self.said[topic] = word

    def ask(self, topic, timeout_s):
        if topic not in self.said:
            raise WaitTimeoutError(f"nothing of {topic} within {timeout_s:g} s")
        return self.said[topic]


def _launch(rank, words):
    made = Launch("r", Placement(rank=rank, world_size=2, local_rank=rank, local_world_size=2))
    made.channel = words
    return made


@pytest.mark.timeout(400)  # two cold starts of torch on each rank
def test_under_a_real_torchrun_that_restarts_what_was_killed(tmp_path, digits_on):
    """One rank is killed; torchrun starts both again, which resume by name, and end as if nothing had been."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "--max-restarts",
        "1",
    ]
    program = ["-m", "tests.distributed.ddp_digits", "--remote", tmp_path / "two", "--local-root", tmp_path / "a"]
    arguments = ["--max-duration", "2ep", "--count", "300", "--kill-rank", "1", "--kill-at", "7", "--only-first"]
    with subprocess.Popen(
        [str(word) for word in (*command, *program, *arguments)],
        env=environment,
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            said, _ = process.communicate(timeout=300)
        except subprocess.TimeoutExpired:
            process.terminate()  # its workers are in sessions of their own: it ends them itself
            process.wait(60)
            raise
    assert process.returncode == 0, said[-3000:]
    assert digits_on(2, "straight", remote=tmp_path / "one") == [0, 0]
    (states, lines), (expected, expected_lines) = (
        result(tmp_path / "two", tmp_path / "a"),
        result(tmp_path / "one", tmp_path / "straight"),
    )
    assert differences(states, expected) == []
    assert lines == expected_lines
    assert Run("digits", remote=tmp_path / "two", local_root=tmp_path / "x", read_only=True).attempt == 2


def test_without_a_process_group_ranks_meet_through_the_remote(tmp_path, launcher):
    out = tmp_path / "said"
    out.mkdir()
    argv = ["--remote", str(tmp_path / "remote"), "--local-root", str(tmp_path / "host"), "--out", str(out)]
    for attempt in (1, 2):
        assert launcher.run(files_loop.main, argv, world_size=2) == [0, 0], launcher.output
        said = [json.loads(file.read_text()) for file in sorted(out.glob("*.json"))]
        assert said == [[attempt, ["part0-3.bin", "part1-3.bin"]]] * 2
    run = Run("files", remote=tmp_path / "remote", local_root=tmp_path / "x", read_only=True)
    assert [(c.attempt, c.step) for c in run.checkpoints()] == [(a, step) for a in (1, 2) for step in (1, 2, 3)]
    assert run.verify(deep=True).ok
    assert run.artifacts() == []


def test_a_launch_without_a_name_of_its_own_is_refused(monkeypatch, tmp_path):
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with pytest.raises(ConfigurationError, match="one of 2 processes") as refused:
        Run("r", remote=tmp_path, local_root=tmp_path / "l")
    assert "ranks='one'" in refused.value.hint
    with Run("r", remote=tmp_path, local_root=tmp_path / "l", ranks="one") as run:
        (run.local_dir / "f").write_bytes(b"x")
        assert run.save_files([run.local_dir / "f"], step=1).result(20).step == 1


def test_what_keeps_rank_0_from_opening_the_run_is_told_to_all():
    words = Words()
    _launch(0, words).tell_failure(RunIsLiveError("run 'r' is in use by attempt 3", hint="stop that process"))
    with pytest.raises(RunIsLiveError, match="rank 0: run 'r' is in use by attempt 3") as error:
        _launch(1, words).join(None)
    assert error.value.hint == "stop that process"


def test_a_rank_that_does_not_open_the_run_is_named(monkeypatch):
    monkeypatch.setattr(launch, "JOIN_TIMEOUT_S", 1.0)
    attempt = type("Claimed", (), {"number": 1, "claim_id": "c", "claim_seq": 1})
    with pytest.raises(WaitTimeoutError, match="rank 1 of 2 did not open run 'r' within 1 s"):
        _launch(0, Words()).tell_claim(attempt)
    with pytest.raises(WaitTimeoutError, match="rank 0 did not open run 'r' within 1 s"):
        _launch(1, Words()).join(None)


def test_a_launch_is_known_by_what_its_launcher_says_and_by_no_name_of_a_host():
    torchrun = {"TORCHELASTIC_RUN_ID": "job", "TORCHELASTIC_RESTART_COUNT": "0", "MASTER_ADDR": "h", "MASTER_PORT": "1"}
    assert launch_id(torchrun) == launch_id({**torchrun, "RANK": "1"})
    assert launch_id(torchrun) != launch_id({**torchrun, "TORCHELASTIC_RESTART_COUNT": "1"})
    assert launch_id({"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0"}) != launch_id(
        {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "1"}
    )
    assert launch_id({}) == launch_id({"TORCHELASTIC_RUN_ID": "none"}) == ""
    assert len(launch_id({"ARTIFACTSYNC_LAUNCH_ID": "mine"})) == 32
