from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from artifactsync.transfer.removal import remove_file

_FDS = Path("/proc/self/fd")


@pytest.mark.parametrize("size_bytes", [0, 10, 9 * 2**20])
def test_a_file_is_gone_at_once_and_its_room_soon(tmp_path: Path, size_bytes: int) -> None:
    path = tmp_path / "f"
    path.write_bytes(bytes(size_bytes))
    before = {fd.name for fd in _FDS.iterdir()}
    remove_file(path)
    assert not path.exists()
    for thread in threading.enumerate():
        if thread.name == "artifactsync-remove":
            thread.join(20)
    assert {fd.name for fd in _FDS.iterdir()} <= before


def test_what_cannot_be_removed_is_left(tmp_path: Path) -> None:
    remove_file(tmp_path / "nothing")
    (tmp_path / "folder").mkdir()
    remove_file(tmp_path / "folder")
    assert (tmp_path / "folder").is_dir()


def test_a_link_is_removed_and_not_what_it_names(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(bytes(9 * 2**20))
    (tmp_path / "link").symlink_to("f")
    remove_file(tmp_path / "link")
    assert not (tmp_path / "link").is_symlink()
    assert (tmp_path / "f").exists()


def test_a_pipe_hangs_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    remove_file(tmp_path / "pipe")
    assert not (tmp_path / "pipe").exists()
