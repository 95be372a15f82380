"""Many invocations of the command at little cost: one process loads it, and is forked for each.

Each invocation has a process, an environment and outputs of its own, as when a user types it; only the second that
its imports take is shared. Signals, terminals and pipes are for ``conftest.Command``.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from tests.cli.conftest import TIMEOUT_S, Done

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

    from typing_extensions import Self

_SERVER = """
import json, os, sys, tempfile
import artifactsync.cli, artifactsync.run, artifactsync.stores.gcs, artifactsync.stores.s3, boto3, botocore.client
import google.cloud.storage, obstore, rich.progress, artifactsync.stores.s3_connection, artifactsync.transfer.patience
boto3.Session("k", "s").client("s3", region_name="us-east-1").close()  # loads what is loaded on first use
for line in sys.stdin:
    job = json.loads(line)
    out, err = tempfile.TemporaryFile(), tempfile.TemporaryFile()
    child = os.fork()
    if child == 0:
        os.environ.update(job["environ"])
        os.chdir(job["cwd"])
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        artifactsync.cli.main(job["arguments"])
        os._exit(99)
    status = os.waitpid(child, 0)[1]
    texts = []
    for file in (out, err):
        file.seek(0)
        texts.append(file.read().decode())
    print(json.dumps([os.waitstatus_to_exitcode(status), *texts]), flush=True)
"""


class ManyCommands:
    """The command, ready to be typed many times, in so many processes side by side.

    Args:
        cwd: Where it runs.
        environ: Of every invocation.
        count: How many run at a time.
    """

    def __init__(self, cwd: Path, environ: Mapping[str, str], count: int = 2) -> None:
        self._cwd = cwd
        self._servers = [
            subprocess.Popen(
                [sys.executable, "-c", _SERVER],
                env=dict(environ),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(count)
        ]
        self._free = list(self._servers)
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(count)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown()
        for server in self._servers:
            server.communicate(timeout=TIMEOUT_S)

    def __call__(self, invocations: Sequence[tuple[Sequence[str], Mapping[str, str]]]) -> list[Done]:
        """Run them all: what is typed, and what its environment has beside. Returns what came of each, in order."""
        return list(self._pool.map(self._run, invocations))

    def _run(self, invocation: tuple[Sequence[str], Mapping[str, str]]) -> Done:
        typed, environ = invocation
        with self._lock:
            server = self._free.pop()
        assert server.stdin is not None
        assert server.stdout is not None
        job = {"arguments": list(typed), "environ": dict(environ), "cwd": str(self._cwd)}
        server.stdin.write(json.dumps(job) + "\n")
        server.stdin.flush()
        code, out, err = json.loads(server.stdout.readline())
        with self._lock:
            self._free.append(server)
        return Done(code, out, err)
