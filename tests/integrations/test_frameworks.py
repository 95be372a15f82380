"""Each framework with its real package: trained, killed, resumed by name in another folder, compared byte for byte."""

from __future__ import annotations

import shutil
import signal

import pytest

from artifactsync import Run

KILLED = -signal.SIGKILL


def _run(folder):
    return Run("digits", remote=folder / "remote", read_only=True)


def _same(one, other):
    for name in ("final.pt", "optimizer.pt"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


@pytest.mark.parametrize(
    ("program", "kill_at", "durable", "last"),
    [("lightning", 10, 8, 16), ("transformers", 9, 6, 16), ("accelerate", 10, 8, 16)],
)
def test_killed_and_resumed_elsewhere_it_ends_with_the_same_bytes(warm, tmp_path, program, kill_at, durable, last):
    for name in ("straight", "first", "second"):
        (tmp_path / name).mkdir()
    warm(program, tmp_path / "remote-of-straight", tmp_path / "straight", cwd=tmp_path)
    warm(program, tmp_path / "remote", tmp_path / "first", kill_at, cwd=tmp_path, code=KILLED)
    assert _run(tmp_path).latest().step == durable
    shutil.rmtree(tmp_path / "first")  # another machine
    warm(program, tmp_path / "remote", tmp_path / "second", cwd=tmp_path)
    run = _run(tmp_path)
    assert run.latest().step == last
    assert run.status().state == "completed"
    assert run.verify(deep=True).ok
    _same(tmp_path / "second", tmp_path / "straight")
