"""`make demo`, as README shows it."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tests.docs.blocks import ROOT, blocks
from tests.docs.session import pattern, shape


@pytest.mark.crash
@pytest.mark.timeout(600)  # it imports torch four times
def test_the_demo_prints_what_the_readme_shows(tmp_path):
    (shown,) = (block.text for block in blocks("README.md") if block.text.startswith("$ make demo"))
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "demo.py"],
        cwd=tmp_path, env={**os.environ, "NO_COLOR": "1", "COLUMNS": "100"}, capture_output=True, text=True, check=True,
    )  # fmt: skip

    def plain(text):  # the name is made up anew each time
        return re.sub(r"\d{10}-[a-z]+-[a-z]+", "NAME", text)

    assert re.fullmatch(pattern(plain(shown.partition("\n")[2])), shape(plain(done.stdout)))
