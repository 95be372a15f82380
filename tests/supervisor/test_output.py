"""What a command prints, in the run's log."""

from __future__ import annotations

import os

from artifactsync.supervisor.output import Output


def test_a_line_of_one_stream_is_not_cut_by_the_other(tmp_path):
    log, said = tmp_path / "log.txt", []
    output = Output(log, tell=said.append)
    (out, out_in), (err, err_in), (shown, show) = os.pipe(), os.pipe(), os.pipe()
    output.carry(out, show)
    output.carry(err, show)
    os.write(out_in, b"half a ")
    assert os.read(shown, 100) == b"half a "  # on the screen as it comes
    os.write(err_in, b"a whole one\nand a beginning")
    assert os.read(shown, 100) == b"a whole one\nand a beginning"
    os.write(out_in, b"line\r10 %\r")
    assert os.read(shown, 100) == b"line\r10 %\r"
    os.close(out_in)
    os.close(err_in)
    output.finish()
    for fd in (shown, show):
        os.close(fd)
    assert sorted(log.read_bytes().splitlines()) == [b"10 %", b"a whole one", b"and a beginning", b"half a line"]
    assert said == []


def test_a_prompt_that_nobody_ends_and_a_line_without_end_reach_the_log(tmp_path):
    log = tmp_path / "log.txt"
    output = Output(log, tell=lambda _: None)
    (out, out_in), (shown, show) = os.pipe(), os.pipe()
    output.carry(out, show)
    os.write(out_in, b"password: ")
    os.read(shown, 100)
    while log.stat().st_size == 0:  # a second at most, or the test's time limit
        pass
    assert log.read_bytes() == b"password: "
    os.close(out_in)
    output.finish()
    for fd in (shown, show):
        os.close(fd)
