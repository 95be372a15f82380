from __future__ import annotations

import errno
import hashlib
import math
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from artifactsync.errors import (
    AlreadyExistsError,
    DamagedError,
    DestinationError,
    DiskFullError,
    MissingBytesError,
    ObjectNotFoundError,
    PermissionDeniedError,
    RemoteUnreachableError,
    TransientStoreError,
)
from artifactsync.stores import open_store
from artifactsync.stores.protocol import ObjectInfo
from artifactsync.testing import FakeClock, Fault, FaultyStore
from artifactsync.transfer.download import Downloader, Wanted, download_file
from artifactsync.transfer.folder import Folder
from artifactsync.transfer.hashing import FileDigest
from artifactsync.transfer.partial import PartialFile
from artifactsync.transfer.places import Places

PART = 1000
DATA = bytes(range(256)) * 40  # 10,240 bytes: eleven parts, the last one short
SHA256 = hashlib.sha256(DATA).hexdigest()
DIGEST = FileDigest(len(DATA), SHA256)


@pytest.fixture
def remote(store):
    store.put("run/model.pt", DATA)
    return store


@pytest.fixture
def here(tmp_path):
    return tmp_path / "here" / "model.pt"


def _download(store, here, **options):
    return download_file(store, "run/model.pt", here, **{"part_bytes": PART, "clock": FakeClock(), **options})


def _left(here):
    return sorted(path.name for path in here.parent.iterdir())


@pytest.mark.parametrize(
    "known", [{}, {"size_bytes": len(DATA)}, {"sha256": SHA256}, {"size_bytes": len(DATA), "sha256": SHA256}]
)
@pytest.mark.parametrize("part_bytes", [PART, 1 << 20])
def test_the_whole_file_arrives_and_nothing_else(remote, here, known, part_bytes):
    assert _download(remote, here, part_bytes=part_bytes, **known) == DIGEST
    assert here.read_bytes() == DATA
    assert _left(here) == ["model.pt"]


@pytest.mark.parametrize("known", [{}, {"size_bytes": 0}])
def test_an_empty_file_arrives(store, here, known):
    store.put("run/model.pt", b"")
    assert _download(store, here, **known).size_bytes == 0
    assert here.read_bytes() == b""


def test_the_file_has_the_rights_that_the_umask_gives(remote, here):
    old = os.umask(0o027)
    try:
        _download(remote, here)
    finally:
        os.umask(old)
    assert here.stat().st_mode & 0o777 == 0o640


def test_progress_adds_up(remote, here):
    counts = []
    _download(FaultyStore(remote, [Fault(kind="truncated", times=3)]), here, on_progress=counts.append)
    assert sum(counts) == len(DATA)


def test_parts_arrive_at_the_same_time_and_no_more_than_allowed(remote, here):
    together = threading.Barrier(4, timeout=20)
    faulty = FaultyStore(remote, on_call=lambda call: call.operation == "get" and call.number <= 8 and together.wait())
    _download(faulty, here, max_concurrency=4)
    assert here.read_bytes() == DATA


def test_transient_failures_and_cut_ranges_are_made_good(remote, here):
    faults = [
        Fault(kind="transient", operations={"get", "head"}, probability=0.2),
        Fault(kind="truncated", probability=0.2),
    ]
    faulty = FaultyStore(remote, faults, seed=3)
    assert _download(faulty, here) == DIGEST
    assert faulty.faults_hit > 3


def test_retry_after_is_honoured(remote, here):
    clock = FakeClock(start_s=0.0)
    _download(FaultyStore(remote, [Fault(kind="transient", times=1, retry_after_s=30.0)]), here, clock=clock)
    assert clock.monotonic() >= 30.0


def test_a_flipped_bit_is_fetched_anew(remote, here):
    faulty = FaultyStore(remote, [Fault(kind="flipped-bit", operations={"get"}, times=1)])
    counts = []
    assert _download(faulty, here, sha256=SHA256, on_progress=counts.append) == DIGEST
    assert here.read_bytes() == DATA
    assert sum(counts) == len(DATA)


