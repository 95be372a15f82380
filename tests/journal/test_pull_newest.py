"""Pulling the latest checkpoint alone reads the newest record, and more only where that checkpoint is no good."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from artifactsync import Run
from artifactsync.errors import DamagedError
from artifactsync.journal.retention import RetentionPolicy
from artifactsync.testing import Call, FaultyStore

if TYPE_CHECKING:
    from pathlib import Path

    from artifactsync.journal.log import JournalLog
    from artifactsync.stores.protocol import Store


def make_run(store: Store, folder: Path, checkpoints: int) -> None:
    with Run("demo", remote=store, local_root=folder) as run:
        for step in range(1, checkpoints + 1):
            path = run.local_dir / f"checkpoints/{step}.pt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"%04d" % step)
            run.save_files([path], step=step).result(30)


@pytest.mark.parametrize("checkpoints", [2, 120])
def test_as_few_requests_however_long_the_run(store: Store, tmp_path: Path, checkpoints: int) -> None:
    make_run(store, tmp_path / "here", checkpoints)
    counting = FaultyStore(store)
    report = Run("demo", remote=counting, read_only=True).pull(tmp_path / "out", only="checkpoints")
    assert (report.checkpoint, report.files) == (f"ep0-ba{checkpoints}", 1)
    assert (tmp_path / f"out/checkpoints/{checkpoints}.pt").read_bytes() == b"%04d" % checkpoints
    # the newest record; the pin, and the newest record once more behind it; the file; the pin's end
    assert counting.calls.total() == 9


@pytest.mark.parametrize("spoilt", [b"9999", None], ids=["other bytes", "gone"])
def test_a_damaged_newest_one_has_the_journal_read(store: Store, tmp_path: Path, spoilt: bytes | None) -> None:
    make_run(store, tmp_path / "here", 3)
    key = "demo/checkpoints/3.pt"
    store.delete([key])
    if spoilt:
        store.put(key, spoilt)
    run = Run("demo", remote=store, read_only=True)
    report = run.pull(tmp_path / "out", only="checkpoints")
    assert (report.checkpoint, report.fallback_from) == ("ep0-ba2", "ep0-ba3")
    assert (tmp_path / "out/checkpoints/2.pt").read_bytes() == b"0002"
    assert run.pull(tmp_path / "dry", only="checkpoints", dry_run=True).checkpoint == "ep0-ba3"
    store.delete(["demo/checkpoints/2.pt", "demo/checkpoints/1.pt"])
    with pytest.raises(DamagedError):
        run.pull(tmp_path / "none", only="checkpoints")


def test_one_that_is_retired_while_it_is_chosen_gives_way(store: Store, log: JournalLog, tmp_path: Path) -> None:
    make_run(store, tmp_path / "here", 2)
    grown = False

    def more(call: Call) -> None:
        """Between the choice and the pin, a writer goes on and gives up what was the newest."""
        nonlocal grown
        if not grown and call.operation == "put" and "/pins/" in call.key:
            grown = True
            with Run("demo", remote=store, local_root=tmp_path / "more") as run:
                path = run.local_dir / "checkpoints/9.pt"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(b"0009")
                run.save_files([path], step=9).result(30)
                run.prune(RetentionPolicy(keep_last=1))

    watched = FaultyStore(store, on_call=more)
    report = Run("demo", remote=watched, read_only=True).pull(tmp_path / "out", only="checkpoints")
    assert grown
    assert (report.checkpoint, report.fallback_from) == ("ep0-ba9", None)
    assert [pin.key for pin in store.list(log.layout.pins)] == []
