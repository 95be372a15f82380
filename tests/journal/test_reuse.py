from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from artifactsync import Run
from artifactsync.errors import StoreError
from artifactsync.journal.catalogue import Catalogue, Checkpoint, CheckpointFile, Retirement
from artifactsync.journal.pending import LocalFile
from artifactsync.journal.reuse import KnownBytes
from artifactsync.stores import open_store
from artifactsync.testing import FaultyStore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from artifactsync.testing import Call

SIZE = 300_000


class Counted:
    """A remote that counts the bytes of what is put below ``checkpoints/``."""

    def __init__(self, url: str, options: dict[str, Any] | None = None) -> None:
        self.inner = open_store(url, options)
        self.puts: list[str] = []
        self.copies: list[str] = []
        self.refuse_copies = False
        self.store = FaultyStore(self.inner, on_call=self._note)

    def _note(self, call: Call) -> None:
        if call.operation == "put" and "/checkpoints/ep" in f"/{call.key}":
            self.puts.append(call.key)
        if call.operation == "copy":
            self.copies.append(call.key)
            if self.refuse_copies:
                raise StoreError("no copies here")


def _save(run: Run, step: int, **files: bytes) -> Any:
    where = {}
    for name, data in files.items():
        file = run.local_dir / "made" / f"{step}-{name}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        where[f"checkpoints/ep0-ba{step}-{name}.pt"] = file
    return run.save_files(where, step=step).result(30)


@pytest.mark.parametrize("cloud", ["s3", "gcs", "az", "file"])
def test_equal_bytes_at_another_path_are_copied_by_the_store(
    cloud: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    server = None if cloud == "file" else request.getfixturevalue(cloud)
    remote = Counted(server.fresh_url(), server.storage_options) if server else Counted(f"file://{tmp_path}/remote")
    data = os.urandom(SIZE)
    with Run("r", remote=remote.store, local_root=tmp_path / "runs") as run:
        _save(run, 1, last=data)
        best = _save(run, 2, best=data)
        assert remote.puts == ["r/checkpoints/ep0-ba1-last.pt"]
        assert [file.key for file in best.files] == ["r/checkpoints/ep0-ba2-best.pt"]  # its own, plain key
        assert remote.inner.get("r/checkpoints/ep0-ba2-best.pt") == data
        both = _save(run, 3, best=data[::-1], last=data[::-1])
        assert len(remote.puts) == 2  # one of the two
        assert [remote.inner.get(file.key) for file in both.files] == [data[::-1]] * 2
        run.prune(_keep(1))
        assert run.verify(deep=True).ok
        assert [c.step for c in run.checkpoints()] == [3]
    remote.inner.close()


def _keep(count: int) -> Any:
    from artifactsync.journal.retention import RetentionPolicy  # noqa: PLC0415

    return RetentionPolicy(keep_last=count)


def test_other_bytes_of_the_same_length_are_sent(tmp_path: Path) -> None:
    remote = Counted("memory://")
    with Run("r", remote=remote.store, local_root=tmp_path) as run:
        _save(run, 1, a=os.urandom(SIZE), b=os.urandom(SIZE))
        _save(run, 2, a=os.urandom(SIZE))
        assert len(remote.puts) == 3
        assert not remote.copies


def test_a_store_that_copies_nothing_gets_the_bytes(tmp_path: Path) -> None:
    remote, data = Counted("memory://"), os.urandom(SIZE)
    remote.refuse_copies = True
    with Run("r", remote=remote.store, local_root=tmp_path) as run:
        _save(run, 1, last=data)
        best = _save(run, 2, best=data)
        assert remote.copies
        assert remote.inner.get(best.files[0].key) == data


def test_bytes_that_somebody_removed_are_sent_again(tmp_path: Path) -> None:
    remote, data = Counted("memory://"), os.urandom(SIZE)
    with Run("r", remote=remote.store, local_root=tmp_path) as run:
        first = _save(run, 1, last=data)
        remote.inner.delete([first.files[0].key])
        best = _save(run, 2, best=data)
        assert remote.inner.get(best.files[0].key) == data


def _entry(path: str, digest: str, *, key: str | None = None, size: int = SIZE) -> CheckpointFile:
    return CheckpointFile(path=path, key=key or f"r/{path}", size=size, sha256=digest)


def _checkpoint(seq: int, *files: CheckpointFile) -> Checkpoint:
    return Checkpoint(
        name=f"s{seq}", step=seq, epoch=0, batch=seq, attempt=1, metrics={}, files=files, committed_at="", seq=seq
    )


def test_what_is_known_grows_with_the_run_and_forgets_what_is_given_up(tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path}")
    first, second = _entry("a.pt", "1"), _entry("b.pt", "1")
    for entry in (first, second):
        store.put(entry.key, bytes(SIZE))
    local = LocalFile(path="a.pt", local=tmp_path / "a.pt", size_bytes=SIZE, sha256="1")
    elsewhere = LocalFile(path="c.pt", local=tmp_path / "c.pt", size_bytes=SIZE, sha256="1")
    known, catalogue = KnownBytes(), Catalogue()
    assert not known.update(catalogue).may_have(local)
    catalogue = catalogue.with_commit(_checkpoint(1, first))
    catalogue = catalogue.with_commit(_checkpoint(2, second))
    assert known.update(catalogue).may_have(local)
    assert known.entry_at_its_path(local, store) == first
    assert known.key_of(elsewhere, store) == second.key  # the newest
    catalogue = catalogue.with_retirement(Retirement(commits=frozenset({2}), keys=frozenset({second.key}), seq=3))
    assert known.update(catalogue).key_of(elsewhere, store) == first.key
    catalogue = catalogue.with_retirement(Retirement(commits=frozenset({1}), keys=frozenset({first.key}), seq=4))
    assert known.update(catalogue).key_of(elsewhere, store) is None
    assert known.entry_at_its_path(local, store) is None
    store.close()


def test_a_commit_costs_the_same_however_many_were_before() -> None:
    looked_at: list[int] = []

    class Watched(tuple[CheckpointFile, ...]):
        __slots__ = ()

        def __iter__(self) -> Iterator[CheckpointFile]:
            looked_at.append(1)
            return super().__iter__()

    every = tuple(replace(_checkpoint(n), files=Watched([_entry(f"{n}.pt", str(n))])) for n in range(1, 1001))
    known = KnownBytes().update(Catalogue(checkpoints=every[:999], seq=999))
    looked_at.clear()
    known.update(Catalogue(checkpoints=every, seq=1000))
    known.update(Catalogue(checkpoints=every, seq=1000))
    assert len(looked_at) == 1
