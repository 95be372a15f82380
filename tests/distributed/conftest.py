"""Launches of several ranks."""

from __future__ import annotations

import json

import pytest

from tests.distributed import ddp_digits, plain_loop
from tests.distributed.launch import Launcher


@pytest.fixture
def launcher(tmp_path):
    return Launcher(tmp_path / "out")


@pytest.fixture
def loop(tmp_path, launcher):
    """Start ``plain_loop`` on so many ranks on a host of its own; what each rank says, and the exit codes."""

    def start(world_size, host, *more, remote=None, kind="fsdp", codes=None, **options):
        out = tmp_path / f"said-{host}"
        out.mkdir(exist_ok=True)
        where = ["--remote", str(remote or tmp_path / "remote"), "--local-root", str(tmp_path / host)]
        argv = [*where, "--out", str(out), "--kind", kind, *map(str, more)]
        ended = launcher.run(plain_loop.main, argv, world_size=world_size, **options)
        assert ended == (codes or [0] * world_size), launcher.output
        return [json.loads(file.read_text()) for file in sorted(out.glob("*.json"))]

    return start


@pytest.fixture
def digits_on(tmp_path, launcher):
    """Train ``ddp_digits`` on so many ranks on a host of its own; the exit codes."""

    def start(world_size, host, *more, remote, **options):
        where = ["--remote", str(remote), "--local-root", str(tmp_path / host), "--max-duration", "2ep"]
        return launcher.run(
            ddp_digits.main, [*where, "--count", "300", *map(str, more)], world_size=world_size, **options
        )

    return start
