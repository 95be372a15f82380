"""Ranks that write one checkpoint together, here as threads: all of it is committed, or nothing."""

from __future__ import annotations

import json
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from artifactsync.errors import (
    AlreadyExistsError,
    ConfigurationError,
    DamagedError,
    MissingBytesError,
    NotDurableError,
    RunFencedError,
    UnsafeKeyError,
    WaitTimeoutError,
)
from artifactsync.journal.catalogue import CheckpointFile
from artifactsync.journal.contents import read_contents
from artifactsync.journal.log import read_catalogue
from artifactsync.journal.opening import begin_attempt
from artifactsync.journal.parts import (
    Gathering,
    announce_part,
    commit_parts,
    deliver_failure,
    deliver_part,
    gather_parts,
)
from artifactsync.journal.publication import Label
from artifactsync.stores import open_store
from artifactsync.testing import FakeClock, Fault, FaultyStore
from artifactsync.transfer.hashing import FileDigest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from artifactsync.journal.attempt import Attempt
    from artifactsync.journal.catalogue import Checkpoint
    from artifactsync.journal.log import JournalLog
    from artifactsync.stores.protocol import Store

WORLD = 4


@pytest.fixture
def attempt(log: JournalLog) -> Attempt:
    return begin_attempt(log.store, log, takeover=True, allow_unfenced=False)


def gathering_of(attempt: Attempt, *, number: int = 1, step: int = 10) -> Gathering:
    return Gathering(
        attempt=attempt.number,
        claim_id=attempt.claim_id,
        number=number,
        name=f"ep0-ba{step}",
        step=step,
        world_size=WORLD,
    )


def upload(store: Store, gathering: Gathering, rank: int) -> CheckpointFile:
    data = f"step {gathering.step} of rank {rank}".encode()
    path = f"checkpoints/{gathering.name}/rank{rank}.distcp"
    store.put(f"demo/{path}", data)
    digest = FileDigest(len(data), "0" * 64)
    return CheckpointFile(path=path, key=f"demo/{path}", size=digest.size_bytes, sha256=digest.sha256)


def rank_saves(store: Store, log: JournalLog, gathering: Gathering, rank: int) -> None:
    path = f"demo/checkpoints/{gathering.name}/rank{rank}.distcp"
    announce_part(store, log.layout, gathering, rank=rank, keys=[path])
    file = upload(store, gathering, rank)
    deliver_part(store, log.layout, gathering, rank=rank, files=[file])


def commit(
    log: JournalLog, attempt: Attempt, gathering: Gathering, *, timeout_s: float = 20.0, **more: Any
) -> Checkpoint:
    label = Label(name=gathering.name, step=gathering.step, epoch=0, batch=gathering.step, metrics={})
    own = [upload(log.store, gathering, 0)]
    return commit_parts(
        log.store, log.layout, gathering, attempt=attempt, label=label, own=own, timeout_s=timeout_s, **more
    )


def test_all_ranks_make_one_checkpoint(log: JournalLog, attempt: Attempt) -> None:
    with ThreadPoolExecutor(WORLD) as ranks:
        for number in range(1, 4):
            gathering = gathering_of(attempt, number=number, step=number * 10)
            others = [ranks.submit(rank_saves, log.store, log, gathering, rank) for rank in range(1, WORLD)]
            checkpoint = commit(log, attempt, gathering)
            for other in others:
                other.result(20)
            assert [file.path[-12:] for file in checkpoint.files] == [f"rank{rank}.distcp" for rank in range(WORLD)]
    catalogue = read_catalogue(log)
    assert [c.step for c in catalogue.checkpoints] == [10, 20, 30]
    assert [info.key for info in log.store.list(log.layout.parts)] == []
    assert [info.key for info in log.store.list(log.layout.intents)] == []
    assert read_contents(log.store, log.layout, catalogue).artifacts == ()


def test_a_rank_that_never_arrives_is_named_in_time_and_the_previous_checkpoint_stays(
    log: JournalLog, attempt: Attempt
) -> None:
    first = gathering_of(attempt)
    for rank in range(1, WORLD):
        rank_saves(log.store, log, first, rank)
    before = commit(log, attempt, first)
    second = gathering_of(attempt, number=2, step=20)
    rank_saves(log.store, log, second, 1)
    rank_saves(log.store, log, second, 3)
    clock = FakeClock()
    began = clock.monotonic()
    with pytest.raises(WaitTimeoutError, match=r"rank 2 of 4 did not deliver .* within 30 s") as caught:
        commit(log, attempt, second, timeout_s=30, clock=clock)
    assert 30 <= clock.monotonic() - began < 31
    assert (caught.value.exit_code, "previous checkpoint" in caught.value.hint) == (7, True)
    catalogue = read_catalogue(log)
    assert catalogue.latest() == before
    hidden = read_contents(log.store, log.layout, catalogue)
    assert [artifact.path for artifact in hidden.artifacts] == [f"checkpoints/{second.name}/rank0.distcp"]


def test_a_rank_that_failed_ends_the_waiting_at_once(log: JournalLog, attempt: Attempt) -> None:
    gathering = gathering_of(attempt)
    rank_saves(log.store, log, gathering, 1)
    deliver_failure(log.store, log.layout, gathering, rank=2, reason="no space left")
    with pytest.raises(NotDurableError, match=r"rank 2 .*no space left"):
        commit(log, attempt, gathering)
    assert read_catalogue(log).checkpoints == ()


