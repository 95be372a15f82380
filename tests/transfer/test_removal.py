from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from artifactsync.transfer.removal import let_go, remove_file

if TYPE_CHECKING:
    from collections.abc import Callable


def _fds() -> set[str]:
    return {fd.name for fd in Path("/proc/self/fd").iterdir()}


def _soon(is_so: Callable[[], bool]) -> bool:
    end_s = time.monotonic() + 20
    while not is_so() and time.monotonic() < end_s:
        time.sleep(0.01)
    return is_so()


@pytest.mark.parametrize("size_bytes", [0, 10, 9 * 2**20])
def test_a_file_is_gone_at_once_and_its_room_soon(tmp_path: Path, size_bytes: int) -> None:
    path = tmp_path / "f"
    path.write_bytes(bytes(size_bytes))
    before = _fds()
    remove_file(path)
    assert not path.exists()
    assert _soon(lambda: _fds() <= before)


def test_the_last_hold_on_a_removed_file_is_let_go_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = []
    close = os.close
    monkeypatch.setattr(os, "close", lambda fd: (threads.append(threading.get_ident()), close(fd)))
    for size_bytes, is_removed, is_behind in ((9 * 2**20, True, True), (10, True, False), (9 * 2**20, False, False)):
        path = tmp_path / "f"
        path.write_bytes(bytes(size_bytes))
        fd = os.open(path, os.O_RDONLY)
        if is_removed:
            path.unlink()
        threads.clear()
        let_go(fd)
        assert _soon(lambda: len(threads) == 1)
        assert (threads[0] != threading.get_ident()) == is_behind


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
