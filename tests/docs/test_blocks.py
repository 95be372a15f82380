"""Every code block of README and docs is run, or says why not and is at least well formed."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys

import pytest

from artifactsync.naming.configuration import find_configuration
from tests.docs.blocks import ROOT, all_blocks, blocks, pages
from tests.docs.session import Session, pattern, shape

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# Pages whose blocks another test runs, all of them, and looks at what comes out.
RUN_ELSEWHERE = {
    "docs/spot.md": "tests/batch/test_spot_guide.py::test_every_block_works_as_typed",
    "docs/frameworks/lightning.md": "tests/integrations/test_docs.py::test_every_block_of_the_pages",
    "docs/frameworks/huggingface.md": "tests/integrations/test_docs.py::test_every_block_of_the_pages",
    "docs/frameworks/dcp.md": "tests/integrations/test_docs.py::test_every_block_of_the_pages",
    "docs/frameworks/loop.md": "tests/integrations/test_docs.py::test_every_block_of_the_pages",
    "docs/frameworks/files.md": "tests/integrations/test_docs.py::test_every_block_of_the_pages",
}

_COMPOSER = "Composer wants torch 2.7; `make crash` runs both classes, tests/integrations/test_composer.py"
_EIGHT = "eight processes that train; tests/supervisor runs torchrun so with two"
_PIP = "it installs from a package registry; that the extras exist is checked"
# What is not run, and why: the page's own words. A new one is looked at twice, here.
NOT_RUN = {
    "CONTRIBUTING.md": ["`make test` runs this very test"],
    "README.md": [
        _PIP,
        "it takes a minute; `make crash` runs it, tests/docs/test_demo.py",
        _EIGHT,
    ],
    "docs/batch.md": [_EIGHT],
    "docs/distributed.md": ["eight processes that train; tests/distributed/test_launch.py runs torchrun with two"],
    "docs/frameworks/ray.md": [
        "Ray is in an environment of its own; `make crash` runs the whole program, tests/integrations/test_ray.py",
        "Ray is in an environment of its own; `make crash` runs it too, tests/integrations/ray_program.py",
    ],
    "docs/from-composer.md": [_COMPOSER, _COMPOSER],
    "docs/loggers.md": ["tensorboard serves until somebody stops it"],
    "docs/quickstart.md": [_PIP],
    "docs/schedulers.md": [
        "it needs a Slurm cluster; tests/batch/test_slurm.py runs the same script on one of its own",
        "it needs an AWS account; the definition is checked against Batch's own model",
        "it needs a Google Cloud project; the job is checked against Batch's own message",
        "it needs a cluster; the file is checked against Kubernetes' own schemas",
        "it needs a cloud account and SkyPilot",
        "it needs a Ray cluster; `make crash` runs the program on one of its own, tests/integrations/test_ray.py",
    ],
    "docs/spot.md": [_PIP],
    "docs/ui.md": ["it serves until somebody stops it; tests/ui runs the same command"],
    "localstack/README.md": [_PIP],
}

_TRAINING = """
import torch
from artifactsync import *
torch.manual_seed(0)
class Model(torch.nn.Linear):
    def forward(self, batch):
        return super().forward(batch[0] if isinstance(batch, list) else batch)
    def loss(self, outputs, batch):
        return torch.nn.functional.cross_entropy(outputs, batch[1])
