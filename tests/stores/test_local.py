from __future__ import annotations

import errno
import os
import stat
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from artifactsync.errors import (
    AlreadyExistsError,
    ArtifactSyncError,
    DestinationError,
    DiskFullError,
    ObjectNotFoundError,
    PermissionDeniedError,
    StoreError,
    TransientStoreError,
    UnsafeKeyError,
)
from artifactsync.stores import probe
from artifactsync.stores.local import TEMPORARY_PREFIX, LocalStore


@pytest.fixture
def root(tmp_path):
    return tmp_path / "deep" / "remote"


@pytest.fixture
def store(root):
    return LocalStore(root)


def files_below(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir())


def failing(monkeypatch, name, code):
    def fail(*_args, **_kwargs):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, name, fail)


def test_the_first_put_makes_the_root_and_opening_does_not(store, root):
    assert list(store.list()) == []
    assert store.list_folders() == []
    store.delete(["never/was"])
    with pytest.raises(ObjectNotFoundError):
        store.get("a")
    assert not root.exists()
    store.put("run/a", b"1")
    assert files_below(root) == ["run/a"]


def test_every_name_is_synced_before_it_counts(store, root, monkeypatch):
    store.put("run/first", b"1")
    events = []
    for name in ("fsync", "rename", "link"):
        real = getattr(os, name)

        def noted(*args, _real=real, _name=name, **kwargs):
            is_folder = _name == "fsync" and stat.S_ISDIR(os.fstat(args[0]).st_mode)
            events.append("fsync folder" if is_folder else _name)
            return _real(*args, **kwargs)

        monkeypatch.setattr(os, name, noted)
    store.put("run/a", b"1")
    assert events == ["fsync", "rename", "fsync folder"]
    events.clear()
    store.put_if_absent("run/b", b"1")
    assert events == ["fsync", "link", "fsync folder"]
    events.clear()
    store.put("new/c", b"1")
    assert events == ["fsync folder", "fsync", "rename", "fsync folder"]


@pytest.mark.parametrize("operation", ["put", "put_if_absent"])
@pytest.mark.parametrize(
    ("failing_call", "code", "expected"),
    [
        ("write", errno.ENOSPC, DiskFullError),
        ("write", errno.EDQUOT, DiskFullError),
        ("fsync", errno.ENOSPC, DiskFullError),
        ("write", errno.EIO, StoreError),
    ],
)
def test_a_failing_disk_leaves_nothing(store, root, monkeypatch, operation, failing_call, code, expected):
    store.put("run/old", b"old")
    with monkeypatch.context() as patch:
        failing(patch, failing_call, code)
        with pytest.raises(expected) as caught:
            getattr(store, operation)("run/new", b"new")
    assert type(caught.value) is expected
    assert files_below(root) == ["run/old"]


def test_a_failing_rename_keeps_the_old_bytes(store, root, monkeypatch):
    store.put("run/a", b"old")
    with monkeypatch.context() as patch:
        failing(patch, "rename", errno.EIO)
        with pytest.raises(StoreError):
            store.put("run/a", b"new")
    assert store.get("run/a") == b"old"
    assert files_below(root) == ["run/a"]


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP])
def test_a_file_system_without_hard_links_is_seen_by_the_probe(store, root, monkeypatch, code):
    failing(monkeypatch, "link", code)
    found = probe(store, "run/probe")
    assert not found.put_if_absent
    assert "hard link" in found.reason
    assert not root.exists() or files_below(root) == []


def test_a_link_whose_answer_was_lost_is_ours(store, monkeypatch):
    real_link = os.link

    def link_twice(*args, **kwargs):
        real_link(*args, **kwargs)
        real_link(*args, **kwargs)  # as a resent NFS request finds its own first success

    monkeypatch.setattr(os, "link", link_twice)
    assert store.put_if_absent("a", b"mine").size_bytes == len(b"mine")
    assert store.get("a") == b"mine"
    monkeypatch.undo()
    with pytest.raises(AlreadyExistsError):
        store.put_if_absent("a", b"other")


def test_temporary_files_are_no_objects(store, root):
    store.put("run/a", b"1")
    (root / "run" / f"{TEMPORARY_PREFIX}left-by-a-crash").write_bytes(b"half")
    assert [info.key for info in store.list()] == ["run/a"]
    for operation in (store.get, store.head, lambda key: store.put(key, b"x"), lambda key: store.delete([key])):
        with pytest.raises(UnsafeKeyError):
            operation(f"run/{TEMPORARY_PREFIX}left-by-a-crash")


@pytest.mark.parametrize("key", ["", "/etc/passwd", "../x", "a/../../x", "a//b", "a/", ".", "a/./b", "a\0b"])
def test_keys_that_are_no_plain_path_are_refused(store, root, key):
    store.put("a", b"1")
    for operation in (store.get, store.head, lambda key: store.put(key, b"x"), lambda key: store.copy("a", key)):
        with pytest.raises(UnsafeKeyError):
            operation(key)
    assert files_below(root) == ["a"]


@pytest.fixture
def outside(tmp_path):
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "secret").write_bytes(b"secret")
    return folder