@pytest.mark.parametrize("part_bytes", [PART, 1 << 20])
def test_a_damaged_object_never_becomes_visible(remote, here, part_bytes):
    remote.put("run/model.pt", DATA[:-1] + b"!")
    with pytest.raises(DamagedError, match=r"has sha256 [0-9a-f]{64}, not the recorded"):
        _download(remote, here, size_bytes=len(DATA), sha256=SHA256, part_bytes=part_bytes)
    assert _left(here) == []


@pytest.mark.parametrize("part_bytes", [PART, 1 << 20])
@pytest.mark.parametrize(("data", "error"), [(DATA[:-5], MissingBytesError), (DATA + b"!", DamagedError)])
def test_an_object_of_another_length_is_damaged(remote, here, data, error, part_bytes):
    remote.put("run/model.pt", data)
    with pytest.raises(error) as caught:
        _download(remote, here, size_bytes=len(DATA), part_bytes=part_bytes)
    assert type(caught.value) is error
    assert _left(here) == []


def test_an_object_that_is_too_short_is_not_asked_for_again_and_again(store, here):
    store.put("run/model.pt", DATA[:-1])
    faulty = FaultyStore(store)
    with pytest.raises(MissingBytesError):
        _download(faulty, here, part_bytes=1 << 20, size_bytes=len(DATA), sha256=SHA256)
    assert faulty.calls["get"] == 1


def test_a_missing_object_is_not_found_or_missing(store, here):
    with pytest.raises(ObjectNotFoundError):
        _download(store, here)
    with pytest.raises(MissingBytesError, match="is not there"):
        _download(store, here, sha256=SHA256)
    assert _left(here) == []


def test_an_object_that_changes_meanwhile_is_fetched_anew(remote, here):
    newer = DATA[::-1]

    def change(call):
        if call.operation == "get" and call.number == 3:
            remote.put("run/model.pt", newer)

    assert _download(FaultyStore(remote, on_call=change), here).sha256 == hashlib.sha256(newer).hexdigest()
    assert here.read_bytes() == newer


def test_an_object_that_keeps_changing_is_given_up(remote, here):
    lock = threading.Lock()

    def change(call):
        with lock:
            if call.operation == "get":
                remote.put("run/model.pt", os.urandom(len(DATA)))

    with pytest.raises(DamagedError, match="changed while it was downloaded"):
        _download(FaultyStore(remote, on_call=change), here)
    assert _left(here) == []


def test_an_unreachable_remote_fails_at_once(remote, here):
    faulty = FaultyStore(remote, [Fault(kind="unreachable")])
    with pytest.raises(RemoteUnreachableError):
        _download(faulty, here)
    assert faulty.calls["head"] == 1
    assert _left(here) == []


# What is at the destination.


def test_a_file_that_is_there_is_kept_unless_it_may_be_replaced(remote, here):
    here.parent.mkdir()
    here.write_bytes(b"mine")
    with pytest.raises(AlreadyExistsError, match="exists already"):
        _download(remote, here)
    assert here.read_bytes() == b"mine"
    _download(remote, here, overwrite=True)
    assert here.read_bytes() == DATA


def test_a_file_that_appears_meanwhile_is_kept(remote, here):
    def appear(call):
        if call.operation == "get":
            here.write_bytes(b"mine")

    with pytest.raises(AlreadyExistsError):
        _download(FaultyStore(remote, on_call=appear), here)
    assert _left(here) == ["model.pt"]
    assert here.read_bytes() == b"mine"


def test_a_file_with_the_wanted_bytes_is_not_fetched(remote, here):
    _download(remote, here)
    untouched = FaultyStore(remote)
    assert _download(untouched, here, sha256=SHA256, size_bytes=len(DATA)) == DIGEST
    assert untouched.calls.total() == 0


