"""Growing logs of a run: linear in bytes, whole for every reader, continued by the next attempt."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING, Any

import pytest

from artifactsync import Run
from artifactsync.errors import PermissionDeniedError
from artifactsync.journal.restore import Selection, pull_run
from artifactsync.stores import open_store
from artifactsync.testing import Fault, FaultyStore

if TYPE_CHECKING:
    from pathlib import Path

PATH = "logs-rank0.txt"


class Counting:
    """A store that counts the bytes sent to it, by key."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.sent: dict[str, int] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def put(self, key: str, body: Any) -> Any:
        self.sent[key] = self.sent.get(key, 0) + (len(body) if isinstance(body, bytes) else body.size_bytes)
        return self._store.put(key, body)


@pytest.fixture(params=["local", "s3", "gcs"])
def remote(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    if request.param == "local":
        return {"remote": str(tmp_path / "remote")}
    cloud = request.getfixturevalue(request.param)
    return {"remote": cloud.fresh_url(), "storage_options": cloud.storage_options}


def append(run: Run, data: bytes, path: str = PATH) -> Path:
    file = run.local_dir / path
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("ab") as log:
        log.write(data)
    return file


def leave(run: Run) -> None:
    """What a kill leaves: nothing more is written, nothing is told."""
    run.wait(30)
    run._writing.heart.stop()
    run._writing.publisher.close()
    run._is_closed = True


def tails(store: Any) -> list[str]:
    return [info.key for info in store.list() if "/tails/" in info.key]


def reader(remote: dict[str, Any], tmp_path: Path) -> Run:
    return Run("exp7", local_root=tmp_path / "nowhere", read_only=True, **remote)


def pulled(run: Run, destination: Path) -> bytes:
    run.pull(destination, only="logs")
    return (destination / PATH).read_bytes()


def test_100_flushes_send_each_byte_twice_at_most(tmp_path: Path) -> None:
    store = Counting(open_store(tmp_path / "remote"))
    with Run("exp7", remote=store, local_root=tmp_path / "runs") as run:  # type: ignore[arg-type]
        for number in range(100):
            run.push(append(run, b"%08d" % number * 100), growing=True).result(30)
        whole = (run.local_dir / PATH).read_bytes()
        live = sum(size for key, size in store.sent.items() if "/tails/" in key)
        assert live == len(whole)
        assert [(a.path, a.key, a.size) for a in run.artifacts()] == [(PATH, f"exp7/{PATH}", len(whole))]
    sent = sum(size for key, size in store.sent.items() if PATH in key)
    print(f"a log of {len(whole)} bytes in 100 flushes: {sent} bytes sent, {sent / len(whole):.3f} times its size")
    assert sent / len(whole) <= 2.1
    assert (tmp_path / "remote/exp7" / PATH).read_bytes() == whole


def test_a_live_log_a_killed_one_and_a_finished_one_are_whole(remote: dict[str, Any], tmp_path: Path) -> None:
    run = Run("exp7", local_root=tmp_path / "here", **remote)
    whole = b""
    for number in range(12):
        line = b"line %d\n" % number
        whole += line
        run.push(append(run, line), growing=True).result(30)
    other = reader(remote, tmp_path)
    assert [(a.path, a.size) for a in other.artifacts()] == [(PATH, len(whole))]
    assert pulled(other, tmp_path / "live") == whole
    report = other.pull(tmp_path / "dry", dry_run=True)
    assert (report.paths, report.bytes) == ((PATH,), len(whole))
    leave(run)
    assert pulled(other, tmp_path / "killed") == whole
    with Run("exp7", local_root=tmp_path / "there", takeover=True, **remote) as second:
        digest = hashlib.sha256(whole[:40]).hexdigest()
        assert second.fetch_log(PATH, second.local_dir / PATH, size_bytes=40, sha256=digest)
        (second.local_dir / PATH).write_bytes((second.local_dir / PATH).read_bytes()[:40])
        second.push(append(second, b"attempt 2\n"), growing=True).result(30)
        assert pulled(other, tmp_path / "second") == whole[:40] + b"attempt 2\n"
        assert not second.fetch_log(PATH, tmp_path / "other", size_bytes=40, sha256="0" * 64)
        assert second.fetch_log(PATH, tmp_path / "all", size_bytes=len(whole), sha256=hashlib.sha256(whole).hexdigest())
    for key in ("logs-rank0.a2.txt", "logs-rank0.txt"):  # its own, and for other tools the plain one
        assert second.fs.cat_file(key) == whole[:40] + b"attempt 2\n"
    assert [(a.path, a.size) for a in other.artifacts()] == [(PATH, 50)]
    assert pulled(other, tmp_path / "finished") == whole[:40] + b"attempt 2\n"
    assert len(tails(other._store)) == 1  # the seal alone


def test_a_stopped_run_keeps_its_segments_for_the_next_attempt(tmp_path: Path) -> None:
    store = Counting(open_store(tmp_path / "remote"))
    run = Run("exp7", remote=store, local_root=tmp_path / "runs")  # type: ignore[arg-type]
    for number in range(10):
        run.push(append(run, b"line %d\n" % number), growing=True).result(30)
    run.finish("preempted")
    run.close()
    other = reader({"remote": store}, tmp_path)
    assert (tmp_path / "remote/exp7" / PATH).stat().st_size == 70
    assert len(tails(store)) == 11
    assert [a.size for a in other.artifacts()] == [70]
    store.sent.clear()
    second = Run("exp7", remote=store, local_root=tmp_path / "runs")  # type: ignore[arg-type]
    second.push(append(second, b"more\n"), growing=True).result(30)
    assert sum(size for key, size in store.sent.items() if PATH in key) == 5
    assert [a.size for a in other.artifacts()] == [75]
    assert pulled(other, tmp_path / "out").endswith(b"line 9\nmore\n")
    second.close()
    assert len(tails(store)) == 1
    third = Run("exp7", remote=store, local_root=tmp_path / "runs")  # type: ignore[arg-type]
    third.push(append(third, b"third\n"), growing=True).result(30)
    assert pulled(other, tmp_path / "out").endswith(b"more\nthird\n")
    third.close()


def test_a_role_that_may_not_delete_leaves_segments_that_are_passed_over(tmp_path: Path) -> None:
    store = FaultyStore(open_store(tmp_path / "remote"), [Fault(kind="permission", operations={"delete"})])
    with Run("exp7", remote=store, local_root=tmp_path / "runs", allow_unfenced=True) as run:
        for number in range(5):
            run.push(append(run, b"line %d\n" % number), growing=True).result(30)
        with pytest.raises(PermissionDeniedError):
            store.delete(["x"])
    assert len(tails(store)) == 6
    plain = tmp_path / "remote/exp7" / PATH
    assert plain.stat().st_size == 35
    plain.write_bytes(b"edited by hand, and longer than before\n")
    other = reader({"remote": store}, tmp_path)
    assert pulled(other, tmp_path / "out").startswith(b"edited")
    plain.unlink()
    assert pulled(other, tmp_path / "again").endswith(b"line 4\n")  # the segments are still there


def test_a_log_that_becomes_whole_while_it_is_pulled(tmp_path: Path) -> None:
    remote = {"remote": str(tmp_path / "remote")}
    run = Run("exp7", local_root=tmp_path / "runs", **remote)  # type: ignore[arg-type]
    for number in range(3):
        run.push(append(run, b"line %d\n" % number), growing=True).result(30)
    before, catalogue = run.contents(), run.catalogue()
    run.close()
    other = reader(remote, tmp_path)
    pull_run(
        other._store,
        other._layout,
        tmp_path / "out",
        selection=Selection(),
        catalogue=catalogue,
        contents=before,
    )
    assert (tmp_path / "out" / PATH).read_bytes() == b"line 0\nline 1\nline 2\n"


@pytest.mark.parametrize("damage", ["flipped", "shorter", "gone"])
def test_a_damaged_segment_ends_the_log_loudly(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    remote = {"remote": str(tmp_path / "remote")}
    run = Run("exp7", local_root=tmp_path / "runs", **remote)  # type: ignore[arg-type]
    for number in range(4):
        run.push(append(run, b"line %d\n" % number), growing=True).result(30)
    run.push(append(run, b"other\n", "deep/other.txt"), growing=True).result(30)
    third = tmp_path / "remote" / sorted(key for key in tails(run._store) if PATH in key)[2]
    if damage == "gone":
        third.unlink()
    else:
        third.write_bytes(b"LINE 2\n" if damage == "flipped" else b"line")
    assert pulled(reader(remote, tmp_path), tmp_path / "out") == b"line 0\nline 1\n"
    assert (tmp_path / "out/deep/other.txt").read_bytes() == b"other\n"
    assert ("damaged" in caplog.text) is (damage == "flipped")
    leave(run)


def test_a_zombie_does_not_put_its_log_in_the_way(tmp_path: Path) -> None:
    remote = {"remote": str(tmp_path / "remote")}
    zombie = Run("exp7", local_root=tmp_path / "a", **remote)  # type: ignore[arg-type]
    zombie.push(append(zombie, b"of the zombie\n"), growing=True).result(30)
    second = Run("exp7", local_root=tmp_path / "b", takeover=True, **remote)  # type: ignore[arg-type]
    second.push(append(second, b"second\n"), growing=True).result(30)
    for state in ("live", "done"):
        zombie.push(append(zombie, b"more of it\n"), growing=True).result(30)
        other = reader(remote, tmp_path)
        assert pulled(other, tmp_path / state) == b"second\n"
        with pytest.raises(Exception, match="attempt 2"):
            zombie.finish()
        assert pulled(other, tmp_path / state) == b"second\n"
        if state == "live":
            second.close()
    with pytest.raises(Exception, match="attempt 2"):
        zombie.close()
    assert pulled(other, tmp_path / "end") == b"second\n"


def test_a_zombie_that_looked_too_early_replaces_no_log_of_a_completed_attempt(tmp_path: Path) -> None:
    """It is stopped between looking whether the run is still its own and putting its whole file, and wakes later."""
    remote = {"remote": str(tmp_path / "remote")}
    store = open_store(remote["remote"])
    zombie = Run("exp7", local_root=tmp_path / "a", **remote)  # type: ignore[arg-type]
    zombie.push(append(zombie, b"of the zombie\n"), growing=True).result(30)
    for number in (2, 3):
        with Run("exp7", local_root=tmp_path / f"{number}", takeover=True, **remote) as run:  # type: ignore[arg-type]
            run.push(append(run, b"attempt %d\n" % number), growing=True).result(30)
        zombie.push(append(zombie, b"more\n"), growing=True).result(30)
        zombie._writing.logs.seal(zombie._store, timeout=lambda: 30.0, clean=True)  # it looked before
        assert store.get(f"exp7/{PATH}").startswith(b"of the zombie\n")
        other = reader(remote, tmp_path)
        assert [a.path for a in other.artifacts()] == [PATH]
        assert pulled(other, tmp_path / f"pulled{number}") == b"attempt %d\n" % number
        assert other.read_artifact(other.artifacts()[0], other.contents()) == b"attempt %d\n" % number
        digest = hashlib.sha256(b"attempt").hexdigest()
        assert other.fetch_log(PATH, tmp_path / "back", size_bytes=7, sha256=digest)
        assert (tmp_path / "back").read_bytes() == b"attempt %d\n" % number
    assert f"exp7/{PATH.replace('.txt', '.a2.txt')}" not in [info.key for info in store.list()]
    with pytest.raises(Exception, match="attempt 2"):
        zombie.close()


CHILD = """
    import os, sys, json, random
    from artifactsync import Run
    from artifactsync.stores import open_store
    from artifactsync.testing import FaultyStore
    url, options, root, seed, fatal, when = json.loads(sys.argv[1])

    def die(call):
        if call.total == fatal:
            os._exit(9)

    store = FaultyStore(open_store(url, options), **{when: die})
    chance = random.Random(seed)
    run = Run("exp7", remote=store, local_root=root, takeover=True)
    log = run.local_dir / "logs-rank0.txt"
    for number in range(12):
        with log.open("ab") as file:
            file.write(b"attempt %d line %d\\n" % (run.attempt, number) * chance.randint(1, 3))
        run.push(log, growing=True).result(60)
        print(log.stat().st_size, flush=True)
    run.close(state=chance.choice(["completed", "preempted"]))
    print(store.calls.total(), flush=True)
"""


def start(url: str, options: dict[str, Any], root: Path, seed: int, fatal: int, when: str) -> tuple[int, list[int]]:
    """Run the child to its end or its death; what it said was durable."""
    arguments = json.dumps([url, options, str(root), seed, fatal, when])
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(CHILD), arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, "PYTHONWARNINGS": "error"},
    )
    assert done.returncode in {0, 9}, done.stderr
    return done.returncode, [int(word) for word in done.stdout.split()]


