from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from artifactsync.errors import (
    ConfigurationError,
    DamagedError,
    MissingBytesError,
    NotDurableError,
    ObjectNotFoundError,
    RunFencedError,
    UnsafeKeyError,
    WaitTimeoutError,
)
from artifactsync.journal.attempt import Attempt, claim
from artifactsync.journal.contents import read_contents
from artifactsync.journal.log import JournalLog, read_catalogue
from artifactsync.journal.publication import Label, LocalFile, Publisher, local_files
from artifactsync.journal.writer import WriterIdentity
from artifactsync.stores.retry import RetryStore
from artifactsync.testing import Call, Fault, FaultyStore
from artifactsync.transfer.queue import UploadQueue
from tests.journal.conftest import IMPATIENT

if TYPE_CHECKING:
    from pathlib import Path

    from artifactsync.stores.protocol import Store

ME = WriterIdentity.of_this_process()
Publish = Callable[..., Publisher]


def label(step: int = 10) -> Label:
    return Label(name=f"s{step}", step=step, epoch=0, batch=step, metrics={})


@pytest.fixture
def publish() -> Iterator[Publish]:
    opened: list[tuple[Publisher, UploadQueue]] = []

    def make(store: Store, attempt: Attempt | None = None) -> Publisher:
        log = JournalLog(store, "demo", policy=IMPATIENT)
        queue = UploadQueue(store)
        publisher = Publisher(attempt or claim(log, writer=ME), log=log, queue=queue, store=store)
        opened.append((publisher, queue))
        return publisher

    yield make
    for publisher, queue in opened:
        publisher.close()
        give_up(queue)


def give_up(queue: UploadQueue) -> None:
    """Close a queue whose uploads shall not become durable, so that nobody is told of them at exit."""
    with contextlib.suppress(NotDurableError):
        queue.close(0)


@pytest.fixture
def files(tmp_path: Path) -> list[LocalFile]:
    (tmp_path / "a.pt").write_bytes(b"a" * 1000)
    (tmp_path / "b.pt").write_bytes(b"b" * 2000)
    return local_files({"checkpoints/a.pt": tmp_path / "a.pt", "checkpoints/b.pt": tmp_path / "b.pt"})


def steps(store: Store) -> list[int]:
    return [c.step for c in read_catalogue(JournalLog(store, "demo")).checkpoints]


def test_the_commit_comes_last(store: Store, publish: Publish, files: list[LocalFile]) -> None:
    order: list[str] = []
    watched = FaultyStore(store, on_call=lambda call: order.append(f"{call.operation} {call.key}"))
    publisher = publish(watched)
    order.clear()
    checkpoint = publisher.submit(lambda: files, label()).result(10)
    assert [file.path for file in checkpoint.files] == ["checkpoints/a.pt", "checkpoints/b.pt"]
    commit = order.index(f"put_if_absent {publisher._layout.record(2)}")
    data = [i for i, call in enumerate(order) if call.startswith(("put demo/c", "head demo/c"))]
    assert len(data) == 4
    assert max(data) < commit
    assert order[0].startswith(f"put {publisher._layout.intents}")


@pytest.mark.parametrize("operation", ["put", "put_if_absent", "head", "get", "list"])
def test_a_lost_response_anywhere_costs_nothing(
    store: Store, publish: Publish, files: list[LocalFile], operation: str
) -> None:
    for number in range(1, 6):
        faulty = FaultyStore(store, [Fault(kind="lost-response", operations={operation}, calls={number})])
        log = JournalLog(RetryStore(faulty, IMPATIENT), f"run{number}", policy=IMPATIENT)
        patient = RetryStore(faulty, IMPATIENT)
        queue = UploadQueue(patient)
        publisher = Publisher(claim(log, writer=ME), log=log, queue=queue, store=patient)
        publisher.submit(lambda: files, label()).result(20)
        publisher.close()
        queue.close(10)
        catalogue = read_catalogue(JournalLog(store, f"run{number}"))
        assert [c.step for c in catalogue.checkpoints] == [10]
        assert catalogue.seq == 2


