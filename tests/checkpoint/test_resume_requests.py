"""What a read-only resume asks of its store, and what it makes of a prune in between."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from artifactsync import Run
from artifactsync.journal.retention import RetentionPolicy
from artifactsync.stores import open_store
from artifactsync.testing import Call, FaultyStore

if TYPE_CHECKING:
    from pathlib import Path

    from artifactsync.stores.protocol import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(f"memory://resume-requests-{tmp_path.name}")


def save(store: Store, folder: Path, *steps: int, weights: int = 4, files: int = 1, keep_last: int = 0) -> None:
    """Save checkpoints of so many weights, with other files beside the state, and give the older ones up."""
    with Run("demo", remote=store, local_root=folder) as run:
        for step in steps:
            paths = [run.local_dir / f"c/{step}.pt", *(run.local_dir / f"c/{step}.{n}" for n in range(1, files))]
            paths[0].parent.mkdir(parents=True, exist_ok=True)
            torch.save({"step": torch.full((weights,), float(step))}, paths[0])
            for path in paths[1:]:
                path.write_bytes(b"more")
            run.save_files(paths, step=step).result(60)
        if keep_last:
            run.prune(RetentionPolicy(keep_last=keep_last))


def resume(store: Store, folder: Path) -> int:
    resumed = Run("demo", remote=store, local_root=folder, read_only=True).resume()
    assert resumed is not None
    assert float(resumed.state["step"][0]) == resumed.step
    return resumed.step


@pytest.mark.parametrize("checkpoints", [2, 30])
def test_one_small_file_takes_four_requests_and_no_pin(store: Store, tmp_path: Path, checkpoints: int) -> None:
    save(store, tmp_path / "a", *range(1, checkpoints + 1))
    counting = FaultyStore(store)
    assert resume(counting, tmp_path / "b") == checkpoints
    assert counting.calls == {"get": 3, "list": 1}  # the pointer, the newest record, the file


def test_several_files_are_read_under_a_pin(store: Store, tmp_path: Path) -> None:
    save(store, tmp_path / "a", 1, files=2)
    counting = FaultyStore(store)
    resume(counting, tmp_path / "b")
    assert counting.calls == {"get": 4, "list": 1, "put": 1, "delete": 1}


def test_a_file_of_several_ranges_is_read_under_a_pin(store: Store, tmp_path: Path) -> None:
    save(store, tmp_path / "a", 1, weights=5 * 2**20)  # of four bytes: 20 MiB, three ranges
    counting = FaultyStore(store)
    resume(counting, tmp_path / "b")
    assert counting.calls == {"get": 5, "list": 1, "put": 1, "delete": 1}


def test_a_checkpoint_that_is_given_up_before_it_is_read_gives_way(store: Store, tmp_path: Path) -> None:
    save(store, tmp_path / "a", 1, 2)
    grown: list[str] = []

    def more(call: Call) -> None:
        if not grown and call.key == "demo/c/2.pt":
            grown.append(call.key)
            save(store, tmp_path / "c", 3, keep_last=1)

    assert resume(FaultyStore(store, on_call=more), tmp_path / "b") == 3  # and no warning of damage
    assert grown