def test_a_destination_that_is_a_folder_or_below_a_file_is_refused(remote, here, tmp_path):
    with pytest.raises(DestinationError, match="is a folder"):
        _download(remote, tmp_path)
    here.parent.write_bytes(b"a file")
    with pytest.raises(DestinationError, match=f"{here.parent} is a file"):
        _download(remote, here)


def test_a_destination_that_may_not_be_written_is_refused(remote):
    with pytest.raises(DestinationError, match="/proc/nowhere"):
        _download(remote, Path("/proc/nowhere/model.pt"))


@pytest.mark.parametrize("part_bytes", [PART, 1 << 20])
def test_a_planted_link_is_never_written_through(remote, here, tmp_path, part_bytes):
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    here.parent.mkdir()
    here.symlink_to(victim)
    stopped = FaultyStore(remote, [Fault(kind="permission", operations={"get"}, calls={3})])
    with pytest.raises(PermissionDeniedError):  # find out what the temporary files are called
        _download(stopped, here, overwrite=True, sha256=SHA256, max_concurrency=1)
    names = [path for path in here.parent.iterdir() if path != here]
    assert len(names) == 2
    for path in names:
        path.unlink()
        path.symlink_to(victim)
    assert _download(remote, here, overwrite=True, sha256=SHA256, part_bytes=part_bytes) == DIGEST
    assert victim.read_bytes() == b"precious"
    assert not here.is_symlink()
    assert here.read_bytes() == DATA


def test_a_temporary_name_that_is_a_second_name_of_a_file_is_not_written_to(remote, here, tmp_path):
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    stopped = FaultyStore(remote, [Fault(kind="permission", operations={"get"}, calls={3})])
    with pytest.raises(PermissionDeniedError):
        _download(stopped, here, sha256=SHA256, max_concurrency=1)
    (part,) = here.parent.glob(".*.part")
    part.unlink()
    part.hardlink_to(victim)
    assert _download(remote, here, sha256=SHA256) == DIGEST
    assert victim.read_bytes() == b"precious"


# Going on where it stopped.


def test_an_interrupted_download_goes_on(remote, here):
    stopped = FaultyStore(remote, [Fault(kind="permission", operations={"get"}, calls=range(6, 99))])
    with pytest.raises(PermissionDeniedError):
        _download(stopped, here, max_concurrency=1)
    assert not here.exists()
    again, counts = FaultyStore(remote), []
    assert _download(again, here, on_progress=counts.append) == DIGEST
    assert again.calls["get"] == 11 - 5
    assert sum(counts) == len(DATA)
    assert here.read_bytes() == DATA
    assert _left(here) == ["model.pt"]


@pytest.mark.parametrize("damage", ["bytes", "record", "cut record", "object"])
def test_what_an_interrupted_download_left_is_not_trusted(remote, here, damage):
    data = DATA
    with pytest.raises(PermissionDeniedError):
        _download(
            FaultyStore(remote, [Fault(kind="permission", operations={"get"}, calls={6})]), here, max_concurrency=1
        )
    (part,) = here.parent.glob(".*.part")
    record = part.with_name(part.name + ".ranges")
    if damage == "bytes":
        with part.open("r+b") as file:
            file.seek(1500)
            file.write(b"???")
    elif damage == "record":
        record.write_bytes(os.urandom(300))
    elif damage == "cut record":
        record.write_bytes(record.read_bytes()[:-3] + b'\n[5,\n["a", 1]\n[-1, 0]\n[99999, 0]\n{}\n')
    else:
        data = DATA[::-1]
        remote.put("run/model.pt", data)
    assert _download(remote, here).sha256 == hashlib.sha256(data).hexdigest()
    assert here.read_bytes() == data
    assert _left(here) == ["model.pt"]


