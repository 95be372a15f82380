"""A run copied between stores: whole, in order, continued after every interruption."""

from __future__ import annotations

import hashlib
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from artifactsync.errors import (
    ConfigurationError,
    DamagedError,
    DestinationError,
    PermissionDeniedError,
    RunIsLiveError,
    RunNotFoundError,
)
from artifactsync.journal import index as index_module
from artifactsync.journal.catalogue import CheckpointFile
from artifactsync.journal.copying import copy_run
from artifactsync.journal.index import Pack
from artifactsync.journal.log import JournalLog, read_catalogue
from artifactsync.journal.opening import begin_attempt
from artifactsync.journal.runs import list_runs
from artifactsync.journal.verification import verify
from artifactsync.run import Run
from artifactsync.stores import open_store
from artifactsync.testing import Fault, FaultyStore
from artifactsync.transfer.relay import RelayBody

if TYPE_CHECKING:
    from pathlib import Path

    from artifactsync.stores.protocol import Store
    from artifactsync.testing.fault_plan import Call


class Killed(BaseException):
    """The process is gone."""


@pytest.fixture
def source(tmp_path: Path) -> Store:
    return open_store(tmp_path / "source")


@pytest.fixture
def target(tmp_path: Path) -> Store:
    return open_store(tmp_path / "target")


def make_run(store: Store, tmp_path: Path, *, steps: tuple[int, ...] = (1, 2, 3), name: str = "demo") -> None:
    with Run(name, remote=store, local_root=tmp_path / "trainer") as run:
        for step in steps:
            file = run.local_dir / f"checkpoints/ep{step}.pt"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(hashlib.sha256(bytes([step])).digest() * 1000)
            run.save_files([file], step=step, epoch=step).result(30)
        log = run.local_dir / "logs-rank0.txt"
        log.write_text("one\ntwo\n")
        run.push(log).result(30)


def retire_first(store: Store) -> None:
    """Give the first checkpoint up, and delete its bytes."""
    attempt = begin_attempt(store, JournalLog(store, "demo"), takeover=False, allow_unfenced=False)
    first = attempt.catalogue.checkpoints[0]
    keys = [file.key for file in first.files]
    attempt.retire(
        lambda _: {"commits": [first.seq], "names": [first.name], "keys": [key.partition("/")[2] for key in keys]}
    )
    attempt.finish("completed")
    store.delete(keys)


def objects(store: Store, *, but: tuple[str, ...] = ("heartbeat.json", "head.json")) -> dict[str, bytes]:
    keys = [info.key for info in store.list("demo/") if not info.key.endswith(but) and "/probe/" not in info.key]
    return {key: store.get(key) for key in keys}


def test_everything_arrives_and_the_journal_is_the_same(source: Store, target: Store, tmp_path: Path) -> None:
    make_run(source, tmp_path)
    retire_first(source)
    moved: list[int] = []
    plans: list[tuple[int, int]] = []
    report = copy_run(source, target, "demo", on_plan=lambda *plan: plans.append(plan), on_progress=moved.append)
    assert objects(target) == objects(source)
    assert read_catalogue(JournalLog(target, "demo")) == read_catalogue(JournalLog(source, "demo"))
    assert verify(target, "demo", read_catalogue(JournalLog(target, "demo")), deep=True).ok
    assert (report.checkpoints, report.files, report.skipped_files) == (2, 3, 0)
    assert plans == [(report.files, report.bytes)]
    assert sum(moved) == report.bytes
    assert report.to_json()["verified"] is True


def test_a_second_copy_moves_nothing_and_a_run_that_went_on_is_brought_up_to_date(
    source: Store, target: Store, tmp_path: Path
) -> None:
    make_run(source, tmp_path)
    copy_run(source, target, "demo")
    again = copy_run(source, target, "demo")
    assert again.skipped_files == again.files
    make_run(source, tmp_path, steps=(4, 5))
    later = copy_run(source, target, "demo")
    assert later.skipped_files == again.files
    assert objects(target) == objects(source)