def kill_at(points: Any, url_of: Any, options: dict[str, Any], tmp_path: Path) -> int:
    kills = 0
    for number, (fatal, when) in enumerate(points):
        url, root = url_of(number), tmp_path / f"here-{number}"
        code, said = start(url, options, root, number, fatal, when)
        kills += code == 9
        run = Run("exp7", remote=url, storage_options=options, local_root=tmp_path / "nowhere", read_only=True)
        written = root / "exp7" / PATH
        if not said or not written.exists():
            continue
        whole, out = written.read_bytes(), tmp_path / f"out-{number}"
        read = pulled(run, out)
        assert whole.startswith(read), (fatal, when)
        assert len(read) >= (said[-1] if code else len(whole)), (fatal, when)
        # Another machine, at an earlier position than the last flush.
        place = random.Random(number).choice(said[:-1] if code == 0 else said)
        elsewhere = tmp_path / f"there-{number}"
        local = elsewhere / "exp7" / PATH
        local.parent.mkdir(parents=True)
        assert run.fetch_log(PATH, local, size_bytes=place, sha256=hashlib.sha256(whole[:place]).hexdigest())
        local.write_bytes(local.read_bytes()[:place])
        code, said = start(url, options, elsewhere, number + 1, 10_000, "on_call")
        assert code == 0
        continued = pulled(run, tmp_path / f"again-{number}")
        assert continued == local.read_bytes()
        assert continued.startswith(whole[:place] + b"attempt 2 line 0\n")
    return kills