def test_two_downloads_to_one_place_do_not_mix(remote, here):
    together = threading.Barrier(2, timeout=20)
    outcomes = []

    def download():
        store = FaultyStore(
            remote, on_call=lambda call: call.operation == "get" and call.number == 1 and together.wait()
        )
        outcomes.append(_download(store, here, overwrite=True, max_concurrency=1))

    threads = [threading.Thread(target=download) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert outcomes == [DIGEST, DIGEST]
    assert here.read_bytes() == DATA
    assert _left(here) == ["model.pt"]


def test_kill_9_in_mid_download_leaves_nothing_visible_and_the_next_goes_on(remote, here, tmp_path):
    program = """if True:
    import os, pathlib, signal, sys, time
    from artifactsync.stores.local import LocalStore
    from artifactsync.testing import FaultyStore
    from artifactsync.transfer.download import download_file
    here = pathlib.Path(sys.argv[2]).parent
    def is_hashed(): return any('["sha256", 6, ' in record.read_text() for record in here.glob(".*.ranges"))
    def die(call):
        if call.operation == "get" and call.number == 7:
            until = time.monotonic() + 20
            while not is_hashed() and time.monotonic() < until: time.sleep(0.001)
            os.kill(os.getpid(), signal.SIGKILL)
    store = FaultyStore(LocalStore(sys.argv[1]), on_call=die)
    download_file(store, "run/model.pt", sys.argv[2], part_bytes=1000, max_concurrency=1)
    """
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "remote"), str(here)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not here.exists()
    again = FaultyStore(remote)
    assert _download(again, here) == DIGEST
    assert again.calls["get"] == 11 - 6
    assert _left(here) == ["model.pt"]


def test_with_size_and_sha256_known_nothing_is_asked_beside_the_bytes(remote, here):
    faulty = FaultyStore(remote)
    assert _download(faulty, here, size_bytes=len(DATA), sha256=SHA256) == DIGEST
    assert faulty.calls == {"get": 11}


