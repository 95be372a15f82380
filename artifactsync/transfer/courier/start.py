"""Starting the process beside the training.

Owns: whether there may be one, and its first instructions. Does not own: when it is started (``courier``), what it does
(``process``).

Invariants: it is nobody's child, as a program that waits for all of its children must not wait for this one; no module
in the working folder takes a library's name in it; its command line holds no secret.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

READY_S = 120.0
"""Seconds until it must be ready: idle-class, beside a training that takes every core, it may take long to begin."""
_BEGIN = """import os, sys
if os.fork():
    os._exit(0)
if {polite}:
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
sys.path[:] = {module_path!r}
from artifactsync.transfer.courier.process import main
main({fd}, {pid})"""
_PYTHON = re.compile(r"(python|pypy)[0-9.]*t?d?(-[a-z]+)?")

_is_forbidden = False


def forbid_courier() -> None:
    """Have none in this process: nothing trains in it."""
    global _is_forbidden  # noqa: PLW0603 it is the process's
    _is_forbidden = True


def can_be() -> bool:
    """Whether this process may have another one beside it."""
    if _is_forbidden or not sys.platform.startswith("linux"):
        return False
    if getattr(sys, "frozen", False) or not _PYTHON.fullmatch(Path(sys.executable or "").name):
        return False  # a program with Python inside: started again it would be that program again
    return os.environ.get("ARTIFACTSYNC_COURIER", "1") != "0"


def spawn(fd: int, *, polite: bool) -> None:
    """Start it; returns at once.

    Args:
        fd: Its end of the control socket.
        polite: Whether it begins idle-class.

    Raises:
        OSError, subprocess.TimeoutExpired: it could not be started.
    """
    module_path = [entry for entry in sys.path if isinstance(entry, str)]
    code = _BEGIN.format(polite=polite, module_path=module_path, fd=fd, pid=os.getpid())
    subprocess.run(  # noqa: S603 - this very interpreter, isolated until it has this process's path
        [sys.executable, "-I", "-c", code, "artifactsync-courier"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,  # what it has to say goes through its socket
        pass_fds=[fd],
        start_new_session=True,  # Ctrl-C, and a scheduler's signal to the group, are the training's to answer
        check=False,
        timeout=READY_S,
    )
