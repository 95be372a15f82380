from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from artifactsync import StopSignal
from artifactsync.batch import JobEnv


def test_a_signal_is_noticed_between_two_steps():
    with StopSignal(grace_s=30) as stop:
        assert not stop
        assert (stop.reason, stop.grace_left_s, stop.signal) == ("", None, None)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop
        assert (stop.reason, stop.signal) == ("SIGTERM", signal.SIGTERM)
        assert 25 < stop.grace_left_s <= 30
    assert stop
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_notice_says_how_long():
    with StopSignal(grace_s=300) as stop:
        stop.request("spot instance-action: terminate", 120)
        stop.request("again", 500)
    assert stop.reason == "spot instance-action: terminate"
    assert 110 < stop.grace_left_s <= 300


def test_nobody_said_how_long():
    with StopSignal() as stop:
        stop.request("somebody wants it")
    assert stop
    assert stop.grace_left_s is None


def test_the_grace_of_the_environment(monkeypatch):
    monkeypatch.setenv("ARTIFACTSYNC_GRACE_S", "7")
    with StopSignal() as stop:
        stop.request("x")
    assert 0 < stop.grace_left_s <= 7


def test_a_handler_of_the_users_own_stays():
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        mine = signal.getsignal(signal.SIGUSR1)
        with StopSignal(job=JobEnv(stop_signals=("SIGUSR1", "SIGNOPE"))) as stop:
            assert signal.getsignal(signal.SIGUSR1) is mine
            os.kill(os.getpid(), signal.SIGUSR1)
            assert not stop
    finally:
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize(
    ("second", "code"),
    [
        ("stop.die()", -signal.SIGTERM),
        ("clock.advance(31)", -signal.SIGTERM),
        ("clock.advance(29)", 0),  # Slurm's daemon has sent one, and its srun has sent another
    ],
)
def test_the_process_dies_when_it_says_so_or_of_a_signal_that_is_no_echo(second, code):
    program = (
        "import os, signal\nfrom artifactsync import StopSignal\nfrom artifactsync.testing import FakeClock\n"
        "clock = FakeClock()\n"
        "with StopSignal(monotonic=clock.monotonic) as stop:\n"
        f"    os.kill(os.getpid(), signal.SIGTERM)\n    assert stop\n    {second}\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=60).returncode == code
