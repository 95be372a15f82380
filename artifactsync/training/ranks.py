"""Training by several processes at once: what they share, and what each does alone.

Owns: the process group, DDP around the model, each rank's share of the data, and the few numbers that ranks agree on
at every batch. Does not own: saving and resuming (``checkpoint.together``), or the loop (``trainer``).

Invariant: whatever decides when something ends, is saved or evaluated is the same on every rank: samples and tokens are
counted over all of them, and time is rank 0's.
"""

from __future__ import annotations

import os
from contextlib import nullcontext, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed
from torch._C._distributed_c10d import PrefixStore
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, Sampler, SequentialSampler
from torch.utils.data.distributed import DistributedSampler

from artifactsync.batch import Placement, placement
from artifactsync.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from artifactsync.batch import StopSignal

PER_RANK = ("rng", "train_dataloader", "loggers")
"""Entries of a trainer's state that each rank has for itself."""


class Ranks:
    """The processes that train together; one alone is the simplest case, and costs nothing.

    Args:
        device: Where this process trains.
    """

    def __init__(self, device: torch.device) -> None:
        self.place: Placement = placement()
        self.sampler: DistributedSampler[Any] | None = None
        """Ours, if the training data were given without one."""
        self._wrapped: Any = None
        self._is_group_ours = False
        self._control: Any = None
        self._duration_s = 0.0
        self._is_told = False
        if self.place.world_size == 1:
            return
        if not distributed.is_initialized():
            _init_process_group("nccl" if device.type == "cuda" else "gloo")
            self._is_group_ours = True
        self._control = distributed.new_group(backend="gloo")  # its numbers never wait for a device

    @property
    def are_many(self) -> bool:
        """Whether there are others."""
        return self.place.world_size > 1

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0."""
        return self.place.rank == 0

    def agreed(self, number: int) -> int:
        """Rank 0's number."""
        if not self.are_many:
            return number
        box = torch.tensor([number], dtype=torch.int64)
        distributed.broadcast(box, src=0, group=self._control)
        return int(box.item())

    def wrap(self, model: torch.nn.Module) -> torch.nn.Module:
        """What is to be called for a forward pass: the model in DDP, unless it is sharded or wrapped already."""
        is_ready = isinstance(model, torch.nn.parallel.DistributedDataParallel) or any(
            hasattr(parameter, "placements") for parameter in model.parameters()
        )
        if not self.are_many or is_ready or not any(p.requires_grad for p in model.parameters()):
            return model
        self._wrapped = torch.nn.parallel.DistributedDataParallel(model)
        return self._wrapped  # type: ignore[no-any-return]  # made in the line above

    def without_sync(self, is_last: bool) -> AbstractContextManager[Any]:
        """Gradients are shared in the last microbatch alone."""
        return nullcontext() if is_last or self._wrapped is None else self._wrapped.no_sync()

    def share(self, loader: Any, seed: int) -> Any:
        """The training data of this rank.

        Raises:
            ConfigurationError: it has a sampler that knows nothing of other ranks.
        """
        if not self.are_many or not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
            return loader  # what is iterated is the user's to divide
        if hasattr(loader.sampler, "num_replicas") or hasattr(loader.batch_sampler, "num_replicas"):
            return loader
        self.sampler = DistributedSampler(
            loader.dataset,
            num_replicas=self.place.world_size,
            rank=self.place.rank,
            shuffle=self._is_shuffled(loader),
            seed=seed,
            drop_last=bool(loader.drop_last),
        )
        return _with_sampler(loader, self.sampler)

    def share_evaluation(self, loader: Any, *, is_sharded: bool) -> Any:
        """Every so-manyth sample, none of them twice; but a sharded model needs as many batches on every rank."""
        if not self.are_many or not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
            return loader
        if hasattr(loader.sampler, "num_replicas") or hasattr(loader.batch_sampler, "num_replicas"):
            return loader
        self._is_shuffled(loader)
        if is_sharded:
            size, rank = self.place.world_size, self.place.rank
            return _with_sampler(loader, DistributedSampler(loader.dataset, size, rank, shuffle=False))
        return _with_sampler(loader, _EveryNth(len(loader.dataset), self.place))  # type: ignore[arg-type]  # of map style

    def _is_shuffled(self, loader: DataLoader[Any]) -> bool:
        if (
            type(loader.sampler) not in {RandomSampler, SequentialSampler}
            or type(loader.batch_sampler) is not BatchSampler
        ):
            raise ConfigurationError(
                f"the dataloader's {type(loader.sampler).__name__} gives every rank the same samples",
                hint="use torch's DistributedSampler, or leave the sampler out and this divides the data",
            )
        return isinstance(loader.sampler, RandomSampler)

    def counting(
        self, samples: int, tokens: int, stop: StopSignal | None = None
    ) -> Callable[[float], tuple[int, int, float]]:
        """Begin to count a batch over all ranks, while it is trained on.

        Args:
            samples: Of this rank's batch.
            tokens: Of this rank's batch.
            stop: Whether this rank is told to stop, which the others learn with the numbers: see ``must_stop``.

        Returns:
            Called with the seconds that the batch took here: samples and tokens of all ranks, and seconds. Rank 0's
            seconds arrive with the batch after.
        """
        if not self.are_many:
            return lambda duration_s: (samples, tokens, duration_s)
        before = self._duration_s if self.is_first else 0.0
        numbers = torch.tensor([samples, tokens, before, float(bool(stop))], dtype=torch.float64)
        work = distributed.all_reduce(numbers, group=self._control, async_op=True)

        def result(duration_s: float) -> tuple[int, int, float]:
            work.wait()
            self._duration_s = duration_s
            all_samples, all_tokens, before_s, told = numbers.tolist()
            self._is_told = told > 0
            return int(all_samples), int(all_tokens), float(before_s)

        return result

    def must_stop(self, stop: StopSignal | None) -> bool:
        """Whether to stop after this batch, on every rank alike: some rank was told before the batch began.

        Args:
            stop: Of this rank; one process alone need not ask the others, and stops a batch sooner.
        """
        return self._is_told if self.are_many else bool(stop)

    def least(self, seconds: float | None) -> float | None:
        """The least of all ranks' seconds; None where nobody knows."""
        if not self.are_many:
            return seconds
        box = torch.tensor([float("inf") if seconds is None else seconds], dtype=torch.float64)
        distributed.all_reduce(box, op=distributed.ReduceOp.MIN, group=self._control)
        return None if torch.isinf(box).item() else float(box.item())

    def part(self, limit_s: float) -> None:
        """Wait until every rank has written what it had to: a launcher ends all as soon as one is gone.

        Args:
            limit_s: Seconds to wait at most; a rank that is gone is not waited for.
        """
        if self.are_many:
            with suppress(RuntimeError):  # torch's for both
                distributed.monitored_barrier(self._control, timeout=timedelta(seconds=max(limit_s, 0.1)))

    def mean(self, loss: torch.Tensor) -> torch.Tensor:
        """The mean over ranks of a number; on its device."""
        if not self.are_many:
            return loss
        mean = loss / self.place.world_size
        distributed.all_reduce(mean)
        return mean

    def share_buffers(self) -> None:
        """Give every rank rank 0's buffers, as DDP does before a training step: an evaluation sees what is saved."""
        if self._wrapped is not None:
            for buffer in self._wrapped.module.buffers():
                distributed.broadcast(buffer, src=0)

    def total(self, numbers: torch.Tensor) -> torch.Tensor:
        """The sum over ranks of host numbers."""
        if self.are_many:
            numbers = numbers.cpu()
            distributed.all_reduce(numbers, group=self._control)
        return numbers

    def close(self) -> None:
        """End the process group, if it was begun here."""
        if self._is_group_ours and distributed.is_initialized():
            distributed.destroy_process_group()
            self._is_group_ours = False


