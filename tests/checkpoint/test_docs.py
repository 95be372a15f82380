"""docs/checkpoint-files.md: a checkpoint is opened as the page says, by torch alone."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from artifactsync import Run
from artifactsync.checkpoint import frozen

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(
    r"^```python\n(.*?)^```$", (ROOT / "docs" / "checkpoint-files.md").read_text("utf-8"), re.MULTILINE | re.DOTALL
)
NAMES = ["one", "divided", "safetensors"]


@pytest.mark.parametrize("kind", NAMES)
def test_every_example(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(frozen, "LEAST_BYTES", 100_000)
    assert len(BLOCKS) == len(NAMES)
    torch.manual_seed(5)
    model = torch.nn.Sequential(torch.nn.Linear(300, 300), torch.nn.Linear(300, 10))
    state = model if kind == "safetensors" else {"model": model}
    options = {"format": "safetensors"} if kind == "safetensors" else {}
    with Run("r", remote=f"file://{tmp_path}/remote", local_root=tmp_path, split_frozen=kind == "divided") as run:
        for step in (1, 2, 3):
            with torch.no_grad():
                model[1].weight += 1
            committed = run.save(state, step=step, **options).result(30)
    assert len(committed.files) == (2 if kind == "divided" else 1)
    expected = {name: float(value.double().sum()) for name, value in model.state_dict().items()}
    if kind == "divided":  # as the page says, the file alone is not all of it
        alone = torch.load(tmp_path / "r" / committed.files[0].path, weights_only=True)
        with pytest.raises(RuntimeError, match=r"Missing key.*0\.weight"):
            model.load_state_dict(alone["model"])
    program = (
        "import sys; sys.modules['artifactsync'] = None; import torch\n"
        "model = torch.nn.Sequential(torch.nn.Linear(300, 300), torch.nn.Linear(300, 10))\n"
        f"{BLOCKS[NAMES.index(kind)]}\n"
        f"assert {{n: float(v.double().sum()) for n, v in model.state_dict().items()}} == {expected}\n"
    )
    folder = tmp_path / "remote" / "r" / "checkpoints"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        check=False,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=100,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
