"""A dataloader whose position can be saved: the order of the data does not depend on interruptions.

Owns: starting an epoch, knowing how far it is, and coming back to that place. Does not own: moving batches to a
device or splitting them (``trainer``).

Invariant: the batches of an epoch, and what random transforms make of them, are a function of the generators' state
at its start alone: whether a batch is reached in one go or after any number of resumes makes no difference.

How: at the start of an epoch the state of every generator is noted. A resume puts them back, starts the epoch anew
and passes over the batches that were used; only then the generators are set to where they were at the checkpoint.

- A plain ``DataLoader`` of a map-style dataset is rebuilt around the same dataset and sampler so that passing over
  costs no loading: only its indices are drawn. In worker processes, which run ahead of training, the generators are
  seeded for each batch by its number, so that what a batch becomes does not depend on what its worker did before.
- Anything else that can be iterated (an ``IterableDataset``, a subclass of ``DataLoader``, a list of batches) is
  iterated, and the batches that were used are loaded again and dropped.

A sampler should draw from ``DataLoader(generator=…)``, from a ``generator`` of its own, or, at the start of an epoch
only, from the global generators, as all of torch's do.
"""

from __future__ import annotations

import random
import sys
import warnings
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from artifactsync.checkpoint.rng import get_rng_state, set_rng_state
from artifactsync.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator


class ResumableLoader:
    """Iterates a dataloader epoch by epoch, and can continue in the middle of one.

    Args:
        loader: A ``DataLoader``, or any iterable that can be iterated once per epoch.
    """

    def __init__(self, loader: Iterable[Any]) -> None:
        self.loader = loader
        """What the user gave; it is not changed."""
        self._generators = _generators_of(loader)
        self._positions: _PositionedBatches | None = None
        self._iterable: Iterable[Any] = loader
        if _is_plain(loader):
            self._iterable, self._positions = _rebuilt(loader)
        self._epoch_start: dict[str, Any] | None = None  # None between epochs
        self._used = 0
        self._resume: dict[str, Any] | None = None

    @property
    def batches(self) -> int | None:
        """Batches of an epoch, where that is known."""
        try:
            return len(self.loader)  # type: ignore[arg-type]  # that it may have none is what the except is for
        except TypeError:
            return None

    def start_epoch(self, epoch: int) -> Iterator[Any]:
        """Begin an epoch, or continue the one that ``load_state_dict`` described.

        After a resume the global generators are left where they were at the start of the epoch plus what the sampler
        drew: the caller sets them to their state at the checkpoint next.

        Args:
            epoch: Epochs done, for samplers with ``set_epoch``.
        """
        resume, self._resume = self._resume, None
        self._used = 0
        if resume is not None:
            self._used = resume["used"]
            set_rng_state(resume["rng"])
            self._set_generators(resume["generators"])
        for part in (self.loader, getattr(self.loader, "sampler", None), getattr(self.loader, "batch_sampler", None)):
            if callable(getattr(part, "set_epoch", None)):
                part.set_epoch(epoch)  # type: ignore[union-attr]  # asked in the line above
        self._epoch_start = {"rng": get_rng_state(), "generators": self._generator_states()}
        return self._counted(self._positioned(self._used))

    def end_epoch(self) -> None:
        """The epoch is over: a state taken from now on belongs to the start of the next one."""
        self._epoch_start = None
        self._used = 0

    def state_dict(self) -> dict[str, Any]:
        """Where the loader is: the generators at the start of the running epoch, and how many batches were used."""
        if self._epoch_start is None:
            return {"used": None, "rng": None, "generators": self._generator_states()}
        return {"used": self._used, **self._epoch_start}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from there at the next ``start_epoch``."""
        self._epoch_start, self._used, self._resume = None, 0, None
        if state["used"] is None:
            self._set_generators(state["generators"])
        else:
            self._resume = dict(state)

    def load_position(self, state: dict[str, Any] | None, samples_in_epoch: int, *, world_size: int) -> None:
        """Continue where another number of ranks stopped, in units of whole batches; some samples may come again.

        Args:
            state: What rank 0's loader gave.
            samples_in_epoch: Samples of the running epoch that all ranks together have used.
            world_size: How many ranks share the data now.
        """
        if state is None or state["used"] is None:
            return
        a_batch = getattr(self.loader, "batch_size", None)
        used = samples_in_epoch // (a_batch * world_size) if a_batch else state["used"]
        self._resume = {"used": used, "rng": get_rng_state(), "generators": self._generator_states()}

    def _positioned(self, used: int) -> Iterator[Any]:
        if self._positions is None:
            iterator = iter(self._iterable)
            passed_over = sum(1 for _ in islice(iterator, used))
            if passed_over < used:
                raise ConfigurationError(
                    f"the dataloader gave {passed_over} batches, but {used} of this epoch were used before the resume",
                    hint="resume with the same data and batch size",
                )
            return iterator
        generator = self._generators.get("loader")
        seed = int(torch.empty((), dtype=torch.int64).random_(generator=generator).item())
        self._positions.begin(seed, used)
        return iter(self._iterable)

    def _counted(self, batches: Iterator[Any]) -> Iterator[Any]:
        for batch in batches:
            self._used += 1
            yield batch

    def _generator_states(self) -> dict[str, torch.Tensor]:
        return {name: generator.get_state() for name, generator in self._generators.items()}

    def _set_generators(self, states: dict[str, torch.Tensor]) -> None:
        if states.keys() != self._generators.keys():
            raise ConfigurationError(
                f"the checkpoint has generators of {sorted(states) or 'nothing'}, the dataloader of "
                f"{sorted(self._generators) or 'nothing'}",
                hint="build the dataloader as it was built when the run began",
            )
        for name, generator in self._generators.items():
            generator.set_state(states[name].cpu())


class _BatchStart:
    """The first entry of a batch's indices: what its worker seeds its generators with."""

    __slots__ = ("seed",)

    def __init__(self, seed: int) -> None:
        self.seed = seed


