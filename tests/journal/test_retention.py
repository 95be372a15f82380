from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifactsync.errors import ConfigurationError
from artifactsync.journal.record import Kind
from artifactsync.journal.retention import RetentionPolicy, plan_retention
from tests.journal.test_catalogue import fold, record, saved

if TYPE_CHECKING:
    from artifactsync.journal.catalogue import Catalogue


def kept(catalogue: Catalogue, **rules: object) -> list[int]:
    return [c.step for c in plan_retention(catalogue, RetentionPolicy(**rules)).kept]  # type: ignore[arg-type]


def run_of(*steps: int) -> Catalogue:
    return fold(*(saved(seq, 1, step) for seq, step in enumerate(steps, start=1)))


def test_the_last() -> None:
    assert kept(run_of(10, 20, 30, 40), keep_last=2) == [30, 40]
    assert kept(run_of(10), keep_last=5) == [10]
    assert kept(run_of(), keep_last=5) == []
    resumed = fold(record(1, 1, Kind.CLAIM), saved(2, 1, 90), record(3, 2, Kind.CLAIM), saved(4, 2, 20))
    assert kept(resumed, keep_last=1) == [20]  # the later attempt's is newer


def test_one_of_every_so_many_steps() -> None:
    assert kept(run_of(*range(100, 3300, 100)), keep_every=1000) == [1000, 2000, 3000, 3200]
    assert kept(run_of(900, 1100, 1900, 2100), keep_every=1000) == [900, 1900, 2100]
    assert kept(run_of(0, 500, 1000), keep_every=1000) == [0, 1000]


def test_the_best() -> None:
    losses = fold(
        saved(1, 1, 10, loss=0.1),
        saved(2, 1, 20, loss="nan"),
        saved(3, 1, 30, loss=0.3),
        saved(4, 1, 40, loss=0.1),
        saved(5, 1, 50),
    )
    assert kept(losses, keep_best=1, metric="loss") == [40, 50]  # of equals the newest; and the newest of all
    assert kept(losses, keep_best=2, metric="loss") == [10, 40, 50]
    assert kept(losses, keep_best=1, metric="loss", mode="max") == [30, 50]
    with pytest.raises(ConfigurationError, match="losss") as caught:
        kept(losses, keep_best=1, metric="losss")
    assert "known metrics: loss" in caught.value.hint
    assert kept(run_of(), keep_best=1, metric="loss") == []


def test_what_any_rule_wants_stays() -> None:
    catalogue = fold(*(saved(n, 1, n * 10, loss=n) for n in range(1, 8)))
    assert kept(catalogue, keep_last=2, keep_every=30, keep_best=1, metric="loss") == [10, 30, 60, 70]


def test_a_shared_file_stays_while_anybody_needs_it() -> None:
    first, second, third = saved(1, 1, 10), saved(2, 1, 20), saved(3, 1, 30)
    third.body["files"][0]["key"] = first.body["files"][0]["key"]
    plan = plan_retention(fold(first, second, third), RetentionPolicy(keep_last=1))
    assert [c.step for c in plan.retired] == [10, 20]
    assert plan.keys == {"demo/c/1-20-2.pt"}


@pytest.mark.parametrize(
    "rules",
    [
        {},
        {"keep_last": 0},
        {"keep_every": -1},
        {"keep_best": 1},
        {"metric": "loss"},
        {"keep_last": 1, "metric": "loss"},
        {"keep_best": 1, "metric": "loss", "mode": "median"},
    ],
)
def test_a_policy_that_makes_no_sense(rules: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError):
        RetentionPolicy(**rules)  # type: ignore[arg-type]


@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(0, 50), st.floats(allow_nan=True)), max_size=12),
    st.one_of(st.none(), st.integers(1, 4)),
    st.integers(1, 20),
    st.one_of(st.none(), st.integers(1, 3)),
)
def test_the_newest_always_stays_and_a_second_prune_does_nothing(
    commits: list[tuple[int, int, float]], last: int | None, every: int, best: int | None
) -> None:
    records = [saved(n, attempt, step, x=str(x)) for n, (attempt, step, x) in enumerate(sorted(commits), start=1)]
    catalogue = fold(*records)
    if all(x != x for _, _, x in commits):  # noqa: PLR0124 - NaN: nobody has the metric
        best = None
    policy = RetentionPolicy(keep_last=last, keep_every=every, keep_best=best, metric="x" if best else None)
    plan = plan_retention(catalogue, policy)
    kept_seqs, retired_seqs = {c.seq for c in plan.kept}, {c.seq for c in plan.retired}
    assert kept_seqs | retired_seqs == {c.seq for c in catalogue.checkpoints}
    assert not kept_seqs & retired_seqs
    latest = catalogue.latest()
    assert latest is None or latest.seq in kept_seqs
    retire = record(len(records) + 1, 1, Kind.RETIRE, commits=sorted(retired_seqs), keys=[])
    after = fold(*records, retire)
    newest = after.latest()
    assert (newest and newest.seq) == (latest and latest.seq)
    assert plan_retention(after, policy).retired == ()
