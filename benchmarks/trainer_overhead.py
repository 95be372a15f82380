"""What the Trainer adds to a step: the same model and batches in a bare loop and in ``Trainer.fit``, taking turns.

The bare loop is what one writes by hand: ``zero_grad``, forward, loss, backward, ``step``. The model is chosen so that
a bare step takes about ``STEP_S`` here. The Trainer has what it has by default, with a remote folder: its metrics file
too; checkpoints are not among it, as ``uploader_cost`` measures these.

Batches of one form follow those of the other within a process, in blocks, so that what else the machine does meets
both; an epoch has ten blocks, and what its end costs is in the block it falls into. The figure is the median over all
pairs of blocks, by the wall clock; beside it stand the ratio of all blocks together, epochs' ends included, and the
same by the CPU time of the training thread, which a busy machine disturbs less, and which does not see what other
threads take from it.

Gradients come and go at every step, and whether glibc gives their pages back to the system in between is a matter of
what else lies on the heap: one process is luckier than the next by some percent for as long as it lives. So there are
``PROCESSES`` of each kind, and a control: the same turns with a second bare loop in the Trainer's place. What that is
away from 1 is what this cannot see.
"""

from __future__ import annotations

import multiprocessing
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from torch import nn

from artifactsync import Callback, Trainer
from benchmarks.report import save, show

STEP_S = 0.005
BLOCK_STEPS = 20
BLOCKS = 30
PROCESSES = 3
BLOCKS_OF_AN_EPOCH = 10
BAR = 1.02
_BATCH = 64
_Pair = tuple[tuple[float, float], tuple[float, float]]
"""A block of what is measured, and one of the bare loop: wall and CPU seconds of each."""


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
        self.pairs: list[_Pair] = []  # the Trainer's, the bare loop's
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


def _batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    torch.set_num_threads(1)
    torch.manual_seed(1)
    return [(torch.randn(_BATCH, 256), torch.randint(0, 10, (_BATCH,))) for _ in range(BLOCK_STEPS)]


def _control_pairs(width: int) -> list[_Pair]:
    """The bare loop against another bare loop."""
    batches = _batches()
    one, other = _Bare(width, batches), _Bare(width, batches)
    return [(one.block_s(), other.block_s()) for _ in range(BLOCKS + 1)][1:]


def _trainer_pairs(width: int) -> list[_Pair]:
    """The Trainer against the bare loop."""
    batches = _batches()
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
    return turns.pairs[1:]


def measure() -> None:
    """Take turns; print and save."""
    width = _width_for(STEP_S, _batches())
    found: dict[str, list[list[_Pair]]] = {"Trainer": [], "control": []}
    for _ in range(PROCESSES):
        for name, pairs_of in (("Trainer", _trainer_pairs), ("control", _control_pairs)):
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
                found[name].append(process.submit(pairs_of, width).result())
    rows, figures = [], {}
    for name, processes in found.items():
        pairs = [pair for process in processes for pair in process]
        figures[name.lower()] = {"pairs_s": processes}
        for clock, label in enumerate(("wall", "cpu")):
            ratios = [ours[clock] / bare[clock] for ours, bare in pairs]
            quarters = statistics.quantiles(ratios, n=4)
            ours_ms, bare_ms = (
                1000 * statistics.median(pair[side][clock] for pair in pairs) / BLOCK_STEPS for side in (0, 1)
            )
            whole = sum(ours[clock] for ours, _ in pairs) / sum(bare[clock] for _, bare in pairs)
            of_each = [statistics.median(ours[clock] / bare[clock] for ours, bare in process) for process in processes]
            spread = f"{quarters[0]:.3f} to {quarters[2]:.3f}"
            each = " ".join(f"{ratio:.3f}" for ratio in of_each)
            rows.append(
                [name, label, f"{ours_ms:.3f}", f"{bare_ms:.3f}", f"{quarters[1]:.4f}", spread, each, f"{whole:.4f}"]
            )
            figures[name.lower()][label] = {
                "ratio": quarters[1],
                "ratio_of_sums": whole,
                "ratio_of_each_process": of_each,
                "ours_ms": ours_ms,
                "bare_ms": bare_ms,
                "quartiles": quarters,
            }
    show(
        f"Trainer against a bare loop, {PROCESSES} times {BLOCKS} blocks of {BLOCK_STEPS} steps in turns; bar {BAR}",
        ["", "clock", "ms a step", "bare, ms", "ratio, median", "its quartiles", "of each process", "all together"],
        rows,
    )
    save("trainer_overhead", {"bar": BAR, "block_steps": BLOCK_STEPS, "blocks": BLOCKS, "width": width, **figures})
