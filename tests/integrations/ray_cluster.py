"""A Ray cluster of one machine, on loopback alone, in a Python that has Ray.

Owns: the environment, starting, and the end of every process of it. Ray's defaults listen on every address, take ports
that other tests use, write below the user's home, and tell Ray's makers that they were used: none of that here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import psutil

from tests.distributed.launch import free_port

ROOT = Path(__file__).parents[2]


def make_python(folder):
    """A Python with Ray beside everything of this one's: torch is not installed twice."""
    subprocess.run([sys.executable, "-m", "uv", "venv", "-q", "--python", sys.executable, folder], check=True)
    python = folder / "bin" / "python"
    subprocess.run([sys.executable, "-m", "uv", "pip", "install", "-q", "--python", python, "ray[train]"], check=True)
    site = next(folder.glob("lib/python3*/site-packages"))
    (site / "beside.pth").write_text(f"{sysconfig.get_path('purelib')}\n{ROOT}\n")
    return python


class RayCluster:
    """Two CPUs, one for each worker.

    Args:
        python: One with Ray.
        folder: A home and local root of its own: another machine, as far as a run can tell.
        environment: What the workers shall find in theirs.
    """

    def __init__(self, python, folder, **environment):
        self.port, self.python = free_port(), python
        self.folder = folder
        self.folder.mkdir()
        self.environment = {
            **os.environ,
            "HOME": str(folder),
            "ARTIFACTSYNC_LOCAL_ROOT": str(folder / "runs"),
            "OMP_NUM_THREADS": "1",
            "RAY_ADDRESS": f"127.0.0.1:{self.port}",
            "RAY_AUTH_MODE": "disabled",
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # else it puts this machine's address for 127.0.0.1
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_memory_monitor_refresh_ms": "0",  # it kills workers on a machine whose memory others use
            "RAY_raylet_start_wait_time_s": "300",  # the default, 40 s, is too short for a busy machine
            "RAY_worker_register_timeout_seconds": "300",
            **environment,
        }
        self._processes = []

    def __enter__(self):
        self._temporary = tempfile.mkdtemp(prefix="ray-")  # the path of a Unix socket below it has at most 107 letters
        command = [
            self.python.with_name("ray"), "start", "--head", "--block", "--node-ip-address=127.0.0.1",
            f"--port={self.port}", "--min-worker-port=0", "--max-worker-port=0",
            f"--ray-client-server-port={free_port()}", f"--dashboard-port={free_port()}",
            f"--dashboard-agent-listen-port={free_port()}", "--include-dashboard=false", "--include-log-monitor=false",
            "--num-cpus=2", "--object-store-memory=100000000", f"--temp-dir={self._temporary}", "--disable-usage-stats",
        ]  # fmt: skip
        head = self._start(command)
        said = []
        for line in head.stdout:
            said.append(line)
            if "Ray runtime started" in line:
                return self
        raise AssertionError("".join(said))

    def train(self, *words):
        """Start a driver; it is ended with the cluster."""
        return self._start([self.python, "-m", "tests.integrations.ray_program", *map(str, words)])

    def kill(self):
        """SIGKILL to every process, all at once, as far as that is possible."""
        tree = [psutil.Process(each.pid) for each in self._processes if each.poll() is None]
        tree += [child for process in tree for child in process.children(recursive=True)]
        for process in tree:
            process.kill()
        left = psutil.wait_procs(tree, timeout=60)[1]
        assert not left
        for process in self._processes:
            process.wait()
            process.stdout.close()
        self._processes = []

    def _start(self, command):
        process = subprocess.Popen(
            command, env=self.environment, cwd=self.folder, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self._processes.append(process)
        return process

    def __exit__(self, *_):
        try:
            self.kill()
        finally:
            shutil.rmtree(self._temporary, ignore_errors=True)