def points_of(url: str, options: dict[str, Any], root: Path, step: int) -> list[tuple[int, str]]:
    """The calls of a child at which it is to die, before the call is applied and after."""
    code, said = start(url, options, root, 0, 10_000, "on_call")
    assert code == 0
    return list(itertools.product(range(said[-1], 0, -step), ("on_call", "on_answer")))


def test_killed_at_a_call_what_is_read_is_a_prefix(tmp_path: Path) -> None:
    points = points_of(str(tmp_path / "remote"), {}, tmp_path / "counted", 9)[:6]
    assert kill_at(points, lambda number: str(tmp_path / f"remote-{number}"), {}, tmp_path) >= 3


@pytest.mark.crash
@pytest.mark.parametrize("kind", ["local", "s3", "gcs"])
def test_killed_at_every_call_what_is_read_is_a_prefix(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str
) -> None:
    if kind == "local":
        points = points_of(str(tmp_path / "remote"), {}, tmp_path / "counted", 1)
        kills = kill_at(points, lambda number: str(tmp_path / f"remote-{number}"), {}, tmp_path)
    else:
        cloud = request.getfixturevalue(kind)
        points = points_of(cloud.fresh_url(), cloud.storage_options, tmp_path / "counted", 3)
        kills = kill_at(points, lambda _: cloud.fresh_url(), cloud.storage_options, tmp_path)
    print(f"logs, {kind}: {kills} kills at store calls, 0 logs that are no prefix, 0 that cannot be continued")
    assert kills >= len(points) * 3 // 4
