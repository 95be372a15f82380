"""Starts an example as a program of its own, from a fork server that has imported torch already.

Importing torch and what its optimizers import takes many times longer than these examples do.
"""

from __future__ import annotations

import os
import runpy
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch._dynamo
import torchvision.transforms.v2  # noqa: F401  (for the fork server)

from tests.warm import warm_context

_EXAMPLES = Path(__file__).parents[2] / "examples"


@dataclass
class Ended:
    returncode: int | None
    stdout: str
    stderr: str


def _main(name, arguments, environment, folder):
    for number in (1, 2):
        os.dup2(os.open(folder / f"{number}", os.O_WRONLY | os.O_CREAT), number)
    warnings.simplefilter("error")
    os.environ.update(environment)
    torch.set_num_threads(1)
    sys.argv = [name, *arguments]
    runpy.run_path(str(_EXAMPLES / name), run_name="__main__")


def run_program(name, *arguments, folder, environment=None):
    folder.mkdir(parents=True, exist_ok=True)
    process = warm_context().Process(target=_main, args=(name, list(map(str, arguments)), environment or {}, folder))
    process.start()
    process.join(100)
    return Ended(process.exitcode, (folder / "1").read_text(), (folder / "2").read_text())