@pytest.mark.parametrize("operation", ["get", "head", "put", "put_if_absent", "copy", "delete"])
def test_links_to_folders_are_not_followed(store, root, outside, operation):
    store.put("a", b"1")
    (root / "link").symlink_to(outside)
    calls = {
        "get": lambda: store.get("link/secret"),
        "head": lambda: store.head("link/secret"),
        "put": lambda: store.put("link/secret", b"x"),
        "put_if_absent": lambda: store.put_if_absent("link/new", b"x"),
        "copy": lambda: store.copy("a", "link/new"),
    }
    if operation == "delete":
        store.delete(["link/secret"])
    else:
        with pytest.raises(UnsafeKeyError, match="symbolic link"):
            calls[operation]()
    assert files_below(outside) == ["secret"]
    assert (outside / "secret").read_bytes() == b"secret"


def test_links_to_files_are_neither_read_nor_listed_nor_written_through(store, root, outside):
    store.put("a", b"1")
    (root / "link").symlink_to(outside / "secret")
    for operation in (store.get, store.head):
        with pytest.raises(UnsafeKeyError, match="symbolic link"):
            operation("link")
    assert [info.key for info in store.list()] == ["a"]
    store.put("link", b"replaced")
    assert store.get("link") == b"replaced"
    assert (outside / "secret").read_bytes() == b"secret"


def test_a_link_as_the_root_is_the_users_choice(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    LocalStore(tmp_path / "link").put("a", b"1")
    assert files_below(tmp_path / "disk") == ["a"]


def test_pipes_neither_hang_nor_show(store, root):
    store.put("a", b"1")
    os.mkfifo(root / "pipe")
    assert [info.key for info in store.list()] == ["a"]
    with pytest.raises(ObjectNotFoundError):
        store.get("pipe")


def test_a_file_as_the_root_is_said_plainly(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        store = LocalStore(root)
        for operation in (lambda s: s.put("a", b"1"), lambda s: s.get("a"), lambda s: list(s.list())):
            with pytest.raises(DestinationError, match="is a file, not a folder") as caught:
                operation(store)
            assert caught.value.exit_code == 2
            assert caught.value.hint


def test_a_file_where_a_folder_must_be_and_the_other_way_round(store):
    store.put("a/b", b"1")
    for operation in (
        lambda: store.put("a", b"x"),
        lambda: store.put("a/b/c", b"x"),
        lambda: store.put_if_absent("a", b""),
    ):
        with pytest.raises(DestinationError):
            operation()
    assert [info.key for info in store.list()] == ["a/b"]


def test_forbidden_folders(store, root, monkeypatch):
    failing(monkeypatch, "open", errno.EACCES)
    with pytest.raises(PermissionDeniedError) as caught:
        store.put("a", b"1")
    assert caught.value.exit_code == 6


def test_a_name_too_long_is_a_clear_error(store):
    with pytest.raises(DestinationError, match="too long"):
        store.put("x" * 300, b"1")


def test_delete_removes_what_became_empty_and_no_more(store, root):
    for key in ("run/a/b/c", "run/a/d", "other/e"):
        store.put(key, b"1")
    store.delete(["run/a/b/c"])
    assert not (root / "run" / "a" / "b").exists()
    store.delete(["run/a/d", "run/a", "other"])
    assert sorted(p.name for p in root.iterdir()) == ["other"]
    store.delete(["other/e"])
    assert root.is_dir()


def test_puts_beside_deletes_of_the_last_file_never_fail(store):
    store.put("run/deep/keep-0", b"1")
    failures: list[ArtifactSyncError] = []
    barrier = threading.Barrier(4)

    def work(number):
        barrier.wait(20)
        for turn in range(60):
            try:
                store.put(f"run/deep/f{number}", b"%d" % turn)
                store.delete([f"run/deep/f{number}", "run/deep/keep-0"])
            except ArtifactSyncError as error:  # noqa: PERF203 each turn may fail by itself
                failures.append(error)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert failures == []
    assert list(store.list()) == []


def test_listing_is_in_key_order_where_folders_and_files_mix(store):
    keys = ["a-b", "a/b", "a.c", "a/b-c", "a0", "b/c/d", "b-c/e"]
    for key in keys:
        store.put(key, b"")
    assert [info.key for info in store.list()] == sorted(keys)
    for after in [*keys, "a", "a/", "b", "a/b/c"]:
        assert [i.key for i in store.list(start_after=after)] == sorted(k for k in keys if k > after), after


def test_names_that_are_not_utf8_come_through(store, root):
    store.put("a", b"1")
    (root / os.fsdecode(b"\xff\xfe")).write_bytes(b"22")
    odd = next(info for info in store.list() if info.key != "a")
    assert store.get(odd.key) == b"22"


def test_a_root_that_vanished_is_not_made_anew(store, root):
    store.put("run/a", b"1")
    mounted = root.rename(root.with_name("unmounted"))
    uses = [
        lambda: store.put("run/b", b"2"),
        lambda: store.put_if_absent("run/b", b"2"),
        lambda: store.get("run/a"),
        lambda: store.head("run/a"),
        lambda: list(store.list()),
        store.list_folders,
        lambda: store.delete(["run/a"]),
    ]
    for use in uses:
        with pytest.raises(TransientStoreError, match="is not the one that was there"):
            use()
    assert not root.exists()
    root.mkdir()  # the mount point below, on another disk
    for use in uses:
        with pytest.raises(TransientStoreError, match="is not the one that was there"):
            use()
    assert files_below(root) == []
    root.rmdir()
    mounted.rename(root)
    assert store.get("run/a") == b"1"
    store.put("run/b", b"2")
    assert [info.key for info in store.list()] == ["run/a", "run/b"]
