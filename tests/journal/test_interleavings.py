"""Trainers, pruners, pullers and takeovers of one run, interleaved call by call; and what each safeguard is for.

``World`` holds the invariants. Hypothesis looks for an interleaving that breaks one, and shrinks it; the mutants take
one safeguard away each, and must be found out.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from artifactsync.errors import DamagedError
from artifactsync.journal import attempt as attempt_module
from artifactsync.journal import log as log_module
from artifactsync.journal import publication, restore, retire
from artifactsync.journal.catalogue import Catalogue, CheckpointFile
from tests.journal.world import Violation, World, patched, wander

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_LIVING = 5
LONG = 10_000
SEEDS = 400
totals = {"interleavings": 0, "calls": 0, "pulls": 0}


class Interleavings(RuleBasedStateMachine):
    """Each rule is a choice of the scheduler."""

    def __init__(self) -> None:
        super().__init__()
        self._stack = contextlib.ExitStack()
        self.world = self._stack.enter_context(patched(World()))

    def living(self) -> list[Any]:
        return [actor for actor in self.world.actors if not actor.is_over]

    @precondition(lambda self: len(self.living()) < MAX_LIVING)
    @rule(
        blobs=st.lists(st.integers(0, 2), min_size=1, max_size=4),
        keep_last=st.sampled_from([None, None, 1, 2]),
    )
    def a_trainer_takes_over(self, blobs: list[int], keep_last: int | None) -> None:
        self.world.start_trainer(blobs, keep_last=keep_last)

    @precondition(lambda self: len(self.living()) < MAX_LIVING)
    @rule(keep_last=st.integers(1, 2), orphans=st.booleans())
    def a_prune_begins(self, keep_last: int, *, orphans: bool) -> None:
        self.world.start_pruner(keep_last=keep_last, orphans=orphans)

    @precondition(lambda self: len(self.living()) < MAX_LIVING)
    @rule()
    def a_pull_begins(self) -> None:
        self.world.start_puller()

    @precondition(lambda self: self.living())
    @rule(who=st.integers(0, MAX_LIVING - 1), calls=st.sampled_from([1, 1, 2, 3, 8, 25]))
    def somebody_goes_on(self, who: int, calls: int) -> None:
        self.step(who, calls)

    @precondition(lambda self: self.living())
    @rule(who=st.integers(0, MAX_LIVING - 1), calls=st.integers(1, 12), fault=st.sampled_from(["lost", "dropped"]))
    def answers_get_lost(self, who: int, calls: int, fault: str) -> None:
        self.step(who, calls, fault)

    @precondition(lambda self: self.living())
    @rule(who=st.integers(0, MAX_LIVING - 1))
    def somebody_dies(self, who: int) -> None:
        living = self.living()
        living[who % len(living)].kill()

    @precondition(lambda self: self.living())
    @rule(choice=st.integers(0, 999))
    def the_index_is_spoilt(self, choice: int) -> None:
        self.world.spoil_index(choice)

    def step(self, who: int, calls: int, fault: str = "") -> None:
        living = self.living()
        actor = living[who % len(living)]
        for number in range(calls):
            actor.step(fault if number % 3 == 0 else "")
            self.world.check()
            totals["calls"] += 1

    @invariant()
    def nothing_is_broken(self) -> None:
        self.world.check()

    def teardown(self) -> None:
        try:
            self.world.run_to_end()
        finally:
            self._stack.close()
        totals["interleavings"] += 1
        totals["pulls"] += self.world.pulls


def explore(examples: int, steps: int) -> None:
    run_state_machine_as_test(
        Interleavings,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate, Phase.shrink],
            print_blob=False,
        ),
    )


def test_no_interleaving_breaks_an_invariant() -> None:
    explore(40, 30)
    assert totals["pulls"] > 0


@pytest.mark.crash
def test_no_interleaving_of_ten_thousand_breaks_an_invariant() -> None:
    totals.update(interleavings=0, calls=0, pulls=0)
    explore(LONG, 30)
    print(
        f"interleavings of trainers, pruners and pullers: {totals['interleavings']:,} "
        f"({totals['calls']:,} chosen store calls, {totals['pulls']:,} pulls): 0 violations"
    )
    assert totals["interleavings"] >= LONG


# -- each safeguard taken away ----------------------------------------------------------------------------------


def without_fencing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(attempt_module.Attempt, "_is_anothers", lambda self, record: False)


def without_read_back(patch: pytest.MonkeyPatch) -> None:
    """A lost answer is taken for a failure."""

    def create(store: Any, key: str, data: bytes, **_: Any) -> Any:
        return store.put_if_absent(key, data)

    patch.setattr(log_module, "create_once", create)


def without_commit_last(patch: pytest.MonkeyPatch) -> None:
    """The record is written before the files."""

    def publish(self: Any, prepare: Callable[[], Any], label: Any, *_: Any) -> Any:
        files = list(prepare())
        entries = {
            f.path: CheckpointFile(path=f.path, key=self._fresh_key(f), size=f.size_bytes, sha256=f.sha256)
            for f in files
        }
        fields = {name: getattr(label, name) for name in ("name", "step", "epoch", "batch", "metrics")}
        checkpoint = self._attempt.commit(**fields, files=list(entries.values()))
        for file in files:
            self._queue.submit(entries[file.path].key, file.local, overwrite=True).result(None)
        return checkpoint

    patch.setattr(publication.Publisher, "_publish", publish)


def without_the_readers_order(patch: pytest.MonkeyPatch) -> None:
    """A puller reads the journal, and pins after."""
    is_retired = restore._Chooser._is_retired

    def choose(self: Any) -> Any:
        while True:
            left = restore.candidates(self._catalogue, self._selection, run_name=self._run_name)
            if not left:
                return None
            if not is_retired(self, left[0]):
                self._keeper.pin(left[0].seq)
                return left[0]

    patch.setattr(restore._Chooser, "choose", choose)


def without_the_pruners_order(patch: pytest.MonkeyPatch) -> None:
    """A pruner looks for pins, and writes its record after."""
    beside, living = retire._retire_beside, retire.living_pins
    seen: list[Any] = []

    def retire_beside(log: Any, policy: Any) -> Any:
        catalogue = log.read_catalogue()
        seen[:] = living(log.store, log.layout, {c.seq for c in (*catalogue.checkpoints, *catalogue.retired)})
        return beside(log, policy)

    patch.setattr(retire, "_retire_beside", retire_beside)
    patch.setattr(
        retire, "living_pins", lambda store, layout, commits, **_: [pin for pin in seen if pin.commit in commits]
    )


def without_pins(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(retire, "living_pins", lambda *_, **__: [])


def without_sibling_keys(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(publication.Publisher, "_fresh_key", lambda self, file: self._layout.artifact(file.path))


def without_sending_retired_files_again(patch: pytest.MonkeyPatch) -> None:
    """A commit references bytes that a retire record has given up."""
    with_retirement = Catalogue.with_retirement

    def forget(self: Catalogue, retirement: Any) -> Catalogue:
        found = with_retirement(self, retirement)
        object.__setattr__(found, "retired_keys", frozenset())
        return found

    patch.setattr(Catalogue, "with_retirement", forget)


def without_the_record_first(patch: pytest.MonkeyPatch) -> None:
    """A prune deletes, and writes its record after."""
    beside = retire._retire_beside

    def retire_beside(log: Any, policy: Any) -> Any:
        catalogue = log.read_catalogue()
        log.store.delete(sorted(retire.plan_retention(catalogue, policy).keys))
        return beside(log, policy)

    patch.setattr(retire, "_retire_beside", retire_beside)


MUTANTS = (
    without_fencing,
    without_read_back,
    without_commit_last,
    without_the_readers_order,
    without_the_pruners_order,
    without_pins,
    without_sibling_keys,
    without_sending_retired_files_again,
    without_the_record_first,
)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_without_a_safeguard_an_interleaving_breaks_an_invariant(
    mutant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = None
    for seed in range(SEEDS):
        with monkeypatch.context() as patch:
            try:
                wander(seed, sabotage=lambda: mutant(patch))
            except (Violation, DamagedError) as error:
                found = (seed, str(error))
                break
    assert found, "this safeguard could be taken away, and nobody would notice"


def test_the_same_wanderings_with_all_safeguards_break_nothing() -> None:
    assert sum(wander(seed).pulls for seed in range(40)) > 0