def test_whatever_dies_nobody_sees_half_a_checkpoint(store: Store, publish: Publish, files: list[LocalFile]) -> None:
    """Stop at every store call in turn: before the commit record nothing is visible, after it everything."""
    seen = set()
    for number in range(1, 40):
        run = f"killed{number}"

        class Killed(BaseException):
            pass

        def die(call: Call, number: int = number) -> None:
            if call.total >= number:
                raise Killed

        log = JournalLog(store, run, policy=IMPATIENT)
        attempt = claim(log, writer=ME)
        dying = FaultyStore(store, on_call=die)
        attempt.use(JournalLog(dying, run, policy=IMPATIENT))
        queue = UploadQueue(dying)
        publisher = Publisher(attempt, log=JournalLog(dying, run), queue=queue, store=dying)
        pending = publisher.submit(lambda: files, label())
        died = pending.exception(20) is not None
        publisher.close()
        give_up(queue)
        catalogue = read_catalogue(JournalLog(store, run))
        contents = read_contents(store, log.layout, catalogue)
        assert contents.artifacts == ()
        assert len(catalogue.checkpoints) in (0, 1)
        for checkpoint in catalogue.checkpoints:
            assert [store.head(file.key).size_bytes for file in checkpoint.files] == [1000, 2000]
        seen.add((died, len(catalogue.checkpoints)))
        if not died:
            break
    assert (True, 0) in seen
    assert (False, 1) in seen


def test_a_file_that_is_not_there_after_its_upload_is_never_committed(
    store: Store, publish: Publish, files: list[LocalFile]
) -> None:
    def vanish(call: Call) -> None:
        if call.operation == "head":
            store.delete([call.key])

    pending = publish(FaultyStore(store, on_call=vanish)).submit(lambda: files, label())
    with pytest.raises(MissingBytesError):
        pending.result(10)
    assert steps(store) == []


def test_bytes_that_changed_since_they_were_written_are_never_committed(
    store: Store, publish: Publish, tmp_path: Path
) -> None:
    (tmp_path / "a.pt").write_bytes(b"x" * 10)
    stale = LocalFile(path="a.pt", local=tmp_path / "a.pt", size_bytes=10, sha256="0" * 64)
    with pytest.raises(DamagedError, match="changed between its writing and its upload"):
        publish(store).submit(lambda: [stale], label()).result(10)
    assert steps(store) == []


def test_a_later_attempt_writes_beside_what_an_earlier_one_may_still_be_writing(
    store: Store, publish: Publish, files: list[LocalFile], tmp_path: Path
) -> None:
    publish(store).submit(lambda: files, label()).result(10)
    log = JournalLog(store, "demo", policy=IMPATIENT)
    second = publish(store, claim(log, writer=ME, takeover=True))
    (tmp_path / "a.pt").write_bytes(b"A" * 1000)
    again = second.submit(lambda: files, label(20)).result(10)
    assert [(f.path, f.key) for f in again.files] == [
        ("checkpoints/a.pt", "demo/checkpoints/a.a2.pt"),
        ("checkpoints/b.pt", "demo/checkpoints/b.pt"),  # the same bytes: referenced, not sent again
    ]
    (tmp_path / "a.pt").write_bytes(b"!" * 1000)
    third = second.submit(lambda: files, label(30)).result(10)
    assert third.files[0].key == "demo/checkpoints/a.a2-1.pt"
    assert store.get("demo/checkpoints/a.pt") == b"a" * 1000
    assert store.get("demo/checkpoints/a.a2.pt") == b"A" * 1000


def test_equal_bytes_are_sent_once(store: Store, publish: Publish, files: list[LocalFile]) -> None:
    counting = FaultyStore(store)
    publisher = publish(counting)
    publisher.submit(lambda: files, label(10)).result(10)
    puts = counting.calls["put"]
    best = publisher.submit(lambda: files, label(20)).result(10)
    assert counting.calls["put"] - puts <= 2  # the pointer alone
    assert [file.key for file in best.files] == ["demo/checkpoints/a.pt", "demo/checkpoints/b.pt"]


