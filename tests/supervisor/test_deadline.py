"""Whose the time after a notice is."""

from __future__ import annotations

from artifactsync.supervisor.deadline import Deadline
from artifactsync.testing import FakeClock


def at(grace_s, *, size_bytes=0, bytes_per_s=0.0):
    """When the command is killed, and when nothing more than the last record is written, in seconds after a notice."""
    clock = FakeClock()
    deadline = Deadline(grace_s, usual_grace_s=30.0, clock=clock)
    deadline.reserve(size_bytes, bytes_per_s)
    assert not deadline.is_over()
    assert deadline.notice("SIGTERM")
    assert not deadline.notice("again")
    killed_s = over_s = None
    for tenth in range(int(10 * (grace_s or 30)) + 1):
        if deadline.is_child_late():
            killed_s = tenth / 10
        if over_s is None and deadline.is_over():
            over_s = tenth / 10
        clock.advance(0.1)
    return killed_s, over_s


def test_more_than_nine_tenths_of_the_grace_is_for_sending():
    for grace_s in (10.0, 30.0, 120.0):
        _, over_s = at(grace_s)
        assert 0.9 * grace_s < over_s < grace_s - 0.4


def test_the_command_has_half_of_it_where_no_rate_is_known_and_what_sending_leaves_where_one_is():
    assert 12 <= at(30.0)[0] <= 15
    assert 25 <= at(30.0, size_bytes=1_000_000, bytes_per_s=1e6)[0] <= 27
    assert 14 <= at(30.0, size_bytes=10_000_000, bytes_per_s=1e6)[0] <= 16
    assert at(30.0, size_bytes=10**9, bytes_per_s=1e6)[0] == 3  # never less than a tenth


def test_nobody_said_how_long():
    assert at(None)[1] == at(30.0)[1]
