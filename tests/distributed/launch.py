"""Ranks of one launch as processes of one machine, without the seconds that torchrun and imports take.

A fork server that has imported torch starts them, with the environment that torchrun gives. As torchrun does, it ends
the other ranks when one has failed. ``tests/distributed/test_torchrun.py`` uses the real one.
"""

from __future__ import annotations

import multiprocessing.connection
import os
import signal
import socket
import sys
import time
import traceback
import uuid
from pathlib import Path

from tests.warm import warm_context


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def _run(target, argv, environment, log):
    with Path(log).open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(environment)
    try:
        target(argv)
    except BaseException:  # noqa: BLE001  (told in its log)
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)  # a rank that failed does not wait for its threads: torchrun would kill them


class Launcher:
    """Starts launches one after the other.

    Args:
        folder: Where each rank's output goes.
    """

    def __init__(self, folder):
        self.folder = folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self._context = warm_context()
        self.launches = 0

    def run(self, target, argv, *, world_size, limit_s=120.0, grace_s=20.0, environment=None):
        """Run ``target(argv)`` on so many ranks; the exit code of each."""
        self.launches += 1
        name = f"{self.launches}-{uuid.uuid4().hex[:6]}"
        common = {
            "WORLD_SIZE": str(world_size),
            "LOCAL_WORLD_SIZE": str(world_size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
            "TORCHELASTIC_RUN_ID": name,
            **(environment or {}),
        }
        if world_size == 1:
            common = dict(environment or {})
        ranks = []
        for rank in range(world_size):
            own = {**common, **({"RANK": str(rank), "LOCAL_RANK": str(rank)} if world_size > 1 else {})}
            log = self.folder / f"{name}-rank{rank}.txt"
            ranks.append(self._context.Process(target=_run, args=(target, list(argv), own, str(log))))
        for rank in ranks:
            rank.start()
        try:
            self._watch(ranks, time.monotonic() + limit_s, grace_s)
        finally:
            for rank in ranks:
                if rank.is_alive():
                    rank.kill()
                rank.join()
        self.output = "\n".join(path.read_text(errors="replace") for path in sorted(self.folder.glob(f"{name}-*")))
        return [rank.exitcode for rank in ranks]

    @staticmethod
    def _watch(ranks, limit, grace_s):
        while any(rank.is_alive() for rank in ranks) and time.monotonic() < limit:
            multiprocessing.connection.wait([rank.sentinel for rank in ranks if rank.is_alive()], timeout=0.5)
            if any(rank.exitcode not in (None, 0) for rank in ranks):
                break
        kill_at = time.monotonic() + grace_s
        for rank in ranks:
            if rank.is_alive():
                os.kill(rank.pid, signal.SIGTERM)
        for rank in ranks:
            rank.join(max(0.0, kill_at - time.monotonic()))