def test_equal_bytes_at_another_path_are_there_for_other_tools(
    store: Store, publish: Publish, files: list[LocalFile]
) -> None:
    publisher = publish(store)
    publisher.submit(lambda: files, label(10)).result(10)
    twin = replace(files[0], path="later/a.pt")
    assert publisher.submit(lambda: [twin], label(20)).result(10).files[0].key == "demo/later/a.pt"
    assert store.get("demo/later/a.pt") == b"a" * 1000


class Scalar:
    """What NumPy's and torch's scalars are to us: no number of Python's, and one all the same."""

    def __index__(self) -> int:
        return 30

    def __float__(self) -> float:
        return 0.5


def test_numbers_of_other_libraries_become_plain_ones(store: Store, publish: Publish, files: list[LocalFile]) -> None:
    scalar: Any = Scalar()
    taken = Label(name="s", step=scalar, epoch=scalar, batch=scalar, metrics={"loss": scalar, "all": True})
    committed = publish(store).submit(lambda: files, taken).result(10)
    assert (committed.step, committed.epoch, committed.batch) == (30, 30, 30)
    assert committed.metrics == {"loss": 0.5, "all": 1.0}


@pytest.mark.parametrize(
    "wrong",
    [
        {"step": -1},
        {"step": 1.5},
        {"step": "3"},
        {"batch": 10**30},
        {"epoch": None},
        {"metrics": {"loss": "low"}},
        {"metrics": {"loss": None}},
        {"metrics": {"loss": [1, 2]}},
        {"metrics": {"loss": 10**400}},
        {"metrics": {1: 2.0}},
        {"name": ""},
        {"name": "latest"},
        {"name": "two\nlines"},
        {"name": "x" * 256},
    ],
    ids=repr,
)
def test_a_label_that_no_record_can_hold_is_refused_in_the_caller(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Label(**{"name": "s", "step": 1, "epoch": 0, "batch": 1, "metrics": {}, **wrong})
    assert caught.value.hint


def test_a_fenced_writer_publishes_nothing_and_is_told(store: Store, publish: Publish, files: list[LocalFile]) -> None:
    old = publish(store)
    claim(JournalLog(store, "demo", policy=IMPATIENT), writer=ME, takeover=True)
    with pytest.raises(RunFencedError):
        old.submit(lambda: files, label()).result(10)
    with pytest.raises(RunFencedError):
        old.submit(lambda: files, label())
    assert steps(store) == []
    assert all(isinstance(error, RunFencedError) for error in old.take_failures())
    assert old.failures() == []


def test_pending_can_be_awaited_and_cancelled(store: Store, publish: Publish, files: list[LocalFile]) -> None:
    gate, entered = threading.Event(), threading.Event()

    def slow() -> list[LocalFile]:
        entered.set()
        gate.wait(30)
        return files

    publisher = publish(store)
    first, second = publisher.submit(slow, label(10)), publisher.submit(lambda: files, label(20))
    assert entered.wait(10)
    with pytest.raises(WaitTimeoutError, match="'s10'"):
        first.result(0.01)
    assert not first.done()
    assert len(publisher.pending()) == 2
    assert second.cancel()
    gate.set()
    assert first.result(10).step == 10
    assert first.exception() is None
    with pytest.raises(NotDurableError, match="cancelled"):
        second.result(10)
    assert steps(store) == [10]


def test_what_cannot_be_a_checkpoint(store: Store, publish: Publish, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no files"):
        publish(store).submit(list, label()).result(10)
    with pytest.raises(ObjectNotFoundError):
        local_files({"a.pt": tmp_path / "missing.pt"})
    (tmp_path / "a.pt").touch()
    with pytest.raises(UnsafeKeyError):
        local_files({"../a.pt": tmp_path / "a.pt"})


def test_an_announced_key_is_no_artifact_before_its_commit(store: Store) -> None:
    log = JournalLog(store, "demo")
    store.put("demo/logs.txt", b"log")
    store.put("demo/model/weights.pt", b"half of a checkpoint")
    store.put(log.layout.intent(1, 1), b'{"keys": ["model/weights.pt", 7]}')
    store.put(log.layout.intent(1, 2), b"garbage")
    contents = read_contents(store, log.layout, read_catalogue(log))
    assert [artifact.path for artifact in contents.artifacts] == ["logs.txt"]
