"""A reader at work: the blocks of a page one after the other, in one folder, with one environment.

Python blocks are children of the fork server that has torch in it; shell blocks are run by bash as they stand.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

from tests.docs.blocks import ROOT
from tests.warm import warm_context

_TIMEOUT_S = 200


class Session:
    """An empty folder with what a clone has beside its pages, and a shell.

    Args:
        folder: Where the blocks run.
        environment: What is set besides.
        moved: What stands in the blocks → what is used instead: addresses of clouds.
    """

    def __init__(self, folder, environment, moved):
        self.folder = folder / "work"
        self.folder.mkdir()
        for name in ("examples", "localstack", "README.md"):
            (self.folder / name).symlink_to(ROOT / name)
        self._moved = moved
        self._exports = folder / "exports"
        self._exports.touch()
        self._environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "COLUMNS": "100",
            "NO_COLOR": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONIOENCODING": "utf-8",
            "WANDB_MODE": "offline",
            "WANDB_ERROR_REPORTING": "false",
            **environment,
        }

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if (self.folder / ".cloud").exists():  # a block has started servers
            self.shell("python localstack/cloud.py down")

    def program(self, text, before=""):
        """Run a Python block as a program; returns what it printed."""
        exported = self.shell("env -0").split("\0")
        environment = dict(line.split("=", 1) for line in exported if "=" in line)
        output = self.folder.parent / "output"
        code = before + self._move(text)
        process = warm_context().Process(target=_main, args=(code, environment, self.folder, output))
        process.start()
        process.join(_TIMEOUT_S)
        printed = output.read_text(encoding="utf-8")
        assert process.exitcode == 0, f"{code}\n{printed}"
        return printed

    def shell(self, text):
        """Run a shell block; what it exports stays."""
        script = f'. "{self._exports}"\n{self._move(text)}\nexport -p > "{self._exports}"\n'
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=self.folder,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            timeout=_TIMEOUT_S,
            check=False,
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}"
        return done.stdout

    def console(self, text):
        """Type the commands, and compare what they print with what the block shows."""
        parts = re.split(r"^\$ (.+)\n", text, flags=re.MULTILINE)
        assert parts[0] == "", "a session begins with `$ `"
        for command, expected in zip(parts[1::2], parts[2::2], strict=True):
            printed = self.shell(command)
            if expected.strip():
                assert re.fullmatch(pattern(expected), shape(printed)), f"$ {command}\n{printed}"

    def _move(self, text):
        for old, new in self._moved.items():
            text = text.replace(old, new)
        return text


def shape(text):
    """Output without what differs from run to run and machine to machine: times, sizes, how wide columns are."""
    text = re.sub(r"\b\d+(\.\d+)? ([KMG]i)?B\b", "SIZE", text)
    text = re.sub(r"127\.0\.0\.1:\d+", "HOST", text)
    text = re.sub(r"in \d+(\.\d+)? m?s", "in T", text)
    text = re.sub(r"\b(just now|\d+ ?\w+ ago)", "AGE", text)
    return "\n".join(re.sub(r"\s+", " ", line).strip() for line in text.splitlines() if line.strip())


def pattern(expected):
    """The regular expression of an output, in which `…` stands for anything, other lines too."""
    return "(?s:.*?)".join(re.escape(part) for part in shape(expected).split("…"))


def _main(code, environment, folder, output):
    for number in (1, 2):
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND | (os.O_TRUNC if number == 1 else 0)), number)
    warnings.simplefilter("error")
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    exec(compile(code, "block", "exec"), {"__name__": "__main__"})