@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        (DATA[:-5], MissingBytesError, "has 10235 bytes, not the recorded 10240"),
        (DATA[:5000], MissingBytesError, "has 5000 bytes, not the recorded 10240"),
        (b"", MissingBytesError, "has 0 bytes"),
        (DATA + b"!", DamagedError, "has 10241 bytes, not the recorded 10240"),
        (DATA * 2, DamagedError, "has 20480 bytes"),
        (DATA[::-1], DamagedError, "has sha256"),
    ],
)
@pytest.mark.parametrize("part_bytes", [PART, len(DATA) // 2, len(DATA) // 5])
def test_another_object_than_is_known_is_never_taken(remote, here, data, error, words, part_bytes):
    remote.put("run/model.pt", data)
    counts = []
    with pytest.raises(error, match=words) as caught:
        _download(remote, here, size_bytes=len(DATA), sha256=SHA256, part_bytes=part_bytes, on_progress=counts.append)
    assert type(caught.value) is error
    assert _left(here) == []
    if error is DamagedError:
        assert sum(counts) == 0


@pytest.mark.parametrize("known", [{"sha256": SHA256}, {"size_bytes": len(DATA), "sha256": SHA256}])
def test_a_known_object_that_is_put_anew_with_the_same_bytes_goes_on(remote, here, known):
    stopped = FaultyStore(remote, [Fault(kind="permission", operations={"get"}, calls=range(6, 99))])
    with pytest.raises(PermissionDeniedError):
        _download(stopped, here, max_concurrency=1, **known)
    remote.put("run/model.pt", DATA)
    again = FaultyStore(remote)
    assert _download(again, here, **known) == DIGEST
    assert again.calls["get"] == 11 - 5


def test_what_was_held_of_damaged_bytes_is_fetched_anew_when_the_whole_is_wrong(remote, here):
    known = {"size_bytes": len(DATA), "sha256": SHA256}
    remote.put("run/model.pt", DATA[::-1])
    stopped = FaultyStore(remote, [Fault(kind="permission", operations={"get"}, calls=range(6, 99))])
    with pytest.raises(PermissionDeniedError):
        _download(stopped, here, max_concurrency=1, **known)
    remote.put("run/model.pt", DATA)
    counts = []
    assert _download(remote, here, on_progress=counts.append, **known) == DIGEST
    assert sum(counts) == len(DATA)


def test_failures_use_up_no_memory(remote, tmp_path, monkeypatch):
    made = []
    make = Places._make
    monkeypatch.setattr(Places, "_make", lambda places: made.append(1) or make(places))
    faulty = FaultyStore(remote, [Fault(kind="permission", operations={"get"})])
    wanted = Wanted(key="run/model.pt", size_bytes=len(DATA), sha256=SHA256)
    with Folder(tmp_path / "to") as folder, Downloader(faulty, part_bytes=PART, max_parts=2) as downloader:
        for number in range(10):
            with pytest.raises(PermissionDeniedError):
                downloader.fetch(wanted, folder, str(number), overwrite=True)
    assert 1 <= len(made) <= 2


@pytest.mark.parametrize("max_concurrency", [1, 4, 8])
def test_fetching_does_not_run_far_ahead_of_what_can_be_hashed(store, here, max_concurrency):
    data = os.urandom(60 * PART)
    store.put("run/model.pt", data)
    lock, begun, gone_by = threading.Lock(), [], threading.Event()

    class FirstIsLate(FaultyStore):
        def get(self, key, *, start=0, end=None):
            with lock:
                begun.append(start // PART)
                if len(begun) == 12:
                    gone_by.set()
            if start == 0 and max_concurrency > 1:
                assert gone_by.wait(20)
                time.sleep(0.2)  # for more to be asked for, if they may
                with lock:
                    assert sorted(begun) == list(range(12))
            return super().get(key, start=start, end=end)

    digest = _download(FirstIsLate(store), here, max_concurrency=max_concurrency)
    assert digest.sha256 == hashlib.sha256(data).hexdigest()
    assert sorted(begun) == list(range(60))


# A full disk.


@pytest.mark.parametrize(
    ("call", "part_bytes"),
    [("pwrite", PART), ("pwrite", 1 << 20), ("posix_fallocate", PART), ("fsync", PART), ("fsync", 1 << 20)],
)
def test_a_full_disk_leaves_nothing(remote, here, monkeypatch, call, part_bytes):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    monkeypatch.setattr("artifactsync.transfer.partial._PLENTY", math.inf)  # so that space is reserved on any disk
    with pytest.raises(DiskFullError, match="no space left for ") as caught:
        _download(remote, here, part_bytes=part_bytes)
    assert caught.value.hint
    assert _left(here) == []


def test_a_file_size_limit_is_a_full_disk(remote, here):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))  # the kernel itself refuses the rest
    try:
        with pytest.raises(DiskFullError):
            _download(remote, here)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert _left(here) == []


def test_a_full_file_system_leaves_nothing(remote, tmp_path):
    """A real small file system, in a mount namespace of its own."""
    program = """if True:
    import os, sys
    from pathlib import Path
    from artifactsync.errors import DiskFullError
    from artifactsync.stores.local import LocalStore
    from artifactsync.transfer.download import download_file
    small = Path(sys.argv[2])
    for part_bytes in (1000, 1 << 20):
        try:
            download_file(LocalStore(sys.argv[1]), "big", small / "big", part_bytes=part_bytes)
        except DiskFullError as error:
            print(type(error).__name__, os.listdir(small))
    """
    remote.put("big", bytes(200_000))
    small = tmp_path / "small"
    small.mkdir()
    shell = f'mount -t tmpfs -o size=64k none {small} && exec {sys.executable} -c "$1" {tmp_path}/remote {small}'
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", shell, "sh", program], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("DiskFullError []\n" * 2, "")


# Real servers.


@pytest.mark.parametrize("cloud", ["s3", "gcs"])
def test_from_real_servers(request, cloud, tmp_path):
    server = request.getfixturevalue(cloud)
    store = open_store(server.fresh_url(), server.storage_options)
    data = os.urandom(20_000_000)
    store.put("dir/big", data)
    store.put("dir/empty", b"")
    for key, content in {"dir/big": data, "dir/empty": b""}.items():
        for known in ({}, {"size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}):
            path = tmp_path / f"{key}{len(known)}"
            assert download_file(store, key, path, part_bytes=3_000_000, **known).size_bytes == len(content)
            assert path.read_bytes() == content
    with pytest.raises(MissingBytesError):
        download_file(store, "dir/big", tmp_path / "x", size_bytes=len(data) + 1)
    with pytest.raises(ObjectNotFoundError):
        download_file(store, "dir/no", tmp_path / "x")
    store.close()


def test_a_store_without_etags_is_still_checked(remote, here):
    """Nothing tells two versions apart: an interrupted download begins anew rather than mix them."""

    class NoEtags(FaultyStore):
        def head(self, key):
            return ObjectInfo(key=key, size_bytes=super().head(key).size_bytes)

    with pytest.raises(TransientStoreError):
        _download(
            NoEtags(remote, [Fault(kind="transient", operations={"get"}, calls=range(6, 99))]), here, max_concurrency=1
        )
    assert _left(here) == []
    assert _download(NoEtags(remote), here) == DIGEST


def test_a_small_object_replaced_between_question_and_answer_is_never_cut(store, here):
    store.put("run/model.pt", b"short")
    replaced = iter([b"a much longer one", b"x"])

    def replace(call):
        if call.operation == "get" and (data := next(replaced, None)) is not None:
            store.put("run/model.pt", data)

    digest = _download(FaultyStore(store, on_call=replace), here)
    assert (digest.size_bytes, here.read_bytes()) == (1, b"x")


def test_what_was_published_is_no_reason_to_remove_the_next_download_of_that_name(tmp_path):
    with Folder(tmp_path) as folder:
        first = PartialFile(folder, "f", "s3://b/f")
        first.write(b"first", 0)
        first.publish(overwrite=True)
        second = PartialFile(folder, "f", "s3://b/f")  # another rank begins before the first one has tidied up
        second.write(b"second", 0)
        first.discard()
        first.close()
        second.publish(overwrite=True)
        second.close()
    assert (tmp_path / "f").read_bytes() == b"second"
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_a_second_download_beside_another_leaves_nothing_that_nobody_would_find(tmp_path):
    with Folder(tmp_path) as folder:
        first, second = (PartialFile(folder, "f", "s3://b/f") for _ in range(2))
        first.is_resumable = second.is_resumable = True
        assert first.is_resumable
        assert not second.is_resumable
        for partial in (first, second):
            partial.discard()
            partial.close()


def test_a_wrong_first_round_leaves_no_descriptor_and_no_record(tmp_path):
    store = open_store(f"{tmp_path}/remote")
    data = os.urandom(3 * 1000)
    store.put("k", data)

    class Longer(FaultyStore):
        was_longer = False

        def get(self, key, *, start=0, end=None):
            found = super().get(key, start=start, end=end)
            if end == len(data) + 1 and not self.was_longer:
                self.was_longer = True
                return found + b"x"
            return found

    before = {fd.name for fd in Path("/proc/self/fd").iterdir()}
    (tmp_path / "here").mkdir()
    faulty = Longer(store)
    sha256 = hashlib.sha256(data).hexdigest()
    download_file(faulty, "k", tmp_path / "here/f", size_bytes=len(data), sha256=sha256, part_bytes=1000)
    assert faulty.was_longer
    assert {fd.name for fd in Path("/proc/self/fd").iterdir()} <= before
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["f"]
    assert (tmp_path / "here/f").read_bytes() == data
