from __future__ import annotations

import hashlib
import resource
import signal
import zipfile

import pytest
import torch

from artifactsync.checkpoint.load import load_file
from artifactsync.checkpoint.snapshot import SnapshotBuffers, take_snapshot
from artifactsync.checkpoint.write import point_latest, write_snapshot
from artifactsync.errors import DestinationError, DiskFullError


def _snapshot(state):
    return take_snapshot(state, SnapshotBuffers())


def test_the_file_is_an_ordinary_one_and_its_hash_is_right(tmp_path):
    state = {"w": torch.randn(1000, 1000), "n": 3}
    written = write_snapshot(_snapshot(state), tmp_path / "a" / "b.pt")
    data = written.path.read_bytes()
    assert written.size_bytes == len(data)
    assert written.sha256 == hashlib.sha256(data).hexdigest()
    assert zipfile.ZipFile(written.path).testzip() is None
    loaded = torch.load(written.path, weights_only=True)
    assert torch.equal(loaded["w"], state["w"])
    assert [path.name for path in written.path.parent.iterdir()] == ["b.pt"]


def test_a_file_loaded_earlier_is_untouched_by_its_replacement(tmp_path):
    path = tmp_path / "x.pt"
    write_snapshot(_snapshot(torch.zeros(10_000)), path)
    mapped = load_file(path)
    write_snapshot(_snapshot(torch.ones(10_000)), path)
    assert mapped.sum() == 0
    assert load_file(path).sum() == 10_000


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "x.pt"
    before = write_snapshot(_snapshot(torch.zeros(10)), path)
    # A file size limit makes write(2) fail in the middle, as a full disk or a quota does.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises((DiskFullError, DestinationError)) as caught:
            write_snapshot(_snapshot(torch.zeros(1_000_000)), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert "x.pt" in str(caught.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.pt"]
    assert path.stat().st_size == before.size_bytes


def test_no_space_is_its_own_error(tmp_path, monkeypatch):
    def full(fd, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("artifactsync.checkpoint.write.os.write", full)
    with pytest.raises(DiskFullError, match="no space left"):
        write_snapshot(_snapshot(torch.zeros(10)), tmp_path / "x.pt")
    assert list(tmp_path.iterdir()) == []


def test_a_file_where_the_folder_must_be(tmp_path):
    (tmp_path / "checkpoints").write_text("in the way")
    with pytest.raises(DestinationError, match="cannot write"):
        write_snapshot(_snapshot(1), tmp_path / "checkpoints" / "x.pt")


def test_latest_follows_and_never_replaces_a_real_file(tmp_path):
    for name in ("one.pt", "two.pt"):
        (tmp_path / name).write_text(name)
        point_latest(tmp_path / "latest-rank0.pt", tmp_path / name)
        assert str((tmp_path / "latest-rank0.pt").readlink()) == name
    (tmp_path / "real").write_text("precious")
    point_latest(tmp_path / "real", tmp_path / "one.pt")
    assert (tmp_path / "real").read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest-rank0.pt", "one.pt", "real", "two.pt"]
