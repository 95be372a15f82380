"""docs/spot.md as a newcomer types it: its shell blocks, one after the other, in one shell and an empty folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from artifactsync import Run

ROOT = Path(__file__).parents[2]


def _shell(script, folder):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.timeout(600)  # it imports torch three times, one after the other
def test_every_block_works_as_typed(tmp_path):
    text = (ROOT / "docs" / "spot.md").read_text(encoding="utf-8")
    ((name, program),) = re.findall(r'^```python title="(\S+)"\n(.*?)^```$', text, re.MULTILINE | re.DOTALL)
    blocks = re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) + 2 == len(re.findall(r"^```\w", text, re.MULTILINE))  # and one line of pip
    (tmp_path / name).write_text(program)
    done = _shell("\n".join(blocks), tmp_path)
    assert done.returncode == 0, done.stderr + done.stdout
    first, second = ((tmp_path / log).read_text().splitlines() for log in ("first.log", "second.log"))
    assert "stopped" in done.stdout
    assert first[-1].endswith("SIGTERM"), first[-3:]
    stopped_at = int(re.search(r"stopped at step (\d+)", first[-1])[1])
    assert 50 <= stopped_at < 200
    assert second[0] == f"step {stopped_at + 1}"
    straight = _shell(f"ARTIFACTSYNC_REMOTE=bucket ARTIFACTSYNC_RUN_NAME=straight python {name}", tmp_path)
    assert straight.stdout.splitlines()[-1] == second[-1]
    assert second[-1].startswith("done: ")
    run = Run("spot-1", remote=tmp_path / "bucket", read_only=True)
    assert (run.status().attempt, run.status().state) == (2, "completed")
    assert (tmp_path / "bucket" / "untouched" / "weights.txt").read_text() == "1"


def test_every_file_that_it_names_is_there():
    text = (ROOT / "docs" / "spot.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#]+)\)", text)
    assert len(links) > 8
    for link in links:
        assert (ROOT / "docs" / link).exists(), link
