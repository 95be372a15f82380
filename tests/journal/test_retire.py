from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from artifactsync.errors import ConfigurationError, DamagedError, RunFencedError, UnsafeKeyError
from artifactsync.journal import pins
from artifactsync.journal.attempt import claim
from artifactsync.journal.catalogue import Retirement
from artifactsync.journal.log import JournalLog
from artifactsync.journal.pins import PinKeeper
from artifactsync.journal.record import Kind, Record
from artifactsync.journal.retention import RetentionPolicy
from artifactsync.journal.retire import PruneReport, prune
from artifactsync.journal.runs import list_runs
from artifactsync.run import Run
from artifactsync.testing import Call, Fault, FaultyStore
from tests.journal.conftest import IMPATIENT
from tests.journal.test_attempt import ME
from tests.journal.test_catalogue import fold, record, saved
from tests.journal.test_record import commit as commit_record

if TYPE_CHECKING:
    from artifactsync.stores.protocol import Store

GOLDEN = Path(__file__).with_name("golden_retire.json")
ONE = RetentionPolicy(keep_last=1)


def save(run: Run, step: int, *contents: bytes) -> None:
    files = {}
    for content in contents:
        local = run.local_dir / f"{hashlib.sha256(content).hexdigest()[:8]}"
        local.write_bytes(content)
        files[f"c/{content.decode()}.pt"] = local  # equal bytes are referenced where their path is equal too
    run.save_files(files, step=step, name=f"s{step}").result(20)


def data_keys(store: Store) -> set[str]:
    return {info.key for info in store.list("demo/") if "/.artifactsync/" not in info.key}


def beside(store: Store, policy: RetentionPolicy = ONE, **more: Any) -> PruneReport:
    return prune(store, JournalLog(store, "demo", policy=IMPATIENT), policy, **more)


@pytest.fixture
def run(store: Store, tmp_path: Path) -> Run:
    opened = Run("demo", remote=store, local_root=tmp_path)
    for step in (10, 20, 30):
        save(opened, step, b"a%d" % step, b"shared")
    return opened


@pytest.mark.parametrize("who", ["the writer", "somebody else"])
def test_a_prune_keeps_what_is_wanted_and_no_more(run: Run, store: Store, tmp_path: Path, who: str) -> None:
    other = run if who == "the writer" else Run("demo", remote=store, local_root=tmp_path, read_only=True)
    planned = other.prune(ONE, dry_run=True)
    assert planned.dry_run
    assert len(run.checkpoints()) == 3
    report = other.prune(ONE)
    assert report.to_json() == {**planned.to_json(), "dry_run": False}
    assert report.to_json() == {
        "run_name": "demo",
        "kept": ["s30"],
        "retired": ["s10", "s20"],
        "deleted_keys": 2,
        "freed_bytes": 6,
        "pinned_keys": 0,
        "orphans": [],
        "aborted_uploads": 0,
        "dry_run": False,
    }
    assert data_keys(store) == {"demo/c/shared.pt", "demo/c/a30.pt"}  # the shared file lies where it was first
    assert run.verify(deep=True).ok
    assert other.prune(ONE).to_json()["deleted_keys"] == 0
    save(run, 40, b"a40")  # the writer goes on
    run.close()
    assert [c.name for c in Run("demo", remote=store, local_root=tmp_path, read_only=True).checkpoints()] == [
        "s30",
        "s40",
    ]


def test_a_retire_record_does_not_fence_the_writer(run: Run, store: Store) -> None:
    beside(store)
    head = JournalLog(store, "demo").find_head()
    assert head
    assert (head.record.kind, head.record.attempt) == (Kind.RETIRE, 1)
    assert head.record.body["names"] == ["s10", "s20"]
    assert head.record.body["keys"] == ["c/a10.pt", "c/a20.pt"]
    save(run, 40, b"a40")
    latest = run.latest()
    assert latest
    assert latest.name == "s40"
    run.close()


@pytest.mark.parametrize("is_deleted", [True, False])
def test_bytes_that_a_prune_gives_up_are_sent_again(run: Run, store: Store, *, is_deleted: bool) -> None:
    """The writer means to reference a committed file; the prune's record is there before its commit."""
    raced = []

    def prune_before_the_commit(call: Call) -> None:
        if call.operation == "put_if_absent" and not raced:
            raced.append(call)
            gate = store if is_deleted else FaultyStore(store, [Fault(kind="permission", operations={"delete"})])
            try:
                beside(gate, orphans_age_s=None)
            except PermissionError:
                assert not is_deleted

    racing = FaultyStore(store, on_call=prune_before_the_commit)
    run._attempt.use(JournalLog(racing, "demo", policy=IMPATIENT))  # type: ignore[union-attr]
    save(run, 40, b"a10", b"new")
    assert raced
    latest = run.latest()
    assert latest
    assert {f.key for f in latest.files} == {"demo/c/a10.a1-1.pt", "demo/c/new.pt"}
    beside(store)
    assert run.verify(deep=True).ok
    assert [c.name for c in run.checkpoints()] == ["s40"]
    run.close()