def what_is_seen(store: Store) -> list[str]:
    """The checkpoints that a reader sees, each of which must be whole."""
    catalogue = read_catalogue(JournalLog(store, "demo"))
    listed = [run.checkpoints for run in list_runs(store)]
    assert listed == [len(catalogue.checkpoints)] or not (listed or catalogue.checkpoints)
    assert verify(store, "demo", catalogue, deep=True).ok
    with Run("demo", remote=store, read_only=True, local_root="/nowhere") as run:
        latest = run.latest()
        shown = [artifact.path for artifact in run.artifacts()]
    assert latest == catalogue.latest()
    assert not [path for path in shown if path.endswith(".pt")]
    return [checkpoint.name for checkpoint in catalogue.checkpoints]


@pytest.mark.parametrize("had_a_part", [False, True])
def test_whichever_call_is_the_last_the_target_shows_what_it_showed_before_or_all(
    tmp_path: Path, *, had_a_part: bool
) -> None:
    made = tmp_path / "made"
    source, before = open_store(made / "source"), []
    make_run(source, made)
    if had_a_part:
        copy_run(source, open_store(made / "target"), "demo")
        before = what_is_seen(open_store(made / "target"))
        make_run(source, made, steps=(4,))
    retire_first(source)
    wanted = [checkpoint.name for checkpoint in read_catalogue(JournalLog(source, "demo")).checkpoints]
    points = 0
    for last in range(1, 200):
        folder = tmp_path / str(last)
        if had_a_part:
            shutil.copytree(made / "target", folder / "target")
        target = open_store(folder / "target")

        def kill(call: Call, last: int = last) -> None:
            if call.total >= last:
                raise Killed

        try:
            copy_run(source, FaultyStore(target, on_call=kill), "demo")
        except Killed:
            points += 1
        else:
            break
        seen = what_is_seen(target)
        assert seen in (before, wanted), last
        copy_run(source, target, "demo")
        assert what_is_seen(target) == wanted
        retired = read_catalogue(JournalLog(source, "demo")).retired_keys  # a prune there deletes them
        assert {key: data for key, data in objects(target).items() if key not in retired} == objects(source)
    print(f"cp kill points: {points} calls, part at target: {had_a_part}: 0 partial, 0 not continued")
    assert points > 15


def test_a_lost_answer_anywhere_costs_nothing(tmp_path: Path) -> None:
    for number in range(1, 200):
        folder = tmp_path / str(number)
        source, target = open_store(folder / "source"), open_store(folder / "target")
        make_run(source, folder)
        faulty = FaultyStore(target, [Fault(kind="lost-response", calls={number}, operations=("put_if_absent",))])
        copy_run(source, faulty, "demo")
        assert objects(target) == objects(source)
        if not faulty.faults_hit:
            break
    assert number > 5


def test_damaged_bytes_stop_the_copy_before_anything_of_it_is_seen(
    source: Store, target: Store, tmp_path: Path
) -> None:
    make_run(source, tmp_path)
    key = "demo/checkpoints/ep2.pt"
    data = source.get(key)
    source.put(key, data[:-1] + b"\0")
    with pytest.raises(DamagedError, match=r"ep2\.pt"):
        copy_run(source, target, "demo")
    assert what_is_seen(target) == []
    source.delete([key])
    with pytest.raises(DamagedError, match="missing at the source"):
        copy_run(source, target, "demo")
    source.put(key, data)
    copy_run(source, target, "demo")
    assert objects(target) == objects(source)


def test_a_bit_that_flips_on_the_way_is_sent_again(source: Store, target: Store, tmp_path: Path) -> None:
    make_run(source, tmp_path)
    faulty = FaultyStore(source, [Fault(kind="flipped-bit", operations=("get",), keys="*/checkpoints/*", times=2)])
    copy_run(faulty, target, "demo")
    assert objects(target) == objects(source)


def test_damage_at_the_target_is_repaired(source: Store, target: Store, tmp_path: Path) -> None:
    make_run(source, tmp_path)
    copy_run(source, target, "demo")
    key = "demo/checkpoints/ep2.pt"
    target.put(key, bytes(len(target.get(key))))
    assert copy_run(source, target, "demo").skipped_files == 3
    assert objects(target) == objects(source)