model = Model(4, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
data = [(torch.randn(4), torch.tensor(i % 2)) for i in range(8)]
train_dataloader = torch.utils.data.DataLoader(data, batch_size=4)
state = {"model": model}
"""
# What the text says that its reader has already, put before each Python block.
BEFORE = {
    "README.md": _TRAINING,
    "docs/batch.md": _TRAINING,
    "docs/checkpoint-files.md": """
import torch
from safetensors.torch import save_file
model = torch.nn.Linear(4, 2)
torch.save({"model": model.state_dict()}, "ep0-ba3-rank0.pt")
save_file(model.state_dict(), "ep0-ba3-rank0.safetensors")
""",
    "docs/loggers.md": _TRAINING,
    "docs/distributed.md": _TRAINING
    + """
import os, artifactsync
from artifactsync.checkpoint import RngState
os.environ.update(RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0", ARTIFACTSYNC_LAUNCH_ID="1")
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
loader_state, step = {"position": 0}, 1
""",
}
# What lies in the bucket before a page begins.
PREPARED = {
    "docs/from-composer.md": """
import pathlib, torch
folder = pathlib.Path("my-bucket/runs/my-run")
folder.mkdir(parents=True)
for batch in (10, 20):
    torch.save({"state": {"model": {}}}, folder / f"ep1-ba{batch}-rank0.pt")
"""
}
_LOCAL = {"s3://my-bucket/runs": "my-bucket/runs"}
_CLOUDS = {"s3://bucket/runs": "s3", "gs://bucket/runs": "gcs", "az://bucket/runs": "az"}
_TO_RUN = {"python", "sh", "bash", "console"}


def _pages_to_run():
    wanted = [page for page in pages() if page not in RUN_ELSEWHERE]
    return [page for page in wanted if any(b.language in _TO_RUN and not b.not_run for b in blocks(page))]


@pytest.mark.timeout(600)  # it imports torch several times, one after the other; Azurite may have to be installed
@pytest.mark.parametrize("page", _pages_to_run())
def test_every_block_of_a_page(page, request, tmp_path):
    moved, environment = dict(_LOCAL), {}
    to_run = [block for block in blocks(page) if not block.not_run]
    for url, fixture in _CLOUDS.items():
        if any(url in block.text for block in to_run):
            cloud = request.getfixturevalue(fixture)
            moved[url] = cloud.fresh_url()
            environment |= cloud.environment
    with Session(tmp_path, environment, moved) as session:
        if page in PREPARED:
            session.program(PREPARED[page])
        for block in to_run:
            if block.title:
                (session.folder / block.title).write_text(block.text, encoding="utf-8")
            elif block.language == "python":
                session.program(block.text, BEFORE.get(page, ""))
            elif block.language == "console":
                session.console(block.text)
            elif block.language in _TO_RUN:
                session.shell(block.text)


def test_what_is_not_run_says_why():
    found = {}
    for block in all_blocks():
        if block.not_run:
            found.setdefault(block.page, []).append(block.not_run)
    assert found == NOT_RUN


def test_what_runs_elsewhere_does():
    for page, test in RUN_ELSEWHERE.items():
        path, _, name = test.partition("::")
        source = (ROOT / path).read_text(encoding="utf-8")
        assert f"def {name}(" in source
        assert page.rpartition("/")[2] in source, page


@pytest.mark.parametrize("block", all_blocks(), ids=str)
def test_a_block_is_well_formed(block, tmp_path):
    match block.language:
        case "python":
            ast.parse(block.text)
        case "json":
            json.loads(block.text)
        case "toml":
            tomllib.loads(block.text)
            (tmp_path / "pyproject.toml").write_text(block.text)
            (tmp_path / (block.title or "pyproject.toml")).write_text(block.text)
            assert find_configuration(tmp_path).source, "no setting of artifactsync is in it"
        case "sh" | "bash" | "console":
            typed = re.findall(r"^\$ (.+)$", block.text, re.MULTILINE) if block.language == "console" else [block.text]
            assert typed
            done = subprocess.run(["bash", "-n"], input="\n".join(typed), capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
        case "text":
            assert block.text.strip()
        case other:
            pytest.fail(f"{block}: what is {other!r}? Output and drawings are `text`")


def test_the_first_page_of_the_site_shows_what_the_readme_shows():
    readme, home = blocks("README.md"), blocks("docs/index.md")
    assert home[0].text == readme[0].text
    assert readme[1].text.startswith(home[1].text)


def test_an_output_is_compared():
    shown = "RUN  STATE  AGE\na  …  just now\n"
    assert re.fullmatch(pattern(shown), shape("RUN   STATE  AGE\na    failed   3 s ago\n"))
    assert not re.fullmatch(pattern(shown), shape("RUN   STATE  AGE\nb    failed   3 s ago\n"))