def test_a_prune_that_loses_the_slot_to_a_commit_chooses_anew(run: Run, store: Store) -> None:
    raced = []

    def commit_before_the_record(call: Call) -> None:
        if call.operation == "put_if_absent" and not raced:
            raced.append(call)
            save(run, 40, b"a20", b"new")  # references what the prune is about to give up

    report = beside(FaultyStore(store, on_call=commit_before_the_record))
    assert raced
    assert report.kept == ("s40",)
    assert "demo/c/a20.pt" in data_keys(store)
    assert run.verify(deep=True).ok
    run.close()


def test_a_prune_that_dies_after_its_record_is_finished_by_the_next(run: Run, store: Store) -> None:
    dying = FaultyStore(store, [Fault(kind="permission", operations={"delete"})])
    with pytest.raises(PermissionError):
        beside(dying)
    assert [c.name for c in run.checkpoints()] == ["s30"]
    assert "demo/c/a10.pt" in data_keys(store)
    assert run.contents().artifacts == ()  # and nobody sees its bytes as artifacts
    report = beside(store)
    assert (report.retired, report.deleted_keys) == ((), 2)
    assert data_keys(store) == {"demo/c/shared.pt", "demo/c/a30.pt"}
    run.close()


def test_what_is_pinned_stays_until_the_next_prune(run: Run, store: Store) -> None:
    keeper = PinKeeper(store, JournalLog(store, "demo").layout)
    keeper.pin(run.checkpoints()[0].seq)
    report = beside(store)
    assert (report.deleted_keys, report.pinned_keys) == (1, 1)
    assert store.get("demo/c/a10.pt") == b"a10"
    keeper.release()
    assert beside(store).deleted_keys == 1
    run.close()


def test_a_pull_pins_and_releases(run: Run, store: Store, tmp_path: Path) -> None:
    pulled = []

    def prune_meanwhile(_: object) -> None:
        if not pulled:
            pulled.append([pin.commit for pin in pins.read_pins(store, run._layout)])
            save(run, 40, b"a40")
            assert beside(store).pinned_keys == 2

    report = run.pull(tmp_path / "there", checkpoint="s30", on_plan=prune_meanwhile)
    assert pulled == [[4]]
    assert report.checkpoint == "s30"
    assert (tmp_path / "there" / "c" / "a30.pt").read_bytes() == b"a30"
    assert pins.read_pins(store, run._layout) == []
    assert beside(store).deleted_keys == 2
    run.close()


def test_a_pull_whose_checkpoint_is_retired_under_it_chooses_anew(run: Run, store: Store, tmp_path: Path) -> None:
    done = []

    def prune_at_the_pin(call: Call) -> None:
        if call.operation == "put" and "/pins/" in call.key and not done:
            done.append(call)
            save(run, 40, b"a40")
            beside(store)

    reader = Run("demo", remote=FaultyStore(store, on_call=prune_at_the_pin), local_root=tmp_path, read_only=True)
    report = reader.pull(tmp_path / "there")
    assert (report.checkpoint, report.fallback_from) == ("s40", None)
    run.close()


def test_a_role_without_put_pulls_all_the_same(run: Run, store: Store, tmp_path: Path) -> None:
    run.close()
    no_put = FaultyStore(store, [Fault(kind="permission", operations={"put", "put_if_absent", "delete"})])
    reader = Run("demo", remote=no_put, local_root=tmp_path / "x", read_only=True)
    assert reader.pull(tmp_path / "there").checkpoint == "s30"


def test_without_a_pin_a_pull_that_loses_its_files_goes_on_with_what_is_there(
    run: Run, store: Store, tmp_path: Path
) -> None:
    no_put = FaultyStore(store, [Fault(kind="permission", operations={"put", "delete"})])
    reader = Run("demo", remote=no_put, local_root=tmp_path / "x", read_only=True)

    def prune_meanwhile(_: object) -> None:
        if len(run.checkpoints()) > 1:
            save(run, 40, b"a40")
            beside(store)

    report = reader.pull(tmp_path / "there", on_plan=prune_meanwhile)
    assert (report.checkpoint, report.fallback_from) == ("s40", None)  # retired is not damaged
    run.close()