def test_another_run_at_the_target_is_refused_and_left_alone(source: Store, target: Store, tmp_path: Path) -> None:
    make_run(source, tmp_path / "one")
    make_run(target, tmp_path / "two")
    before = objects(target, but=())
    with pytest.raises(DestinationError, match="another run of that name"):
        copy_run(source, target, "demo")
    assert objects(target, but=()) == before


def test_a_copy_that_went_on_by_itself_is_refused(source: Store, target: Store, tmp_path: Path) -> None:
    make_run(source, tmp_path)
    copy_run(source, target, "demo")
    make_run(target, tmp_path, steps=(9,))
    with pytest.raises(DestinationError, match="went on there"):
        copy_run(source, target, "demo")


def test_strange_files_at_the_target_are_refused_and_left_alone(source: Store, target: Store, tmp_path: Path) -> None:
    make_run(source, tmp_path)
    target.put("demo/notes.md", b"mine")
    with pytest.raises(DestinationError, match=r"notes\.md"):
        copy_run(source, target, "demo")
    target.delete(["demo/notes.md"])
    target.put("demo/checkpoints/ep1.pt", bytes(32_000))  # as long as ours
    with pytest.raises(DestinationError, match="other bytes"):
        copy_run(source, target, "demo")
    assert target.get("demo/checkpoints/ep1.pt") == bytes(32_000)


def test_a_run_of_files_alone_is_copied(source: Store, target: Store) -> None:
    source.put("demo/notes.md", b"mine")
    source.put("demo/plots/empty", b"")
    assert copy_run(source, target, "demo").files == 2
    assert objects(target) == objects(source)


def test_what_is_not_there_and_what_is_the_same_place(source: Store, target: Store) -> None:
    with pytest.raises(RunNotFoundError):
        copy_run(source, target, "demo")
    with pytest.raises(ConfigurationError, match="the same"):
        copy_run(source, source, "demo")


def test_a_live_run_is_copied_up_to_the_head_that_was_read(source: Store, target: Store, tmp_path: Path) -> None:
    with Run("demo", remote=source, local_root=tmp_path / "trainer") as run:
        run.local_dir.mkdir(parents=True, exist_ok=True)

        def save(step: int) -> None:
            file = run.local_dir / f"{step}.pt"
            file.write_bytes(bytes([step]) * 1000)
            run.save_files([file], step=step).result(30)

        save(1)
        began = False

        def save_meanwhile(_: int) -> None:
            nonlocal began
            if not began:
                began = True
                save(2)

        copy_run(source, target, "demo", on_progress=save_meanwhile)
        assert what_is_seen(target) == ["ep0-ba1"]
        copy_run(source, target, "demo")
        assert what_is_seen(target) == ["ep0-ba1", "ep0-ba2"]


def test_a_prune_that_overtakes_the_copy_is_followed(source: Store, target: Store, tmp_path: Path) -> None:
    make_run(source, tmp_path)
    overtaken = False

    def prune(call: Call) -> None:
        nonlocal overtaken
        if call.operation == "get" and call.key.endswith("ep1.pt") and not overtaken:
            overtaken = True
            retire_first(source)

    copy_run(FaultyStore(source, on_call=prune), target, "demo")
    assert overtaken
    assert what_is_seen(target) == ["ep2-ba2", "ep3-ba3"]


def test_a_half_copied_journal_takes_no_claim(source: Store, target: Store, tmp_path: Path) -> None:
    make_run(source, tmp_path)

    def kill(call: Call) -> None:
        if call.operation == "put_if_absent" and call.key.endswith("3.json"):
            raise Killed

    with pytest.raises(Killed):
        copy_run(source, FaultyStore(target, on_call=kill), "demo")
    with pytest.raises(RunIsLiveError, match="being copied to here"):
        begin_attempt(target, JournalLog(target, "demo"), takeover=True, allow_unfenced=False)
    copy_run(source, target, "demo")
    assert begin_attempt(target, JournalLog(target, "demo"), takeover=False, allow_unfenced=False).number == 2


