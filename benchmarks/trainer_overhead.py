"""What the Trainer adds to a step: the same model and batches in a bare loop and in ``Trainer.fit``, taking turns.

The bare loop is what one writes by hand: ``zero_grad``, forward, loss, backward, ``step``. The model is chosen so that
a bare step takes about ``STEP_S`` here. The Trainer has what it has by default, with a remote folder: its metrics file
too; checkpoints are not among it, as ``uploader_cost`` measures these.

Batches of one form follow those of the other within a process, in blocks, so that what else the machine does meets
both; an epoch has ten blocks, and what its end costs is in the block it falls into. The figure is the median over all
pairs of blocks, by the wall clock; beside it stand the ratio of all blocks together, epochs' ends included, and the
same by the CPU time of the training thread, which a busy machine disturbs less, and which does not see what other
threads take from it.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

from artifactsync import Callback, Trainer
from benchmarks.report import save, show

STEP_S = 0.005
BLOCK_STEPS = 20
BLOCKS = 60
BLOCKS_OF_AN_EPOCH = 10
BAR = 1.02
_BATCH = 64


def _model(width: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(256, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))


class _Bare:
    """The loop by hand, a block at a time."""

    def __init__(self, width: int, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        self.model = _model(width)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01)
        self.loss_fn = nn.CrossEntropyLoss()
        self.batches = batches

    def block_s(self) -> tuple[float, float]:
        """Train on every batch once; wall seconds, and CPU seconds of this thread."""
        began = _clocks()
        for inputs, targets in self.batches:
            self.optimizer.zero_grad(set_to_none=True)
            loss = self.loss_fn(self.model(inputs), targets)
            loss.backward()
            self.optimizer.step()
        return _since(began)


class _Turns(Callback):
    """After each of the Trainer's blocks, one of the bare loop; its time is not the Trainer's."""

    def __init__(self, bare: _Bare) -> None:
        self.bare = bare
        self.pairs: list[tuple[tuple[float, float], tuple[float, float]]] = []  # the Trainer's, the bare loop's
        self.began = (0.0, 0.0)
        self.steps = 0

    def fit_start(self, state: object, logger: object) -> None:  # noqa: ARG002  (as for every callback)
        self.began = _clocks()

    def batch_start(self, state: object, logger: object) -> None:  # noqa: ARG002  (as for every callback)
        """The end of an epoch is before the next one's first batch: it is in the block before."""
        self.steps += 1
        if self.steps % BLOCK_STEPS != 1 or self.steps == 1:
            return
        ours = _since(self.began)
        self.pairs.append((ours, self.bare.block_s()))
        self.began = _clocks()


def _clocks() -> tuple[float, float]:
    return time.perf_counter(), time.thread_time()


def _since(began: tuple[float, float]) -> tuple[float, float]:
    now = _clocks()
    return now[0] - began[0], now[1] - began[1]


def _width_for(step_s: float, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> int:
    """The width at which a bare step takes at least so long."""
    width = 128
    while True:
        bare = _Bare(width, batches)
        bare.block_s()
        if statistics.median(bare.block_s()[1] for _ in range(3)) / len(batches) >= step_s:
            return width
        width = int(width * 1.2)


def measure() -> None:
    """Take turns; print and save."""
    torch.set_num_threads(1)
    torch.manual_seed(1)
    batches = [(torch.randn(_BATCH, 256), torch.randint(0, 10, (_BATCH,))) for _ in range(BLOCK_STEPS)]
    width = _width_for(STEP_S, batches)
    turns = _Turns(_Bare(width, batches))
    model = _model(width)
    with (
        tempfile.TemporaryDirectory() as folder,
        Trainer(
            model,
            batches * BLOCKS_OF_AN_EPOCH,
            optimizers=torch.optim.SGD(model.parameters(), lr=0.01),
            loss_fn=nn.CrossEntropyLoss(),
            max_duration=f"{(BLOCKS + 2) * BLOCK_STEPS}ba",
            run_name="overhead",
            remote=Path(folder) / "remote",
            local_root=Path(folder) / "local",
            save_folder=None,
            progress_bar=False,
            device="cpu",
            callbacks=turns,
        ) as trainer,
    ):
        trainer.fit()
    pairs = turns.pairs[1:]
    rows, figures = [], {}
    for clock, name in enumerate(("wall", "cpu")):
        ratios = [ours[clock] / bare[clock] for ours, bare in pairs]
        quarters = statistics.quantiles(ratios, n=4)
        ours_ms, bare_ms = (
            1000 * statistics.median(pair[side][clock] for pair in pairs) / BLOCK_STEPS for side in (0, 1)
        )
        whole = sum(ours[clock] for ours, _ in pairs) / sum(bare[clock] for _, bare in pairs)
        spread = f"{quarters[0]:.4f} to {quarters[2]:.4f}"
        rows.append([name, f"{ours_ms:.3f}", f"{bare_ms:.3f}", f"{quarters[1]:.4f}", spread, f"{whole:.4f}"])
        figures[name] = {
            "ratio": quarters[1],
            "ratio_of_sums": whole,
            "trainer_ms": ours_ms,
            "bare_ms": bare_ms,
            "quartiles": quarters,
        }
    show(
        f"Trainer against a bare loop, {BLOCKS} blocks of {BLOCK_STEPS} steps in turns; bar {BAR}",
        ["clock", "Trainer, ms a step", "bare, ms a step", "ratio, median of pairs", "its quartiles", "all together"],
        rows,
    )
    save(
        "trainer_overhead",
        {"bar": BAR, "block_steps": BLOCK_STEPS, "blocks": BLOCKS, "width": width, **figures, "pairs_s": pairs},
    )
