from __future__ import annotations

import os
import subprocess
import sys

from artifactsync.stores import runtime


def run(code):
    """Run in a process of its own: a process has one runtime, and starts it once."""
    head = """
import os
from artifactsync.stores import BytesBody, open_store, runtime
def classes():
    return sorted({os.sched_getscheduler(t) for t in runtime.runtime_thread_ids()})
"""
    done = subprocess.run([sys.executable, "-c", head + code], capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.split()


def test_a_polite_runtime_works_at_idle_priority_and_leaves_its_caller_alone():
    shown = run("""
print(runtime.start_polite_runtime(), classes() == [os.SCHED_IDLE], os.sched_getscheduler(0) == os.SCHED_OTHER)
store = open_store("memory://x")
store.put("a", BytesBody(bytes(20 << 20)))
print(len(store.get("a")) == 20 << 20, classes() == [os.SCHED_IDLE], runtime.start_polite_runtime())
""")
    assert shown == ["True", "True", "True", "True", "True", "False"]


def test_a_runtime_that_runs_already_is_left_alone():
    shown = run("""
open_store("memory://x").put("a", b"1")
print(runtime.start_polite_runtime(), classes() == [os.SCHED_OTHER])
""")
    assert shown == ["False", "True"]


def test_moving_the_threads_to_idle_and_telling_whether_they_came_back():
    shown = run("""
print(runtime.set_runtime_priority(polite=True))
open_store("memory://x").put("a", b"1")
print(runtime.set_runtime_priority(polite=True), classes() == [os.SCHED_IDLE])
came_back = runtime.set_runtime_priority(polite=False)
print(came_back == (classes() == [os.SCHED_OTHER]))
""")
    assert shown == ["False", "True", "True", "True"]


def test_a_download_is_in_the_foreground_whatever_an_uploader_wishes():
    shown = run("""
from artifactsync.transfer.download import download_file
store = open_store("memory://x")
store.put("a", BytesBody(bytes(20 << 20)))
seen = []
def look(_):
    seen.append((runtime.set_runtime_priority(polite=True), classes() == [os.SCHED_OTHER]))
import tempfile, pathlib
runtime.set_runtime_priority(polite=True)
came_back = runtime.set_runtime_priority(polite=False)
runtime.set_runtime_priority(polite=True)
download_file(store, "a", pathlib.Path(tempfile.mkdtemp()) / "a", on_progress=look)
print(bool(seen), set(seen) == {(False, came_back)}, runtime.set_runtime_priority(polite=True))
""")
    assert shown == ["True", "True", "True"]


def test_threads_that_never_come_are_waited_for_once(monkeypatch):
    """A cgroup with fewer processors than the machine: obstore starts fewer threads than there are to see."""
    looks = []
    monkeypatch.setattr(runtime, "_started_in_pid", os.getpid())
    monkeypatch.setattr(runtime, "_is_settled", False)
    monkeypatch.setattr(runtime, "_named_thread_ids", lambda: looks.append(1) or [1])
    monkeypatch.setenv("TOKIO_WORKER_THREADS", "4")
    assert runtime.runtime_thread_ids() == [1]
    assert len(looks) > 1
    looks.clear()
    assert runtime.runtime_thread_ids() == [1]
    assert len(looks) == 1