def test_a_claim_at_the_target_ends_the_copy(source: Store, target: Store, tmp_path: Path) -> None:
    make_run(source, tmp_path)
    claimed: list[Any] = []

    def claim(call: Call) -> None:
        if call.operation == "put" and call.key.endswith("head.json") and not claimed:
            claimed.append(begin_attempt(target, JournalLog(target, "demo"), takeover=False, allow_unfenced=False))

    with pytest.raises(DestinationError, match="claimed the run"):
        copy_run(source, FaultyStore(target, on_call=claim), "demo")
    file = CheckpointFile(path="a.pt", key="demo/a.pt", size=1, sha256="0" * 64)
    claimed[0].commit(name="a", step=1, epoch=0, batch=1, metrics={}, files=[file])
    assert [c.name for c in read_catalogue(JournalLog(target, "demo")).checkpoints] == ["a"]


def test_an_object_goes_through_in_a_bounded_number_of_chunks(tmp_path: Path) -> None:
    class Counted:
        """A source that counts what is asked for before it is used."""

        url = "counted://"
        asked_bytes = 0

        def get(self, key: str, *, start: int = 0, end: int | None = None) -> bytes:
            assert end is not None
            self.asked_bytes += end - start
            return bytes(end - start)

    source = Counted()
    used_bytes = 0
    for chunk in RelayBody(source, "k", 1000, sha256=hashlib.sha256(bytes(1000)).hexdigest()).chunks(10):  # type: ignore[arg-type]
        used_bytes += len(chunk)
        assert source.asked_bytes <= used_bytes + 10
    assert used_bytes == 1000


@pytest.mark.parametrize(("one", "other"), [("s3", "gcs"), ("gcs", "s3")])
def test_between_clouds(request: pytest.FixtureRequest, tmp_path: Path, one: str, other: str) -> None:
    stores = []
    for name in (one, other):
        cloud = request.getfixturevalue(name)
        stores.append(open_store(cloud.fresh_url(), cloud.storage_options))
    source, target = stores
    make_run(source, tmp_path, steps=(1,))
    big = tmp_path / "big"
    big.write_bytes(bytes(range(256)) * (20 * 4096))  # in several parts
    with Run("demo", remote=source, local_root=tmp_path / "trainer") as run:
        run.save_files({"big.pt": big}, step=2).result(60)
        source_sees = run.latest()
        copy_run(source, target, "demo")
    assert read_catalogue(JournalLog(target, "demo")).latest() == source_sees
    assert verify(target, "demo", read_catalogue(JournalLog(target, "demo")), deep=True).ok


def test_the_packs_of_a_long_run_come_along_if_they_are_good(
    source: Store, target: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_module, "BASE", 3)
    monkeypatch.setattr(index_module, "FAN", 3)
    make_run(source, tmp_path, steps=tuple(range(1, 20)))
    there, here = JournalLog(source, "demo"), JournalLog(target, "demo")
    whole, wrong = Pack(1, 9), Pack(10, 18)
    source.put(wrong.key(there.layout), b"x" + source.get(wrong.key(there.layout))[1:])
    copy_run(source, target, "demo")
    packs = here.index.packs()
    assert whole in packs
    assert target.get(whole.key(here.layout)) == source.get(whole.key(there.layout))
    assert wrong not in packs
    assert here.bad_packs() == []
    assert here.read_catalogue() == read_catalogue(there)


def test_a_copy_whose_packs_cannot_be_written_is_whole(
    source: Store, target: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_module, "BASE", 3)
    make_run(source, tmp_path, steps=tuple(range(1, 9)))

    def refuse(call: Call) -> None:
        if call.operation == "put" and "/index/" in call.key:
            raise PermissionDeniedError("no packs here")

    copy_run(source, FaultyStore(target, on_call=refuse), "demo")
    assert JournalLog(target, "demo").index.packs() == {}
    assert read_catalogue(JournalLog(target, "demo")) == read_catalogue(JournalLog(source, "demo"))
