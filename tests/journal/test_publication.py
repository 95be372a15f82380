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
    RemoteUnreachableError,
    RunFencedError,
    UnsafeKeyError,
    WaitTimeoutError,
)
from artifactsync.journal.attempt import Attempt, claim
from artifactsync.journal.contents import read_contents
from artifactsync.journal.log import JournalLog, read_catalogue
from artifactsync.journal.publication import Label, LocalFile, Publisher, local_files
from artifactsync.journal.retention import RetentionPolicy
from artifactsync.journal.writer import WriterIdentity
from artifactsync.stores.retry import RetryPolicy, RetryStore
from artifactsync.testing import Call, Fault, FaultyStore
from artifactsync.transfer.patience import Patience
from artifactsync.transfer.queue import UploadQueue
from tests.journal.conftest import IMPATIENT

if TYPE_CHECKING:
    from pathlib import Path

    from artifactsync.journal.pending import PendingCheckpoint
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
    return described(tmp_path)


def described(folder: Path) -> list[LocalFile]:
    return local_files({"checkpoints/a.pt": folder / "a.pt", "checkpoints/b.pt": folder / "b.pt"})


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
    again = second.submit(lambda: described(tmp_path), label(20)).result(10)
    assert [(f.path, f.key) for f in again.files] == [
        ("checkpoints/a.pt", "demo/checkpoints/a.a2.pt"),
        ("checkpoints/b.pt", "demo/checkpoints/b.pt"),  # the same bytes: referenced, not sent again
    ]
    (tmp_path / "a.pt").write_bytes(b"!" * 1000)
    third = second.submit(lambda: described(tmp_path), label(30)).result(10)
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
    first = publisher.submit(slow, label(10))
    assert entered.wait(10)
    second = publisher.submit(lambda: files, label(20))
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


class Outage:
    """A store whose writes fail while it is on, and who is told when one has."""

    def __init__(self, store: Store, *, of: str) -> None:
        self.store = FaultyStore(store, on_call=self._on_call)
        self.is_on = False
        self.puts: list[str] = []
        self.was_felt = threading.Event()
        self._of = of

    def _on_call(self, call: Call) -> None:
        if call.operation != "put":
            return
        self.puts.append(call.key)
        if self.is_on and self._of in call.key:
            self.was_felt.set()
            raise RemoteUnreachableError("the line is down", url="memory://")


@contextlib.contextmanager
def through_an_outage(
    store: Store, tmp_path: Path, *, of: str, retention: RetentionPolicy | None = None
) -> Iterator[tuple[Publisher, Outage, list[PendingCheckpoint]]]:
    """Checkpoints 1 to 5, of which the first met an outage that is over now."""
    outage = Outage(store, of=of)
    log = JournalLog(store, "demo", policy=IMPATIENT)
    patience = Patience(base_delay_s=0.01, max_delay_s=0.05)
    queue = UploadQueue(outage.store, patience=patience)
    patient = RetryStore(outage.store, RetryPolicy(max_attempts=10**6, base_delay_s=0.01, max_delay_s=0.05))
    publisher = Publisher(claim(log, writer=ME), log=log, queue=queue, store=patient, retention=retention)

    newest_began = threading.Event()

    def submit(step: int) -> PendingCheckpoint:
        def prepare() -> list[LocalFile]:
            if step == 5:
                newest_began.set()
            file = tmp_path / f"{step}.pt"
            file.write_bytes(b"%d" % step * 1000)
            return local_files({f"c/{step}-rank0.pt": file})

        return publisher.submit(prepare, label(step))

    outage.is_on = True
    pending = [submit(1)]
    assert outage.was_felt.wait(10)
    pending += [submit(step) for step in (2, 3, 5, 4)]
    assert newest_began.wait(10)
    outage.is_on = False
    try:
        yield publisher, outage, pending
    finally:
        publisher.close()
        queue.close(10)


@pytest.mark.parametrize("of", ["/intents/", "demo/c/"])
def test_after_an_outage_the_newest_becomes_durable_first(store: Store, tmp_path: Path, of: str) -> None:
    with through_an_outage(store, tmp_path, of=of) as (publisher, _outage, pending):
        assert sorted(each.result(20).step for each in pending) == [1, 2, 3, 4, 5]
    catalogue = read_catalogue(JournalLog(store, "demo"))
    assert [c.step for c in catalogue.checkpoints] == [5, 4, 3, 2, 1]  # in order of commit
    assert catalogue.latest().step == 5  # type: ignore[union-attr]
    assert all(store.get(f.key) == b"%d" % c.step * 1000 for c in catalogue.checkpoints for f in c.files)
    assert not list(store.list("demo/.artifactsync/intents/"))
    assert store.get("demo/c/latest-rank0.pt.symlink") == b"demo/c/5-rank0.pt"
    assert publisher.failures() == []


def test_what_retention_would_remove_at_once_is_not_sent_after_an_outage(store: Store, tmp_path: Path) -> None:
    keep_one = RetentionPolicy(keep_last=1)
    with through_an_outage(store, tmp_path, of="demo/c/", retention=keep_one) as (publisher, outage, pending):
        assert pending[3].result(20).step == 5
        for older in (*pending[:3], pending[4]):
            with pytest.raises(NotDurableError, match=r"'s\d' was not sent: 's5' is newer and durable"):
                older.result(20)
        assert publisher.failures() == []
        assert publisher.take_failures() == []
        assert {key for key in outage.puts if key.startswith("demo/c/")} <= {
            "demo/c/1-rank0.pt",  # while nothing newer was there
            "demo/c/5-rank0.pt",
            "demo/c/latest-rank0.pt.symlink",
        }
    assert steps(store) == [5]


def test_checkpoints_of_one_step_are_committed_as_they_were_saved(
    store: Store, publish: Publish, tmp_path: Path
) -> None:
    go_on, entered = threading.Event(), threading.Event()
    publisher = publish(store)
    (tmp_path / "f").write_bytes(b"f")

    def prepare() -> list[LocalFile]:
        entered.set()
        assert go_on.wait(20)
        return local_files({"f": tmp_path / "f"})

    pending = [publisher.submit(prepare, label(9))]
    assert entered.wait(10)
    pending += [publisher.submit(prepare, replace(label(7), name=name)) for name in "abc"]
    go_on.set()
    assert [each.result(20).seq for each in pending] == [2, 3, 4, 5]
    assert read_catalogue(JournalLog(store, "demo")).latest() == pending[0].result()


def test_no_commit_waits_for_what_nobody_needs(store: Store, publish: Publish, files: list[LocalFile]) -> None:
    line_is_back, hangs = threading.Event(), threading.Event()

    def hang(call: Call) -> None:
        if call.operation == "put" and call.key.endswith("head.json"):
            hangs.set()
            assert line_is_back.wait(30)

    publisher = publish(FaultyStore(store, on_call=hang))
    try:
        assert publisher.submit(lambda: files, label(1)).result(10).seq == 2
        assert hangs.wait(10)
        assert publisher.submit(lambda: files, label(2)).result(10).seq == 3
        publisher.close()
        assert not line_is_back.is_set()
    finally:
        line_is_back.set()


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
