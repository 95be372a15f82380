"""docs/integrations.md and docs/from-composer.md: every block, as it stands there."""

from __future__ import annotations

import ast
import re
import shlex

from artifactsync import Run
from artifactsync.cli import application
from artifactsync.integrations.distributed import DistributedCheckpoints
from tests.integrations.conftest import ROOT

BEFORE = """
import warnings, torch
warnings.simplefilter("ignore")
from tests.integrations.programs import *
from tests.integrations.programs import _data, _net, _Model
REMOTE = {remote!r}
torch.manual_seed(5)
loader = DataLoader(_data(), batch_size=8)
module = Digits()
model = _net()
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
dataset = [dict(inputs=a, labels=b) for a, b in _data()]
def train_one_step(model, optimizer):
    for inputs, labels in loader:
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        break
"""
PREPARING = {"transformers": "model = _Model(None, None)\n"}
STEPS = {"lightning": [4, 8], "transformers": [4, 8], "accelerate": list(range(1, 9)), "distributed": [1],
         "loop": list(range(1, 9))}  # fmt: skip


def _blocks(page, language="python"):
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return dict(re.findall(rf"^```{language} ?(\S*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))


def test_every_block_of_the_page(warm, tmp_path):
    blocks = _blocks("integrations.md")
    files = blocks.pop("files")
    assert blocks.keys() == STEPS.keys()
    for kind, block in blocks.items():
        folder = tmp_path / kind
        folder.mkdir()
        remote = str(folder / "bucket")
        warm(BEFORE.format(remote=remote) + PREPARING.get(kind, "") + block, cwd=folder)
        assert [c.step for c in Run("digits", remote=remote, read_only=True).checkpoints()] == STEPS[kind], kind
    table = tmp_path / "loss.csv"
    table.write_text("step,loss\n1,0.5\n")
    with Run("digits", remote=remote, read_only=True) as run:  # the loop's
        run.push(table, "tables/loss.csv").result()
    done = warm(files, cwd=tmp_path, env={"ARTIFACTSYNC_REMOTE": remote})
    assert "digits/checkpoints/ep0-ba8-rank0.pt" in done.output


def test_shards_are_found_again(tmp_path):
    import torch  # noqa: PLC0415 - the page above needs none in this process

    state = {"w": torch.arange(4.0)}
    sync = DistributedCheckpoints("r", remote=tmp_path / "bucket", local_root=tmp_path / "a")
    assert sync.load(state) == 0
    sync.save(state, step=3)
    sync.close()
    found = {"w": torch.zeros(4)}
    again = DistributedCheckpoints("r", remote=tmp_path / "bucket", local_root=tmp_path / "b")
    assert again.load(found) == 3
    assert found["w"].tolist() == [0, 1, 2, 3]
    again.close()


def test_the_guide_from_composer_names_what_there_is():
    source = ast.parse((ROOT / "artifactsync/integrations/composer.py").read_text(encoding="utf-8"))
    classes = {node.name for node in source.body if isinstance(node, ast.ClassDef)}
    for block in _blocks("from-composer.md").values():
        imported = {a.name for node in ast.parse(block).body if isinstance(node, ast.ImportFrom) for a in node.names}
        assert imported
        assert imported <= classes
    commands = [shlex.split(line)[4] for line in _blocks("from-composer.md", "console")[""].splitlines()]
    assert commands == ["adopt", "adopt", "verify", "pull"]
    assert set(commands) <= application.cli.commands.keys()