def test_a_file_that_a_rank_named_and_that_is_not_there_is_never_committed(log: JournalLog, attempt: Attempt) -> None:
    gathering = gathering_of(attempt)
    for rank in range(1, WORLD):
        rank_saves(log.store, log, gathering, rank)
    log.store.delete([f"demo/checkpoints/{gathering.name}/rank3.distcp"])
    with pytest.raises(MissingBytesError, match=r"rank3\.distcp"):
        commit(log, attempt, gathering)
    log.store.put(f"demo/checkpoints/{gathering.name}/rank3.distcp", b"short")
    with pytest.raises(MissingBytesError, match="5 bytes"):
        commit(log, attempt, gathering)
    assert read_catalogue(log).checkpoints == ()


def test_parts_of_another_save_are_refused(log: JournalLog, attempt: Attempt) -> None:
    gathering = gathering_of(attempt)
    stale = replace(gathering, claim_id="another lineage")
    for rank in range(1, WORLD):
        rank_saves(log.store, log, stale if rank == 2 else gathering, rank)
    with pytest.raises(DamagedError, match=r"rank 2's part .* of another save: claim_id"):
        commit(log, attempt, gathering)
    with pytest.raises(ConfigurationError, match="attempt"):
        commit(log, attempt, stale)


def test_a_rank_delivers_once(log: JournalLog, attempt: Attempt) -> None:
    gathering = gathering_of(attempt)
    rank_saves(log.store, log, gathering, 1)
    rank_saves(log.store, log, gathering, 1)  # the same again: an answer that was lost
    with pytest.raises(AlreadyExistsError, match="rank 1 has delivered another part"):
        deliver_part(log.store, log.layout, gathering, rank=1, files=[])
    with pytest.raises(ConfigurationError, match="world size"):
        deliver_part(log.store, log.layout, gathering, rank=WORLD, files=[])


def test_two_ranks_with_one_path_are_refused(log: JournalLog, attempt: Attempt) -> None:
    gathering = gathering_of(attempt)
    for rank in range(1, WORLD):
        deliver_part(log.store, log.layout, gathering, rank=rank, files=[upload(log.store, gathering, 1)])
    with pytest.raises(DamagedError, match=r"two ranks have a file '.*rank1\.distcp'"):
        commit(log, attempt, gathering)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda part: part["files"][0].update(path="../../etc/passwd"), UnsafeKeyError),
        (lambda part: part["files"][0].update(key=".artifactsync/journal/x"), UnsafeKeyError),
        (lambda part: part["files"][0].pop("size"), DamagedError),
        (lambda part: part.pop("files"), DamagedError),
        (lambda part: part.update(format=2), DamagedError),
    ],
)
def test_hostile_parts(
    log: JournalLog, attempt: Attempt, change: Callable[[dict[str, Any]], Any], error: type[Exception]
) -> None:
    gathering = gathering_of(attempt)
    for rank in range(1, WORLD):
        rank_saves(log.store, log, gathering, rank)
    key = gathering.key(log.layout, 2)
    part = json.loads(log.store.get(key))
    change(part)
    log.store.put(key, json.dumps(part).encode())
    with pytest.raises(error):
        commit(log, attempt, gathering)
    assert read_catalogue(log).checkpoints == ()


def test_an_attempt_that_lost_the_run_stops_waiting(log: JournalLog, attempt: Attempt) -> None:
    gathering = gathering_of(attempt)
    begin_attempt(log.store, log, takeover=True, allow_unfenced=False)
    with pytest.raises(RunFencedError):
        attempt.finish("failed")
    with pytest.raises(RunFencedError):
        gather_parts(log.store, log.layout, gathering, timeout_s=60, attempt=attempt, clock=FakeClock())


@pytest.mark.parametrize("kind", ["local", "s3", "gcs"])
def test_on_real_stores_behind_faults(request: pytest.FixtureRequest, tmp_path: Path, kind: str) -> None:
    from artifactsync.journal.log import JournalLog  # noqa: PLC0415

    if kind == "local":
        inner = open_store(tmp_path / "remote")
    else:
        cloud = request.getfixturevalue(kind)
        inner = open_store(cloud.fresh_url(), cloud.storage_options)
    log = JournalLog(inner, "demo")
    attempt = begin_attempt(inner, log, takeover=False, allow_unfenced=False)
    gathering = gathering_of(attempt)
    start = threading.Barrier(WORLD)

    def save(rank: int) -> None:
        start.wait(20)
        faulty = FaultyStore(
            inner, [Fault(kind="lost-response", operations=("put_if_absent",), probability=0.5)], seed=rank
        )
        rank_saves(faulty, log, gathering, rank)

    order = list(range(1, WORLD))
    random.Random(kind).shuffle(order)
    with ThreadPoolExecutor(WORLD) as ranks:
        others = [ranks.submit(save, rank) for rank in order]
        start.wait(20)
        checkpoint = commit(log, attempt, gathering)
        for other in others:
            other.result(20)
    assert len(checkpoint.files) == WORLD
