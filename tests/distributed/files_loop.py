"""Two ranks that know nothing of torch: each saves a file of its own, and both are one checkpoint."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from artifactsync import Run


def main(argv=None):
    parser = argparse.ArgumentParser()
    parser.add_argument("--remote", required=True)
    parser.add_argument("--local-root", required=True)
    parser.add_argument("--out", required=True)
    args = parser.parse_args(argv)
    rank = os.environ["RANK"]
    with Run("files", remote=args.remote, local_root=args.local_root) as run:
        for step in (1, 2, 3):
            file = run.local_dir / f"part{rank}-{step}.bin"
            file.write_bytes(rank.encode() * 1000 * step)
            pending = run.save_files([file], step=step)
        found = [file.path for file in pending.result(60).files]
        Path(args.out, f"rank{rank}.json").write_text(json.dumps([run.attempt, found]))
