"""Whole processes: how they end, how they are ended, and what they fork."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap

import pytest

from artifactsync.stores import open_store
from artifactsync.stores.local import LocalStore

from .conftest import DEADLINE_S

_PRELUDE = """
import os, signal, sys, threading, time
from pathlib import Path
from artifactsync.stores.local import LocalStore
from artifactsync.testing import Fault, FaultyStore
from artifactsync.transfer.queue import UploadQueue

folder = Path(sys.argv[1])
path = folder / "file"
path.write_bytes(b"x" * 100_000)
store = LocalStore(folder / "remote")
never, arrived = threading.Event(), threading.Event()

def hold(call):  # every upload of "stuck" hangs for ever
    if call.key == "stuck":
        print("stuck", flush=True)
        arrived.set()
        never.wait()

stuck_store = FaultyStore(store, on_call=hold)
"""


@pytest.fixture
def start(tmp_path):
    """Start a Python program after the prelude."""
    programs = []

    def start(program, **environment):
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", _PRELUDE + textwrap.dedent(program), str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        programs.append(process)
        return process

    yield start
    for process in programs:
        if process.poll() is None:
            process.kill()
        process.communicate()


def _end(process):
    stdout, stderr = process.communicate(timeout=DEADLINE_S)
    return process.returncode, stdout, stderr


def _durable(tmp_path):
    return sorted(
        str(path.relative_to(tmp_path / "remote")) for path in (tmp_path / "remote").rglob("*") if path.is_file()
    )


def test_an_interpreter_that_ends_uploads_what_was_submitted(start, tmp_path):
    code, _, stderr = _end(start("q = UploadQueue(store)\nfor n in range(50): q.submit(f'f{n}', path)"))
    assert (code, stderr) == (0, "")
    assert len(_durable(tmp_path)) == 50


def test_so_does_one_that_ends_by_an_exception_or_sys_exit(start, tmp_path):
    code, _, stderr = _end(start("UploadQueue(store).submit('f', path)\nsys.exit(3)"))
    assert (code, stderr) == (3, "")
    assert _durable(tmp_path) == ["f"]
    code, _, stderr = _end(start("UploadQueue(store).submit('g', path)\nraise KeyError('mine')"))
    assert code == 1
    assert "KeyError: 'mine'" in stderr
    assert _durable(tmp_path) == ["f", "g"]


def test_what_another_thread_submits_at_the_very_end_is_uploaded(start, tmp_path):
    program = """
    q = UploadQueue(store)
    q.submit('early', path)
    def late():
        threading.main_thread().join()
        UploadQueue(store).submit('late', path)
    threading.Thread(target=late).start()
    """
    code, _, stderr = _end(start(program))
    assert (code, stderr) == (0, "")
    assert _durable(tmp_path) == ["early", "late"]


def test_an_interpreter_that_starts_no_more_threads_uploads_all_the_same(start, tmp_path):
    program = """
    def start(self): raise RuntimeError("can't create new thread at interpreter shutdown")
    threading.Thread.start = start
    q = UploadQueue(FaultyStore(store, [Fault(kind="transient", operations={"put"}, probability=0.3)]))
    for n in range(5): q.submit(f'f{n}', path)
    """
    code, _, stderr = _end(start(program))
    assert code == 0
    assert "Traceback" not in stderr
    assert len(_durable(tmp_path)) == 5


def test_the_grace_period_bounds_the_end_and_one_line_says_what_is_lost(start, tmp_path):
    program = "q = UploadQueue(stuck_store)\nq.submit('fine', path).result()\nq.submit('stuck', path)"
    code, _, stderr = _end(start(program, ARTIFACTSYNC_GRACE_S="0.2"))
    pending = f"1 file (100000 bytes) on the way to file://{tmp_path}/remote"
    assert code == 0
    assert stderr.splitlines() == [
        f"artifactsync: not everything is durable: after 0.2 s these are not durable: {pending}"
    ]
    assert _durable(tmp_path) == ["fine"]


def test_a_failure_nobody_asked_for_is_told_at_the_end(start):
    program = """
    import logging; logging.disable()
    UploadQueue(FaultyStore(store, [Fault(kind="permission")])).submit('dir/f', path)
    """
    code, _, stderr = _end(start(program))
    assert code == 0
    (line,) = stderr.splitlines()
    assert line.startswith("artifactsync: not everything is durable: upload of dir/f failed after 1 attempt: ")


def test_ctrl_c_twice_ends_the_drain(start):
    program = """
    from artifactsync.transfer import at_exit
    at_exit._TELL_AFTER_S = 0.05
    q = UploadQueue(stuck_store)
    try:
        q.submit('stuck', path)
        while not never.wait(0.05):  # CPython misses a signal that comes just before a wait without an end
            pass
    except KeyboardInterrupt:
        print("first", flush=True)
        sys.exit(130)
    """
    process = start(program)
    assert process.stdout.readline() == "stuck\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "first\n"
    assert "waiting for 1 file (100000 bytes)" in process.stderr.readline()  # it drains
    process.send_signal(signal.SIGINT)
    code, _, stderr = _end(process)
    assert code == 130
    assert stderr.splitlines()[-1].startswith("artifactsync: interrupted; not durable: 1 file (100000 bytes)")
    assert "Traceback" not in stderr


def test_ctrl_c_while_waiting_is_a_keyboard_interrupt(start):
    program = """
    q = UploadQueue(stuck_store)
    q.submit('stuck', path)
    try:
        q.close()
    except KeyboardInterrupt:
        print("interrupted", flush=True)
    """
    process = start(program)
    assert process.stdout.readline() == "stuck\n"
    process.send_signal(signal.SIGINT)
    code, stdout, stderr = _end(process)
    assert (code, stdout) == (0, "interrupted\n")
    assert "Traceback" not in stderr


@pytest.mark.parametrize("size_mib", [1, 40])
def test_kill_9_in_mid_upload_leaves_nothing_at_a_visible_name(start, tmp_path, size_mib):
    program = f"""
    path.write_bytes(bytes({size_mib} << 20))
    from artifactsync.transfer import hashing
    read = hashing.FileBody._read
    def read_and_die(self, length, offset):
        data = read(self, length, offset)
        if offset + length == self.size_bytes:  # all but the last chunk is with the store by now
            os.kill(os.getpid(), signal.SIGKILL)
        return data
    hashing.FileBody._read = read_and_die
    UploadQueue(store).submit('f', path).result()
    """
    code, _, _ = _end(start(program))
    assert code == -signal.SIGKILL
    assert [info.key for info in LocalStore(tmp_path / "remote").list()] == []


def test_a_forked_child_neither_uploads_nor_hangs_nor_holds_files(start, tmp_path):
    program = """
    import warnings; warnings.simplefilter("ignore", DeprecationWarning)  # fork with threads: just what we test
    q = UploadQueue(stuck_store, max_concurrency=1)
    q.submit('stuck', path)
    upload = q.submit('waiting', path)
    arrived.wait()
    pid = os.fork()
    if pid == 0:
        from artifactsync.errors import ConfigurationError
        for call in (lambda: q.submit('child', path), q.wait, upload.result):
            try: call()
            except ConfigurationError: pass
            else: print("the child was let through", flush=True)
        q.close()
        held = [os.path.realpath(fd) for fd in Path("/proc/self/fd").iterdir()]
        print("held" if str(path) in held else "released", flush=True)
        sys.exit(5)  # an ordinary end, with all exit hooks
    print("child", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
    os._exit(0)
    """
    code, stdout, stderr = _end(start(program))
    assert (code, stdout, stderr) == (0, "stuck\nreleased\nchild 5\n", "")
    assert _durable(tmp_path) == []


def test_a_forked_data_loader_worker_ends_while_the_parent_uploads(start, tmp_path):
    program = """
    import multiprocessing, warnings; warnings.simplefilter("ignore", DeprecationWarning)
    q = UploadQueue(FaultyStore(store))
    for n in range(20): q.submit(f'f{n}', path)
    worker = multiprocessing.get_context("fork").Process(target=print, args=("worked",), kwargs={"flush": True})
    worker.start(); worker.join(10)
    print(worker.exitcode)
    """
    code, stdout, stderr = _end(start(program))
    assert (code, stdout, stderr) == (0, "worked\n0\n", "")
    assert len(_durable(tmp_path)) == 20


def test_an_interpreter_that_ends_uploads_to_a_real_server(start, s3):
    url = s3.fresh_url()
    program = f"""
    from artifactsync import RemoteUploaderDownloader
    up = RemoteUploaderDownloader({url!r}, run_name="r")
    for n in range(5): up.upload_file(f"{{{{run_name}}}}/f{{n}}", path)
    """
    code, _, stderr = _end(start(program, **s3.environment))
    assert (code, stderr) == (0, "")
    assert [info.key for info in open_store(url, s3.storage_options).list()] == [f"r/f{n}" for n in range(5)]


def test_a_grace_period_that_is_no_number_is_said_once(start):
    program = start("UploadQueue(store).submit('file', path)", ARTIFACTSYNC_GRACE_S="soon")
    _, err = program.communicate(timeout=DEADLINE_S)
    assert program.returncode == 0
    assert err.count("waiting without a bound") == 1