def _init_process_group(backend: str) -> None:
    """Begin the process group, in a corner of the launcher's store that no earlier start of it has written to.

    torchrun (seen in 2.15) starts its workers again on the same store, where the dead ones' addresses still lie; a
    group begun without a corner of its own connects to those, and hangs.
    """
    store, rank, size = next(iter(distributed.rendezvous("env://")))  # type: ignore[attr-defined]  # as init_process_group does it
    start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    distributed.init_process_group(
        backend, store=PrefixStore(f"artifactsync/start{start}", store), rank=rank, world_size=size
    )


class _EveryNth(Sampler[int]):
    """This rank's samples of an evaluation."""

    def __init__(self, count: int, place: Placement) -> None:
        self._indices = range(place.rank, count, place.world_size)
        self.num_replicas = place.world_size

    def __iter__(self) -> Iterator[int]:
        return iter(self._indices)

    def __len__(self) -> int:
        return len(self._indices)


def _with_sampler(loader: DataLoader[Any], sampler: Sampler[int]) -> DataLoader[Any]:
    """The same loader with another sampler."""
    options: dict[str, Any] = {} if getattr(loader, "in_order", True) else {"in_order": False}
    return DataLoader(
        loader.dataset,
        batch_size=loader.batch_size,
        sampler=sampler,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        drop_last=loader.drop_last,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=loader.generator,
        prefetch_factor=loader.prefetch_factor,
        persistent_workers=loader.persistent_workers,
        **options,
    )
