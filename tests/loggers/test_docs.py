"""docs/loggers.md: every logger that it shows, in the loop that it shows."""

from __future__ import annotations

import re

from tests.loggers.test_resume import ROOT, _start


def test_every_example(tmp_path):
    text = (ROOT / "docs" / "loggers.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    (loop,) = (block for block in blocks if "with Run(" in block)
    shown = [line for block in blocks for line in block.splitlines() if re.match(r"\w+Logger\(", line)]
    assert len(shown) == 6
    program = loop.replace("[FileLogger()]", "[" + ", ".join(shown) + "]")
    assert program != loop
    tmp_path.joinpath("example.py").write_text("from artifactsync import *\n" + program, encoding="utf-8")
    done = _start("run_example", str(tmp_path / "example.py"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "bucket" / "mnist-3"
    for pattern in ("logs-rank0.txt", "tensorboard/mnist-3/*", "wandb/*/*.wandb", "comet/*.zip", "mlflow/mlflow.db"):
        assert list(run.glob(pattern)), pattern
    assert (run / "logs-rank0.txt").read_text().count("[metric]") == 10
    assert "[ba 10] loss 0.1" in done.stderr