def test_a_finished_run_stays_finished(run: Run, store: Store) -> None:
    run.finish("preempted")
    beside(store)
    assert [(s.state, s.checkpoints, s.last_step) for s in list_runs(store)] == [("preempted", 1, 30)]
    run.close()
    with pytest.raises(ConfigurationError, match="finished"):
        run._attempt.commit(name="x", step=1, epoch=0, batch=1, metrics={}, files=[])  # type: ignore[union-attr]
    assert JournalLog(store, "demo").read_catalogue().finished == "preempted"


def test_a_running_run_stays_running_after_a_prune_by_somebody_else(run: Run, store: Store) -> None:
    beside(store)
    assert [s.state for s in list_runs(store)] == ["running"]
    run.close()


def test_a_fenced_writer_retires_nothing(run: Run, store: Store) -> None:
    claim(JournalLog(store, "demo", policy=IMPATIENT), writer=ME, takeover=True)
    with pytest.raises(RunFencedError):
        run.prune(ONE)
    assert len(run.checkpoints()) == 3
    assert len(data_keys(store)) == 4
    with pytest.raises(RunFencedError):
        run.close()


def test_retention_behind_the_training_loop(store: Store, tmp_path: Path) -> None:
    with Run("demo", remote=store, local_root=tmp_path, retention=RetentionPolicy(keep_last=2)) as run:
        for step in range(10, 60, 10):
            save(run, step, b"a%d" % step)
        run.wait(20)
        assert [c.step for c in run.checkpoints()] == [40, 50]
        assert len(data_keys(store)) == 2


def test_retention_that_fails_is_no_failure_of_the_checkpoint(store: Store, tmp_path: Path) -> None:
    locked = FaultyStore(store, [Fault(kind="permission", operations={"delete"}, keys="demo/c/*")])
    with Run("demo", remote=locked, local_root=tmp_path, retention=ONE) as run:
        save(run, 10, b"a")
        save(run, 20, b"b")
    assert [c.step for c in Run("demo", remote=store, local_root=tmp_path, read_only=True).checkpoints()] == [20]
    assert len(data_keys(store)) == 2


@pytest.mark.parametrize(
    "key", ["../other/x", "/etc/passwd", ".artifactsync/journal/00000000000000000001.json", "a//b"]
)
def test_a_hostile_retire_record_deletes_nothing_outside(key: str) -> None:
    with pytest.raises(UnsafeKeyError):
        fold(saved(1, 1, 10), saved(2, 1, 20), record(3, 1, Kind.RETIRE, commits=[1], keys=[key]))


@pytest.mark.parametrize("body", [{"commits": 7}, {"commits": [[1]]}, {"keys": [7]}, {"keys": None}])
def test_a_malformed_retire_record_is_damage(body: dict[str, object]) -> None:
    with pytest.raises(DamagedError):
        fold(saved(1, 1, 10), record(2, 1, Kind.RETIRE, **body))


def test_a_key_that_a_live_checkpoint_references_is_never_deleted(run: Run, store: Store) -> None:
    """Even if a retire record of somebody else's making names it."""
    log = JournalLog(store, "demo", policy=IMPATIENT)
    head = log.find_head()
    assert head
    body = {"commits": [], "names": [], "keys": ["c/a30.pt", "c/a10.pt"]}
    log.append(head, kind=Kind.RETIRE, attempt=1, writer=ME, body=body, totals=head.record.totals)
    beside(store)
    assert store.get("demo/c/a30.pt") == b"a30"
    run.close()


def golden() -> Record:
    return commit_record(
        kind=Kind.RETIRE,
        seq=8,
        body={
            "commits": [3, 5],
            "names": ["ep1-ba100", "ep2-ba200"],
            "keys": ["checkpoints/ep1-ba100-rank0.pt", "checkpoints/ep2-ba200-rank0.a2.pt"],
            "owner": {"host": "trainer-7", "pid": 4242},
            "finished": "",
        },
    )


def test_the_format_of_a_retire_record_is_frozen_by_a_golden_file() -> None:
    data = GOLDEN.read_bytes()
    assert golden().encode() == data
    retirement = Retirement.from_record(Record.decode(data, url="x"), run_name="demo", url="x")
    assert retirement.commits == {3, 5}
    assert retirement.keys == {"demo/checkpoints/ep1-ba100-rank0.pt", "demo/checkpoints/ep2-ba200-rank0.a2.pt"}
