"""A Slurm of one node on this machine: the real controller, node daemon and commands, on loopback, without systemd."""

from __future__ import annotations

import contextlib
import os
import pwd
import socket
import subprocess
import sys
import time
from pathlib import Path

import programs

_CONFIGURATION = """\
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
PluginDir={plugins}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/linear
SchedulerType=sched/builtin
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
KillWait=90
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=node NodeHostname={host} NodeAddr=127.0.0.1 Port={node_port} CPUs=1 State=UNKNOWN
PartitionName=spot Nodes=node Default=YES PriorityTier=1 GraceTime=20 MaxTime=INFINITE
PartitionName=sudden Nodes=node PriorityTier=1 GraceTime=0 MaxTime=INFINITE
PartitionName=urgent Nodes=node PriorityTier=9 PreemptMode=OFF MaxTime=INFINITE
"""


class SlurmCluster:
    """Started when entered; everything of it lies below one folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        root = programs.slurm()
        libraries = root / "usr" / "lib" / f"{os.uname().machine}-linux-gnu"
        self._programs = {path.name.removesuffix("-wlm"): path for path in (root / "usr").glob("*bin/*")}
        self._user = pwd.getpwuid(os.getuid()).pw_name
        (folder / "state").mkdir()
        (folder / "spool").mkdir()
        self._configuration = folder / "slurm.conf"
        self._settings = {
            "host": socket.gethostname().partition(".")[0],
            "controller_port": _free_port(),
            "node_port": _free_port(),
            "user": self._user,
            "plugins": libraries / "slurm-wlm",
            "folder": folder,
        }
        self._configuration.write_text(_CONFIGURATION.format(**self._settings))
        paths = [folder / "bin", Path(sys.executable).parent]
        self.environment = {
            **os.environ,
            "SLURM_CONF": str(self._configuration),
            "LD_LIBRARY_PATH": f"{libraries / 'slurm-wlm'}:{libraries}:{root / 'lib' / libraries.name}",
            "PATH": os.pathsep.join([*map(str, paths), os.environ["PATH"]]),
        }
        (folder / "bin").mkdir()
        for name in ("srun", "scontrol", "sbatch"):  # for the job's own script
            (folder / "bin" / name).symlink_to(self._programs[name])
        self._daemons = []

    def __enter__(self):
        try:
            self._start("slurmctld", "-D", "-i")
            self._start("slurmd", "-D", "-N", "node", "-d", self._programs["slurmstepd"])
            self._wait(
                lambda: self.command("sinfo", "-h", "-o", "%T", check=False).split()[:1] == ["idle"], "an idle node"
            )
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for daemon in reversed(self._daemons):  # the controller last
            daemon.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(20)
            daemon.kill()
            daemon.wait()

    def command(self, name, *arguments, check=True, cwd=None):
        done = subprocess.run(
            [str(self._programs[name]), *map(str, arguments)],
            env=self.environment,
            cwd=cwd,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert not check or done.returncode == 0, (name, arguments, done.stderr, self.log())
        return done.stdout

    def submit(self, script, *arguments, options=(), folder):
        """The new job's number."""
        folder.mkdir(exist_ok=True)
        return self.command("sbatch", "--parsable", *options, script, *arguments, cwd=folder).strip()

    def state(self, job):
        told = self.command("scontrol", "show", "job", job)
        return told.partition("JobState=")[2].split()[0]

    def wait_for_state(self, job, state, timeout_s=100):
        self._wait(lambda: self.state(job) == state, f"job {job} to be {state}", timeout_s)

    def wait_for_file(self, path, timeout_s=100):
        self._wait(path.exists, f"{path.name}", timeout_s)

    def wait_for_text(self, path, text):
        self._wait(lambda: path.exists() and text in path.read_text(errors="replace"), f"{text!r} in {path.name}")

    def wait_until_idle(self):
        self._wait(lambda: self.command("sinfo", "-h", "-o", "%T", check=False).split()[:1] == ["idle"], "an idle node")

    def start_at_once(self, job):
        """A requeued job is held back for two minutes."""
        self.wait_for_state(job, "PENDING")  # it may take all of KillWait to end first
        self.command(
            "scontrol", "update", f"jobid={job}", "StartTime=now+3"
        )  # a node starts no job in the second in which it ended it

    def log(self):
        return "".join(path.read_text(errors="replace")[-3000:] for path in self.folder.glob("*.log"))

    def _start(self, name, *arguments):
        with (self.folder / f"{name}.out").open("w") as out:
            command = [str(self._programs[name]), *map(str, arguments)]
            self._daemons.append(subprocess.Popen(command, env=self.environment, stdout=out, stderr=out))

    def _wait(self, condition, what, timeout_s=30):
        give_up_at = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < give_up_at, (f"waited for {what}", self.log())
            assert all(daemon.poll() is None for daemon in self._daemons), (what, self.log())
            time.sleep(0.1)


def _free_port():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]
