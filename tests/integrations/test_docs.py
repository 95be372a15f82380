"""The pages of the frameworks: every block, as it stands there, and what it leaves in the bucket."""

from __future__ import annotations

import ast

from artifactsync import Run
from artifactsync.integrations.distributed import DistributedCheckpoints
from tests.docs.blocks import ROOT, blocks

BEFORE = """
import warnings, torch
warnings.simplefilter("ignore")
from tests.integrations.programs import *
from tests.integrations.programs import _data, _net, _Model
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


PAGES = {
    "lightning": "lightning.md",
    "transformers": "huggingface.md",
    "accelerate": "huggingface.md",
    "distributed": "dcp.md",
    "loop": "loop.md",
    "files": "files.md",
}


def test_every_block_of_the_pages(warm, tmp_path):
    found = [b.text for page in dict.fromkeys(PAGES.values()) for b in blocks(f"docs/frameworks/{page}")]
    by_kind = dict(zip(PAGES, found, strict=True))
    files = by_kind.pop("files")
    for kind, block in by_kind.items():
        assert 'remote="s3://bucket/runs"' in block
        folder = tmp_path / kind
        folder.mkdir()
        remote = str(folder / "bucket")
        warm(BEFORE + PREPARING.get(kind, "") + block.replace("s3://bucket/runs", remote), cwd=folder)
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
    written = [ast.parse(block.text) for block in blocks("docs/from-composer.md") if block.language == "python"]
    assert len(written) == 2
    for tree in written:
        imported = {a.name for node in tree.body if isinstance(node, ast.ImportFrom) for a in node.names}
        assert imported
        assert imported <= classes
