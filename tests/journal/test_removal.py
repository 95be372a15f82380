"""A run removed: fenced first, never half of it seen, finished after every interruption."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from artifactsync.errors import (
    DamagedError,
    PermissionDeniedError,
    RunFencedError,
    RunIsLiveError,
    RunNotFoundError,
)
from artifactsync.journal.log import JournalLog, read_catalogue
from artifactsync.journal.opening import begin_attempt
from artifactsync.journal.removal import plan_removal, remove_run
from artifactsync.journal.runs import list_runs
from artifactsync.journal.verification import verify
from artifactsync.run import Run
from artifactsync.stores import open_store
from artifactsync.stores.unfinished import list_unfinished
from artifactsync.testing import Fault, FaultyStore
from tests.journal.test_copying import Killed, make_run

if TYPE_CHECKING:
    from pathlib import Path

    from artifactsync.stores.protocol import Store
    from artifactsync.testing.fault_plan import Call


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "remote")


def remove(store: Store) -> int:
    return remove_run(store, JournalLog(store, "demo")).deleted_keys


def test_nothing_is_left_and_nothing_else_is_touched(store: Store, tmp_path: Path) -> None:
    make_run(store, tmp_path)
    make_run(store, tmp_path, name="demo2")
    others = [info.key for info in store.list("demo2/")]
    planned = plan_removal(store, JournalLog(store, "demo"))
    gone: list[int] = []
    report = remove_run(store, JournalLog(store, "demo"), on_progress=gone.append)
    assert [info.key for info in store.list()] == others
    assert (planned.removed, report.removed, report.checkpoints) == (False, True, 3)
    assert report.deleted_keys >= planned.deleted_keys > 6
    assert sum(gone) == report.freed_bytes > 96_000
    assert store.list_folders() == ["demo2"]
    with pytest.raises(RunNotFoundError):
        remove(store)
    make_run(store, tmp_path)  # the name is free again
    assert [run.run_name for run in list_runs(store)] == ["demo", "demo2"]


def test_a_live_run_is_not_removed(store: Store, tmp_path: Path) -> None:
    with Run("demo", remote=store, local_root=tmp_path) as run:
        before = [info.key for info in store.list() if "/probe/" not in info.key]
        with pytest.raises(RunIsLiveError, match="in use"):
            remove(store)
        assert set(before) <= {info.key for info in store.list()}
        run.finish()


@pytest.mark.parametrize("operation", ["delete"])
def test_a_role_that_may_not_delete_changes_nothing(store: Store, tmp_path: Path, operation: str) -> None:
    make_run(store, tmp_path)
    before = {info.key: store.get(info.key) for info in store.list() if "/probe/" not in info.key}
    with pytest.raises(PermissionDeniedError, match="nothing was removed") as caught:
        remove(FaultyStore(store, [Fault(kind="permission", operations=(operation,))]))
    assert caught.value.exit_code == 6
    assert {key: store.get(key) for key in before} == before
    assert len(read_catalogue(JournalLog(store, "demo")).checkpoints) == 3


def test_whichever_call_is_the_last_nobody_sees_half_and_it_can_be_repeated(tmp_path: Path) -> None:
    made = tmp_path / "made"
    make_run(open_store(made / "remote"), made)
    points = 0
    for last in range(1, 200):
        shutil.copytree(made / "remote", tmp_path / str(last))
        store = open_store(tmp_path / str(last))

        def kill(call: Call, last: int = last) -> None:
            if call.total >= last:
                raise Killed

        try:
            remove(FaultyStore(store, on_call=kill))
        except Killed:
            points += 1
        else:
            break
        log = JournalLog(store, "demo")
        catalogue = read_catalogue(log)
        assert len(catalogue.checkpoints) in (0, 3)
        assert verify(store, "demo", catalogue, deep=True).ok
        assert [run.checkpoints for run in list_runs(store)] in ([len(catalogue.checkpoints)], [])
        with Run("demo", remote=store, read_only=True, local_root=tmp_path) as run:
            assert run.latest() == catalogue.latest()
        if store.list_folders():
            remove(store)
        assert list(store.list()) == []
    print(f"rm kill points: {points} calls: 0 partial, 0 not finished")
    assert points > 15


def test_a_writer_that_slept_is_fenced_before_anything_goes(store: Store, tmp_path: Path) -> None:
    make_run(store, tmp_path)
    log = JournalLog(store, "demo")
    asleep = begin_attempt(store, log, takeover=False, allow_unfenced=False)
    fenced = 0

    def wake(call: Call) -> None:
        nonlocal fenced
        if call.operation == "delete" and not call.key.startswith((log.layout.journal, log.layout.probes)):
            with pytest.raises(RunFencedError):
                asleep.finish("completed")
            fenced += 1

    # The sleeper is of this process, which is alive: its claim has to be taken from it first.
    begin_attempt(store, log, takeover=True, allow_unfenced=False).finish("failed")
    remove(FaultyStore(store, on_call=wake))
    assert fenced
    assert list(store.list()) == []


def test_a_run_that_is_being_removed_takes_no_claim(store: Store, tmp_path: Path) -> None:
    make_run(store, tmp_path)

    def kill(call: Call) -> None:
        if call.operation == "delete" and "/probe/" not in call.key:
            raise Killed

    with pytest.raises(Killed):
        remove(FaultyStore(store, on_call=kill))
    with pytest.raises(RunIsLiveError, match="being removed"):
        begin_attempt(store, JournalLog(store, "demo"), takeover=True, allow_unfenced=False)
    remove(store)


@pytest.mark.parametrize("damage", ["hole", "newest", "middle"])
def test_a_damaged_run_can_be_removed(store: Store, tmp_path: Path, damage: str) -> None:
    make_run(store, tmp_path)
    records = [info.key for info in store.list("demo/.artifactsync/journal/")]
    if damage == "hole":
        store.delete(records[1:2])
    else:
        store.put(records[-1 if damage == "newest" else 1], b"{}")
    store.delete(["demo/.artifactsync/heartbeat.json"])  # it would say that its writer, this process, is alive
    with pytest.raises(DamagedError):
        read_catalogue(JournalLog(store, "demo"))
    remove(store)
    assert list(store.list()) == []


def test_files_without_a_journal_are_a_run_too(store: Store) -> None:
    store.put("demo/notes.md", b"mine")
    assert remove(store) == 1
    assert list(store.list()) == []


def test_unfinished_uploads_go_too(s3, tmp_path: Path) -> None:
    store = open_store(s3.fresh_url(), s3.storage_options)
    make_run(store, tmp_path, steps=(1,))
    inner = store
    while hasattr(inner, "store"):
        inner = inner.store
    prefix = getattr(store, "prefix", "")
    inner._boto().create_multipart_upload(Bucket=inner._bucket, Key=f"{prefix}demo/checkpoints/huge.pt")
    assert len(list_unfinished(store, "demo/")) == 1
    remove(store)
    assert list_unfinished(store, "demo/") == []
    assert list(store.list()) == []