class _PositionedBatches:
    """A batch sampler that passes over the batches that were used, and marks each batch for its worker."""

    def __init__(self, batches: Iterable[Any], *, is_marking: bool) -> None:
        self._batches = batches
        self._is_marking = is_marking
        self._ready: Iterator[list[Any]] = iter(())
        self.worker_generator = torch.Generator()  # DataLoader draws the seed of its workers from it

    def begin(self, seed: int, used: int) -> None:
        """Start the sampler, and pass over the batches that were used.

        The first batch is drawn here, not when it is asked for, so that what the sampler takes from the global
        generators is taken at the start of the epoch, once, however often DataLoader asks for an iterator.
        """
        self.worker_generator.manual_seed(seed)
        indices = iter(self._batches)
        passed_over = sum(1 for _ in islice(indices, used))
        if passed_over < used:
            raise ConfigurationError(
                f"the sampler gave {passed_over} batches, but {used} of this epoch were used before the resume",
                hint="resume with the same data and batch size",
            )
        whole = chain(list(islice(indices, 1)), indices)
        self._ready = self._marked(whole, seed, used) if self._is_marking else whole

    def __iter__(self) -> Iterator[list[Any]]:
        return self._ready

    @staticmethod
    def _marked(batches: Iterator[list[Any]], seed: int, used: int) -> Iterator[list[Any]]:
        for number, indices in enumerate(batches, start=used):
            # 2**63 / golden ratio: numbers that follow each other give seeds that are far apart
            yield [_BatchStart((seed + number * 0x4F1BBCDCBFA53E0B) % 2**63), *indices]

    def __len__(self) -> int:
        return len(self._batches)  # type: ignore[arg-type]  # DataLoader asks only where the user's has a length


class _SeededDataset(Dataset[Any]):
    """The user's dataset in a worker: the generators are seeded at the start of each batch."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __getitems__(self, indices: list[Any]) -> list[Any]:
        _seed_worker(indices[0].seed)
        fetch_all = getattr(self.inner, "__getitems__", None)
        if fetch_all:
            return list(fetch_all(indices[1:]))
        return [self.inner[index] for index in indices[1:]]

    def __getitem__(self, index: Any) -> Any:
        return self.inner[index]

    def __len__(self) -> int:
        return len(self.inner)


class _WorkerStart:
    """Shows the user's own dataset to ``get_worker_info``, then calls the user's ``worker_init_fn``."""

    def __init__(self, user_function: Callable[[int], None] | None) -> None:
        self._user_function = user_function

    def __call__(self, worker_id: int) -> None:
        info = get_worker_info()
        if info is not None:
            object.__setattr__(info, "dataset", info.dataset.inner)  # type: ignore[attr-defined]  # ours, see _rebuilt
        if self._user_function is not None:
            self._user_function(worker_id)


def _seed_worker(seed: int) -> None:
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    numpy = sys.modules.get("numpy.random")
    if numpy is not None:
        numpy.seed(seed % 2**32)


def _is_plain(loader: Any) -> bool:
    return (
        type(loader) is DataLoader
        and not isinstance(loader.dataset, IterableDataset)
        and loader.batch_sampler is not None
    )


def _rebuilt(loader: Any) -> tuple[DataLoader[Any], _PositionedBatches]:
    """A ``DataLoader`` as ``loader``, over the same dataset and sampler, that starts at a position."""
    has_workers = loader.num_workers > 0
    positions = _PositionedBatches(loader.batch_sampler, is_marking=has_workers)
    options: dict[str, Any] = {} if getattr(loader, "in_order", True) else {"in_order": False}  # torch 2.6 and later
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what there is to say was said when the user made theirs
        rebuilt: DataLoader[Any] = DataLoader(
            _SeededDataset(loader.dataset) if has_workers else loader.dataset,
            batch_sampler=positions,
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
            pin_memory=loader.pin_memory,
            timeout=loader.timeout,
            worker_init_fn=_WorkerStart(loader.worker_init_fn) if has_workers else loader.worker_init_fn,
            multiprocessing_context=loader.multiprocessing_context,
            generator=positions.worker_generator,
            prefetch_factor=loader.prefetch_factor,
            persistent_workers=loader.persistent_workers,
            **options,
        )
    return rebuilt, positions


def _generators_of(loader: Any) -> dict[str, torch.Generator]:
    """The generators that belong to a dataloader and its samplers; one that is shared is listed once."""
    sampler, batch_sampler = getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None)
    owners = {
        "loader": loader,
        "sampler": sampler,
        "batch_sampler": batch_sampler,
        "inner_sampler": getattr(batch_sampler, "sampler", None),
    }
    found: dict[str, torch.Generator] = {}
    for name, owner in owners.items():
        generator = getattr(owner, "generator", None)
        if isinstance(generator, torch.Generator) and not any(generator is known for known in found.values()):
            found[name] = generator
    return found
