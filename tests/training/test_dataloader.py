"""The order of the data, and what random transforms make of it, wherever an epoch is taken up again."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
    get_worker_info,
)

from artifactsync.checkpoint.rng import get_rng_state, seed_all, set_rng_state
from artifactsync.checkpoint.snapshot import SnapshotBuffers, take_snapshot
from artifactsync.errors import ConfigurationError
from artifactsync.training.dataloader import ResumableLoader


class Noisy(Dataset):
    """Each item has its index and a draw from every generator."""

    def __init__(self, count=20):
        self.count = count
        self.loaded = []

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        self.loaded.append(index)
        noise = [random.random(), float(np.random.rand()), float(torch.rand(()))]  # noqa: NPY002  (the global one)
        return torch.tensor([float(index), *noise], dtype=torch.float64)


class Stream(IterableDataset):
    def __iter__(self):
        info = get_worker_info()
        first, step = (0, 1) if info is None else (info.id, info.num_workers)
        for index in range(first, 20, step):
            yield torch.tensor([float(index), float(torch.rand(()))], dtype=torch.float64)


class WithItems(Noisy):
    def __getitems__(self, indices):
        return [self[index] for index in indices]


def _generator():
    return torch.Generator().manual_seed(3)


_LOADERS = {
    "in order": lambda: DataLoader(Noisy(), batch_size=3),
    "shuffled": lambda: DataLoader(Noisy(), batch_size=3, shuffle=True),
    "own generator": lambda: DataLoader(Noisy(), batch_size=3, shuffle=True, generator=_generator()),
    "with replacement": lambda: DataLoader(
        Noisy(),
        batch_size=3,
        sampler=RandomSampler(range(20), replacement=True, num_samples=40, generator=_generator()),
    ),
    "weighted": lambda: DataLoader(Noisy(), batch_size=3, sampler=WeightedRandomSampler([1.0] * 20, 20)),
    "subset": lambda: DataLoader(Noisy(), batch_size=3, sampler=SubsetRandomSampler(range(5, 18))),
    "batch sampler": lambda: DataLoader(
        Noisy(), batch_sampler=BatchSampler(RandomSampler(range(20), generator=_generator()), 4, drop_last=True)
    ),
    "no batches": lambda: DataLoader(Noisy(9), batch_size=None, shuffle=True),
    "workers": lambda: DataLoader(Noisy(), batch_size=3, shuffle=True, num_workers=2),
    "workers, own generator": lambda: DataLoader(
        WithItems(), batch_size=3, shuffle=True, num_workers=2, generator=_generator()
    ),
    "persistent workers": lambda: DataLoader(
        Noisy(), batch_size=3, shuffle=True, num_workers=2, persistent_workers=True
    ),
    "stream": lambda: DataLoader(Stream(), batch_size=3),
    "stream, workers": lambda: DataLoader(Stream(), batch_size=3, num_workers=2),
    "list": lambda: [torch.tensor([float(i)]) for i in range(6)],
}


def _train(loader, epochs, *, stop_after=None, saved=None):
    """Draw between batches, as training does; stop after so many batches and return what would be saved."""
    resumable = ResumableLoader(loader())
    epoch, seen = 0, []
    if saved is not None:
        resumable.load_state_dict(saved["loader"])
        epoch = saved["epoch"]
        set_rng_state(saved["rng"])
    count = 0
    while epoch < epochs:
        batches = resumable.start_epoch(epoch)
        if saved is not None:
            if saved["loader"]["used"] is not None:
                set_rng_state(saved["rng"])
            saved = None
        for batch in batches:
            seen.append((batch.clone(), float(torch.rand(())), random.random()))
            count += 1
            if count == stop_after:
                state = {"loader": resumable.state_dict(), "rng": get_rng_state(), "epoch": epoch}
                return seen, take_snapshot(state, SnapshotBuffers()).state
        resumable.end_epoch()
        epoch += 1
    return seen, None


def _same(one, other):
    assert len(one) == len(other)
    for (batch, *draws), (other_batch, *other_draws) in zip(one, other, strict=True):
        assert torch.equal(batch, other_batch)
        assert draws == other_draws


@pytest.mark.parametrize("name", _LOADERS)
def test_an_interrupted_epoch_goes_on_as_if_it_had_not_been(name):
    loader = _LOADERS[name]
    seed_all(11)
    whole, _ = _train(loader, 3)
    per_epoch = len(whole) // 3
    seed_all(11)
    stops = [2, per_epoch - 2 + 1, per_epoch]  # mid-epoch, to the end of it, a whole one further
    seen, saved = [], None
    for stop in stops:
        part, saved = _train(loader, 3, stop_after=stop, saved=saved)
        seen += part
        seed_all(999)  # a new process has other generators
    rest, _ = _train(loader, 3, saved=saved)
    _same(seen + rest, whole)


def test_passing_over_loads_nothing():
    loader = DataLoader(Noisy(), batch_size=2, shuffle=True)
    first = ResumableLoader(loader)
    batches = first.start_epoch(0)
    for _ in range(7):
        next(batches)
    saved = first.state_dict()
    fresh = Noisy()
    second = ResumableLoader(DataLoader(fresh, batch_size=2, shuffle=True))
    second.load_state_dict(saved)
    next(second.start_epoch(0))
    assert len(fresh.loaded) == 2


def test_the_number_of_workers_may_change():
    def loader(workers):
        return DataLoader(Noisy(), batch_size=3, shuffle=True, num_workers=workers, generator=_generator())

    seed_all(1)
    two, _ = _train(lambda: loader(2), 1)
    seed_all(1)
    one, _ = _train(lambda: loader(1), 1)
    assert [torch.equal(a, b) for (a, *_), (b, *_) in zip(two, one, strict=True)] == [True] * 7


def _note_dataset(worker_id):
    assert type(get_worker_info().dataset) is Noisy


def test_workers_see_the_users_dataset_also_when_spawned():
    for context in ("fork", "spawn"):
        loader = DataLoader(
            Noisy(), batch_size=5, num_workers=1, worker_init_fn=_note_dataset, multiprocessing_context=context
        )
        batches = list(ResumableLoader(loader).start_epoch(0))
        assert torch.cat(batches)[:, 0].tolist() == list(range(20))


def test_set_epoch_is_called():
    class Sampler(SubsetRandomSampler):
        epochs: list = []  # noqa: RUF012  (one sampler)

        def set_epoch(self, epoch):
            self.epochs.append(epoch)

    resumable = ResumableLoader(DataLoader(Noisy(), sampler=Sampler(range(3))))
    list(resumable.start_epoch(4))
    assert Sampler.epochs == [4]


def test_other_data_than_before_is_refused():
    longer = ResumableLoader(DataLoader(Noisy(20), batch_size=2))
    batches = longer.start_epoch(0)
    for _ in range(8):
        next(batches)
    saved = longer.state_dict()
    for loader in (DataLoader(Noisy(4), batch_size=2), [1, 2]):
        shorter = ResumableLoader(loader)
        shorter.load_state_dict(saved)
        with pytest.raises(ConfigurationError, match="8 of this epoch"):
            shorter.start_epoch(0)
    with_generator = ResumableLoader(DataLoader(Noisy(20), batch_size=2, generator=_generator()))
    with_generator.load_state_dict(saved)
    with pytest.raises(ConfigurationError, match="generators"):
        with_generator.start_epoch(0)
