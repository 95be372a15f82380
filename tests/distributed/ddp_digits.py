"""``tests.training.digits`` on several ranks; ``--kill-rank R --kill-at B`` kills one of them within a batch."""

from __future__ import annotations

import argparse
import os
import warnings

import torch

from artifactsync.errors import ArtifactSyncError
from tests.training import digits


def main(argv=None):
    parser = argparse.ArgumentParser()
    parser.add_argument("--kill-rank", type=int)
    parser.add_argument("--only-first", action="store_true", help="not after torchrun has started it again")
    own, rest = parser.parse_known_args(argv)
    args = digits.arguments(rest)
    if own.kill_rank is not None and own.kill_rank != int(os.environ["RANK"]):
        args.kill_at = None
    if own.only_first and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0":
        args.kill_at = None
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", message=".*fork", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module="torch")
    torch.set_num_threads(1)
    with digits.build(args) as trainer:
        trainer.fit()


if __name__ == "__main__":
    try:
        main()
    except ArtifactSyncError as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from error
