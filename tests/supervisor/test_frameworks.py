"""Unmodified scripts, killed at random moments, finish in fresh folders."""

from __future__ import annotations

import contextlib
import random
import re
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from tests.crash.figures import scaled
from tests.supervisor.conftest import ended

SCRIPTS = Path(__file__).parent / "scripts"
EVERY = 30
"""Steps between two saves."""
DURABLE_S = 10.0
"""Seconds after which what was saved is durable, whatever happens then.

With ``--settle 1`` the supervisor is allowed about three, and the upload: a second between two glances at what the
kernel told, a second for the first of its kind to be left alone, a second until the next look. The rest is for machines
that are busy; between two looks there are never more than these ten seconds.
"""
COMMANDS = {
    "plain_torch": [sys.executable],
    "dcp": [str(Path(sys.executable).parent / "torchrun"), "--standalone", "--nproc-per-node", "2"],
    "hugging_face": [sys.executable],
    "lightning_loop": [sys.executable],
}
QUIET = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONWARNINGS": "ignore", "HF_HUB_OFFLINE": "1"}


class Lost(NamedTuple):
    """What a kill cost."""

    how: str
    """Whether the ``trainer`` was killed or the whole ``machine``."""
    steps: int
    """That were made again."""
    at_most: int
    """Of them, by what is promised."""


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How fast a script goes, and when it is killed."""

    step_s: float
    """Seconds that a step takes."""
    intervals: int
    """How many saves it makes to its end."""
    kill_within: int
    """Intervals from its start within which it is killed, at any step."""


FAST = Pace(step_s=0.1, intervals=8, kill_within=4)
"""A save every three seconds: several are on their way, or too young to be."""
SLOW = Pace(step_s=0.5, intervals=4, kill_within=2)
"""A save every 15 seconds: the newest is durable at most moments."""


class Progress:
    """The steps that a command has said it made, each with the time when it was seen."""

    def __init__(self, output: Path) -> None:
        self._output = output
        self._seen: list[tuple[float, int]] = [(0.0, 0)]

    def look(self) -> str:
        text, now = self._output.read_text(), time.monotonic()
        if (newest := max(steps_in(text), default=0)) > self._seen[-1][1]:
            self._seen.append((now, newest))
        return text

    @property
    def newest(self) -> int:
        return self._seen[-1][1]

    def saved_by(self, moment: float) -> int:
        """The newest step that was saved by then for sure: another one was made after it."""
        made = max(step for at, step in self._seen if at <= moment)
        return max(0, made - 1) // EVERY * EVERY


def steps_in(text: str) -> list[int]:
    return [int(step) for step in re.findall(r"^step (\d+)$", text, re.MULTILINE)]


def survive(
    machines, framework: str, folder: Path, *, pace: Pace, ways: list[str], chance: random.Random
) -> list[Lost]:
    """Kill a script in each of these ways, ``trainer`` or ``machine``, each time with a fresh folder after it."""
    lost: list[Lost] = []
    steps, before, must_be_there = pace.intervals * EVERY, 0, 0
    for number, how in enumerate([*ways, ""]):
        machine, output = machines(environ=QUIET), folder / f"r-{number}.txt"
        step_s = pace.step_s if how else 0.02
        command = [*COMMANDS[framework], str(SCRIPTS / f"{framework}.py"), str(steps), str(EVERY), str(step_s)]
        with output.open("w") as file:
            process = machine.start_command(command, "--takeover", settle="1", stdout_to=file)
        progress = Progress(output)
        wait_until(process, progress, lambda text: re.search(r"^resumed \d+\n", text, re.MULTILINE))
        resumed = int(re.findall(r"^resumed (\d+)$", progress.look(), re.MULTILINE)[0])
        assert resumed % EVERY == 0
        if number:
            lost.append(Lost(ways[number - 1], before - resumed, before - must_be_there))
            assert resumed >= must_be_there, (lost, must_be_there, resumed)
        if not how:
            _, err = ended(process)
            assert f"finished {steps}" in output.read_text()
            assert "nothing is missing" in err
            assert machine.view().verify(deep=True).ok
            break
        target = min(resumed + chance.randint(1, pace.kill_within * EVERY), steps - 2)
        wait_until(process, progress, lambda _, progress=progress, target=target: progress.newest >= target)
        must_be_there = _end(process, machine, progress, how, framework, resumed)
        before = max(steps_in(output.read_text()), default=resumed)
        machine.close()
    return lost


def _end(process, machine, progress: Progress, how: str, framework: str, resumed: int) -> int:
    """Kill it; returns the step from which it has to go on at least."""
    latest = machine.view().latest()
    durable = latest.step if latest else 0
    if how == "trainer":
        _kill_trainers(process.pid, framework)
        ended(process, None)
        progress.look()
        return max(durable, resumed, progress.saved_by(time.monotonic()))
    killed_at = time.monotonic()
    process.kill()
    process.communicate()
    return max(durable, resumed, progress.saved_by(killed_at - DURABLE_S))


def wait_until(process, progress: Progress, is_so) -> None:
    give_up_at = time.monotonic() + 900  # a machine may be busy: importing torch took five minutes on one
    while not is_so(text := progress.look()):
        assert process.poll() is None, (text[-2000:], process.communicate()[1][-3000:])
        assert time.monotonic() < give_up_at, text[-2000:]
        time.sleep(0.02)


def _kill_trainers(supervisor: int, framework: str) -> None:
    """As the kernel does when memory is short."""
    for child in psutil.Process(supervisor).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # torchrun ends the second when the first is gone
            if f"{framework}.py" in " ".join(child.cmdline()) and "keeper.py" not in " ".join(child.cmdline()):
                child.send_signal(signal.SIGKILL)


def test_a_killed_script_finishes_in_a_fresh_folder(machines, tmp_path):
    pace = Pace(step_s=0.03, intervals=4, kill_within=3)
    (lost,) = survive(machines, "plain_torch", tmp_path, pace=pace, ways=["trainer"], chance=random.Random(1))
    assert lost.steps <= EVERY


def test_what_was_saved_is_there_when_the_machine_goes(machines):
    """Three machines; from each one save comes, of which the first is the first of its kind."""
    for step in (1, 2, 3):
        machine = machines()
        process = machine.start(
            """
            step = max((load(path) for path in glob.glob("ckpts/*.pt")), default=0)
            print("resumed", step, flush=True)
            save(f"ckpts/step-{step + 1}.pt", step + 1)
            print("saved", flush=True)
            time.sleep(60)
            """,
            "--takeover",
            settle="1",
        )
        assert process.stdout.readline() == f"resumed {step - 1}\n"
        assert process.stdout.readline() == "saved\n"
        machine.wait_for(
            lambda machine=machine, step=step: (latest := machine.view().latest()) and latest.step == step,
            timeout_s=DURABLE_S,
        )
        process.kill()
        process.communicate()


@pytest.mark.crash
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("lane", range(scaled(25)))
@pytest.mark.parametrize("framework", list(COMMANDS))
def test_a_script_killed_twice_at_random_moments_finishes(machines, tmp_path, framework, lane):
    chance = random.Random(f"{framework}-{lane}")
    pace = SLOW if lane % 2 else FAST
    ways = [chance.choice(["trainer", "machine"]) for _ in range(2)]
    lost = survive(machines, framework, tmp_path, pace=pace, ways=ways, chance=chance)
    print(
        f"\n{framework}, lane {lane}, a save every {pace.step_s * EVERY:.0f} s: 2 kills, finished, 0 partial "
        "checkpoints; lost: " + ", ".join(f"{each.steps} of at most {each.at_most} ({each.how})" for each in lost)
    )
    assert all(each.steps <= each.at_most for each in lost)
    assert all(each.steps <= EVERY for each in lost if each.how == "trainer")
