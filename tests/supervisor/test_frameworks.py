"""Unmodified scripts, killed at random moments, finish in fresh folders."""

from __future__ import annotations

import random
import re
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.crash.figures import scaled
from tests.supervisor.conftest import ended

SCRIPTS = Path(__file__).parent / "scripts"
EVERY = 30
"""Steps between two saves: about a second, several times what it takes until one is durable."""
COMMANDS = {
    "plain_torch": [sys.executable],
    "dcp": [str(Path(sys.executable).parent / "torchrun"), "--standalone", "--nproc-per-node", "2"],
    "hugging_face": [sys.executable],
    "lightning_loop": [sys.executable],
}
QUIET = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONWARNINGS": "ignore", "HF_HUB_OFFLINE": "1"}


def steps_in(text: str) -> list[int]:
    return [int(step) for step in re.findall(r"^step (\d+)$", text, re.MULTILINE)]


def survive(machines, framework: str, folder: Path, *, steps: int, kills: int, name: str, chance: random.Random):
    """Kill a script so many times, each time with a fresh folder after it.

    Returns:
        For each kill, how it was done, and how many steps were lost.
    """
    lost: list[tuple[str, int]] = []
    before, how, durable = 0, "", 0
    for number in range(kills + 1):
        machine, output = machines(environ=QUIET), folder / f"{name}-{number}.txt"
        command = [*COMMANDS[framework], str(SCRIPTS / f"{framework}.py"), str(steps), str(EVERY)]
        with output.open("w") as file:
            process = machine.start_command(command, "--takeover", name=name, settle="1", stdout_to=file)
        wait_until(process, output, lambda text: re.search(r"^resumed \d+\n", text, re.MULTILINE))
        resumed = int(re.findall(r"^resumed (\d+)$", output.read_text(), re.MULTILINE)[0])
        assert resumed % EVERY == 0
        assert resumed >= durable, "what was durable when the machine went is there"
        if number:
            lost.append((how, before - resumed))
        if number == kills:
            _, err = ended(process)
            assert f"finished {steps}" in output.read_text()
            assert "nothing is missing" in err
            break
        # The very first checkpoint is left alone for --settle: nobody knows yet what else belongs to it.
        target = min(resumed + EVERY * (1 if number else 2) + chance.randint(1, EVERY), steps - 2)
        wait_until(process, output, lambda text, target=target: max(steps_in(text), default=0) >= target)
        how = chance.choice(["trainer", "machine"])
        latest = machine.view(name).latest()
        durable = latest.step if latest else 0
        if how == "machine":
            process.kill()
            process.communicate()
        else:
            _kill_trainers(process.pid, framework)
            ended(process, None)
        before = max(steps_in(output.read_text()))
        machine.close()
    return lost


def wait_until(process, output: Path, is_so) -> None:
    give_up_at = time.monotonic() + 300
    while not is_so(output.read_text()):
        assert process.poll() is None, (output.read_text()[-2000:], process.communicate()[1][-3000:])
        assert time.monotonic() < give_up_at, output.read_text()[-2000:]
        time.sleep(0.02)


def _kill_trainers(supervisor: int, framework: str) -> None:
    """As the kernel does when memory is short."""
    for child in psutil.Process(supervisor).children(recursive=True):
        if f"{framework}.py" in " ".join(child.cmdline()) and "keeper.py" not in " ".join(child.cmdline()):
            child.send_signal(signal.SIGKILL)


def check(lost: list[tuple[str, int]]) -> None:
    # A whole machine takes along what was not sent: how much that is, is a matter of time, and counted, not tested.
    assert all(steps <= EVERY for how, steps in lost if how == "trainer"), lost


def test_a_killed_script_finishes_in_a_fresh_folder(machines, tmp_path):
    check(survive(machines, "plain_torch", tmp_path, steps=3 * EVERY + 5, kills=1, name="r", chance=random.Random(1)))


@pytest.mark.crash
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("lane", range(scaled(25)))
@pytest.mark.parametrize("framework", list(COMMANDS))
def test_a_script_killed_twice_at_random_moments_finishes(machines, tmp_path, framework, lane):
    chance = random.Random(f"{framework}-{lane}")
    lost = survive(machines, framework, tmp_path, steps=EVERY * 7, kills=2, name="r", chance=chance)
    check(lost)
    trainers = [steps for how, steps in lost if how == "trainer"]
    whole = [steps for how, steps in lost if how == "machine"]
    print(
        f"\n{framework}, lane {lane}: 2 kills, finished, 0 partial checkpoints; steps lost at an interval of {EVERY}: "
        f"{trainers} with the trainer killed, {whole} with the machine"
    )
