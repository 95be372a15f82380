from __future__ import annotations

import hashlib
import os

import pytest

from artifactsync.errors import (
    AlreadyExistsError,
    DamagedError,
    DestinationError,
    PermissionDeniedError,
    UnsafeKeyError,
)
from artifactsync.testing import Fault, FaultyStore
from artifactsync.transfer import pull as pull_module
from artifactsync.transfer.pull import PullItem, PullTotals, pull_files


@pytest.fixture
def items(store):
    """Thirty objects below two folders, each known by its hash."""
    items = []
    for number in range(30):
        data = os.urandom(100 * number)
        path = f"dir{number % 2}/sub/f{number}"
        store.put(f"run/{path}.a2", data)
        items.append(
            PullItem(key=f"run/{path}.a2", path=path, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
        )
    return items


def _tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_all_files_arrive_at_their_paths(store, items, tmp_path):
    counts = []
    totals = pull_files(store, items, tmp_path / "here", on_progress=counts.append)
    total_bytes = sum(item.size_bytes for item in items)
    assert totals == PullTotals(files=30, bytes=total_bytes, skipped_files=0)
    assert sum(counts) == total_bytes
    assert _tree(tmp_path / "here") == {item.path: store.get(item.key) for item in items}


def test_what_is_here_already_is_skipped(store, items, tmp_path):
    pull_files(store, items[:20], tmp_path / "here")
    (tmp_path / "here" / items[0].path).write_bytes(b"spoilt")
    again = FaultyStore(store)
    assert pull_files(again, items, tmp_path / "here").skipped_files == 19
    assert again.calls.total() == 11
    assert _tree(tmp_path / "here") == {item.path: store.get(item.key) for item in items}


def test_other_files_are_kept_without_overwrite(store, items, tmp_path):
    other = tmp_path / "here" / items[3].path
    other.parent.mkdir(parents=True)
    other.write_bytes(b"mine")
    with pytest.raises(AlreadyExistsError):
        pull_files(store, items, tmp_path / "here", overwrite=False)
    assert other.read_bytes() == b"mine"


def test_one_bad_file_stops_the_pull_and_the_next_one_goes_on(store, items, tmp_path):
    bad = items[17].key
    with pytest.raises(PermissionDeniedError):
        pull_files(FaultyStore(store, [Fault(kind="permission", keys=bad)]), items, tmp_path / "here")
    assert all(
        store.get(next(i.key for i in items if i.path == path)) == data
        for path, data in _tree(tmp_path / "here").items()
    )
    assert pull_files(store, items, tmp_path / "here").files == 30


def test_a_damaged_file_never_becomes_visible(store, items, tmp_path):
    store.put(items[5].key, bytes(items[5].size_bytes))
    with pytest.raises(DamagedError):
        pull_files(store, items, tmp_path / "here")
    assert items[5].path not in _tree(tmp_path / "here")


def test_nothing_to_pull_makes_no_folder(store, tmp_path):
    assert pull_files(store, [], tmp_path / "here") == PullTotals(0, 0, 0)
    assert not (tmp_path / "here").exists()


@pytest.mark.parametrize(
    "path", ["../out", "/out", "a/../../out", "a//b", "", ".", "a\0b", "C:\\out", "a\\..\\out", "a/", "a\nb"]
)
def test_a_hostile_path_is_refused_before_anything_is_fetched(store, items, tmp_path, path):
    faulty = FaultyStore(store)
    with pytest.raises(UnsafeKeyError):
        pull_files(faulty, [*items, PullItem(key=items[1].key, path=path)], tmp_path / "here")
    assert faulty.calls.total() == 0
    assert not (tmp_path / "here").exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("depth", [1, 2])
def test_a_link_on_the_way_is_not_followed(store, items, tmp_path, depth):
    outside = tmp_path / "outside"
    outside.mkdir()
    link = tmp_path / "here" / "/".join(items[0].path.split("/")[:depth])
    link.parent.mkdir(parents=True)
    link.symlink_to(outside)
    with pytest.raises(DestinationError, match="is a symbolic link where a folder must be"):
        pull_files(store, items, tmp_path / "here")
    assert list(outside.iterdir()) == []


def test_a_link_that_the_user_named_is_followed(store, items, tmp_path):
    (tmp_path / "scratch").mkdir()
    (tmp_path / "here").symlink_to(tmp_path / "scratch")
    pull_files(store, items, tmp_path / "here")
    assert len(_tree(tmp_path / "scratch")) == 30


def test_a_file_where_a_folder_must_be_is_refused(store, items, tmp_path):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "dir0").write_bytes(b"")
    with pytest.raises(DestinationError, match="is a file where a folder must be"):
        pull_files(store, items, tmp_path / "here")
    with pytest.raises(DestinationError, match="is a file"):
        pull_files(store, items, tmp_path / "here" / "dir0")


def test_a_folder_where_a_file_must_be_is_refused(store, items, tmp_path):
    (tmp_path / "here" / items[0].path).mkdir(parents=True)
    with pytest.raises(DestinationError, match="is a folder"):
        pull_files(store, items, tmp_path / "here")


def test_two_objects_for_one_path_are_refused(store, items, tmp_path):
    for clash in (items[0].path, f"{items[0].path}/below", "dir0/sub"):
        with pytest.raises(UnsafeKeyError):
            pull_files(store, [*items, PullItem(key=items[1].key, path=clash)], tmp_path / "here")
    assert _tree(tmp_path / "here") == {}


def test_names_that_differ_in_case_alone_need_a_file_system_that_tells(store, tmp_path, monkeypatch):
    store.put("k", b"data")
    both = [PullItem(key="k", path="README"), PullItem(key="k", path="readme")]
    assert pull_files(store, both, tmp_path / "here").files == 2
    assert sorted(_tree(tmp_path / "here")) == ["README", "readme"]
    monkeypatch.setattr(pull_module, "_ignores_case", lambda _: True)
    with pytest.raises(UnsafeKeyError, match="would be one file"):
        pull_files(store, both, tmp_path / "there")


def test_a_log_that_grows_after_it_was_listed_comes_as_it_is_now(store, tmp_path):
    store.put("r/log.txt", b"one line\n")
    listed = [PullItem(key="r/log.txt", path="log.txt", size_bytes=9)]
    store.put("r/log.txt", b"one line\nand another\n")
    totals = pull_files(store, listed, tmp_path / "here")
    assert (totals.files, totals.bytes) == (1, 21)
    assert (tmp_path / "here" / "log.txt").read_bytes() == b"one line\nand another\n"
