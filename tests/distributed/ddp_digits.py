"""``tests.training.digits`` on several ranks; ``--kill-rank R --kill-at B`` kills one of them within a batch.

``--stop-rank R --stop-at B`` tells one of them to stop, by SIGTERM; -1 tells all.
"""

from __future__ import annotations

import argparse
import os
import signal
import warnings

import torch

from artifactsync import Callback
from artifactsync.errors import ArtifactSyncError
from tests.training import digits


class StopAt(Callback):
    """SIGTERM to this very process in the middle of a batch."""

    def __init__(self, batch):
        self.batch = batch

    def before_backward(self, state, logger):
        if state.timestamp.batch == self.batch:
            signal.raise_signal(signal.SIGTERM)


def main(argv=None):
    parser = argparse.ArgumentParser()
    parser.add_argument("--kill-rank", type=int)
    parser.add_argument("--only-first", action="store_true", help="not after torchrun has started it again")
    parser.add_argument("--stop-rank", type=int)
    parser.add_argument("--stop-at", type=int)
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
    is_told = own.stop_at is not None and own.stop_rank in (-1, int(os.environ["RANK"]))
    with digits.build(args, more_callbacks=[StopAt(own.stop_at)] if is_told else []) as trainer:
        trainer.fit()


if __name__ == "__main__":
    try:
        main()
    except ArtifactSyncError as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from error
