"""Segments of growing files: sent once, in order, and put together again byte for byte."""

from __future__ import annotations

import hashlib
import itertools
import random
import resource

import pytest

from artifactsync.errors import ArtifactSyncError, FileChangedError
from artifactsync.naming import RunLayout
from artifactsync.stores import open_store
from artifactsync.stores.protocol import ObjectInfo
from artifactsync.testing import Fault, FaultyStore
from artifactsync.transfer import tail as tail_module
from artifactsync.transfer.tail import ROOT, Seal, Segment, Tail, chain_of, place_of, read_name, segments_of

LAYOUT = RunLayout("r")
_numbers = itertools.count()


@pytest.fixture
def store():
    return open_store(f"memory://tail-{next(_numbers)}")


@pytest.fixture
def log(tmp_path):
    return tmp_path / "log.txt"


def assembled(store, path="log.txt"):
    segments, _ = segments_of(LAYOUT, store.list(LAYOUT.tails))
    chain = chain_of(segments.get(path, ()))
    return b"".join(store.get(segment.key(LAYOUT)) for segment in chain)


def append(log, data):
    with log.open("ab") as file:
        file.write(data)


def test_what_is_new_is_sent_and_the_whole_is_there(store, log):
    tail = Tail(LAYOUT, "log.txt", attempt=1)
    whole = b""
    for number in range(20):
        line = b"line %d\n" % number
        append(log, line)
        whole += line
        sent = tail.send(store, str(log))
        assert (sent.key, sent.size_bytes) == ("r/log.txt", len(whole))
        assert sent.sha256 == hashlib.sha256(whole).hexdigest()
        assert assembled(store) == whole
    assert sum(info.size_bytes for info in store.list()) == len(whole)
    assert tail.send(store, str(log)).size_bytes == len(whole)  # nothing new, nothing sent
    assert len(list(store.list())) == 20


def test_an_empty_log_is_there_too(store, log):
    log.touch()
    Tail(LAYOUT, "log.txt", attempt=1).send(store, str(log))
    segments, _ = segments_of(LAYOUT, store.list())
    assert [segment.end for segment in chain_of(segments["log.txt"])] == [0]


def test_segments_are_cut_at_whole_multiples(store, log, monkeypatch):
    monkeypatch.setattr(tail_module, "SEGMENT_BYTES", 100)
    tail = Tail(LAYOUT, "log.txt", attempt=1)
    append(log, b"a" * 30)
    tail.send(store, str(log))
    append(log, b"b" * 300)
    tail.send(store, str(log))
    segments, _ = segments_of(LAYOUT, store.list())
    chain = chain_of(segments["log.txt"])
    assert [(s.start, s.end) for s in chain] == [(0, 30), (30, 100), (100, 200), (200, 300), (300, 330)]
    assert [place_of(chain, offset) for offset in (0, 29, 30, 99, 100, 329)] == [0, 0, 1, 1, 2, 4]
    assert assembled(store) == b"a" * 30 + b"b" * 300


@pytest.mark.parametrize("change", ["cut", "cut and grown", "rewritten", "another file", "emptied"])
def test_a_log_that_is_not_append_only_any_more_begins_a_new_generation(store, log, tmp_path, change):
    tail = Tail(LAYOUT, "log.txt", attempt=1)
    for line in (b"one\n", b"two\n", b"three\n"):
        append(log, line)
        tail.send(store, str(log))
    now = {
        "cut": b"one\ntwo\n",
        "cut and grown": b"one\nother\nand more than before\n",
        "rewritten": b"One\ntwo\nthree\n",
        "another file": b"something else\n",
        "emptied": b"",
    }[change]
    if change == "another file":
        (tmp_path / "new").write_bytes(now)
        (tmp_path / "new").replace(log)
    else:
        log.write_bytes(now)
    before = {info.key for info in store.list()}
    sent = tail.send(store, str(log))
    assert sent.sha256 == hashlib.sha256(now).hexdigest()
    assert assembled(store) == now
    assert tail.generation == (1, 2)
    new = sum(info.size_bytes for info in store.list() if info.key not in before)
    assert new <= {"cut": 0, "cut and grown": len(now) - 4}.get(change, len(now))  # the same beginning is not sent
    append(log, b"on")
    tail.send(store, str(log))
    assert assembled(store) == now + b"on"


def test_a_file_replaced_by_its_own_copy_goes_on(store, log, tmp_path):
    tail = Tail(LAYOUT, "log.txt", attempt=1)
    append(log, b"one\n")
    tail.send(store, str(log))
    (tmp_path / "copy").write_bytes(b"one\ntwo\n")
    (tmp_path / "copy").replace(log)
    tail.send(store, str(log))
    assert assembled(store) == b"one\ntwo\n"
    assert sum(info.size_bytes for info in store.list()) == 8


def test_the_next_attempt_goes_on_where_the_log_was_cut(store, log, tmp_path):
    first = Tail(LAYOUT, "log.txt", attempt=1)
    for line in (b"one\n", b"two\n", b"three\n"):
        append(log, line)
        first.send(store, str(log))
    elsewhere = tmp_path / "elsewhere.txt"
    elsewhere.write_bytes(b"one\ntwo\nagain\n")
    before = sum(info.size_bytes for info in store.list())
    second = Tail(LAYOUT, "log.txt", attempt=2)
    second.send(store, str(elsewhere))
    assert assembled(store) == b"one\ntwo\nagain\n"
    assert sum(info.size_bytes for info in store.list()) - before == len(b"again\n")
    append(log, b"of a zombie\n")
    first.send(store, str(log))
    assert assembled(store) == b"one\ntwo\nagain\n"


def test_when_any_call_fails_a_prefix_is_there_and_the_next_push_goes_on(log):
    """Also when the answer is lost, and however long the log has become by the next try."""
    lines = [b"line %d\n" % number for number in range(12)]
    hits = 0
    for kind, operation, hit in itertools.product(("transient", "lost-response"), ("put", "list"), range(1, 14)):
        inner = open_store(f"memory://tail-{next(_numbers)}")
        store = FaultyStore(inner, [Fault(kind=kind, calls={hit}, operations={operation})])
        log.write_bytes(b"")
        tail, failures = Tail(LAYOUT, "log.txt", attempt=1), 0
        for number, line in enumerate([*lines, b""]):
            append(log, line)
            try:
                tail.send(store, str(log))
            except ArtifactSyncError:
                failures += 1
                assert b"".join(lines[: number + 1]).startswith(assembled(inner))
            else:
                assert assembled(inner) == b"".join(lines[: number + 1])
        assert failures == store.faults_hit
        hits += failures
        assert assembled(inner) == b"".join(lines)
    assert hits >= 24


def test_a_missing_segment_hides_what_is_behind_it(store, log):
    tail = Tail(LAYOUT, "log.txt", attempt=1)
    for line in (b"one\n", b"two\n", b"three\n"):
        append(log, line)
        tail.send(store, str(log))
    segments, _ = segments_of(LAYOUT, store.list())
    middle = sorted(segments["log.txt"], key=lambda s: s.start)[1]
    store.delete([middle.key(LAYOUT)])
    assert assembled(store) == b"one\n"


def test_a_log_cut_while_it_is_read(store, log, monkeypatch):
    tail = Tail(LAYOUT, "log.txt", attempt=1)
    append(log, b"x" * 100)
    real = tail_module._read

    def cut_meanwhile(fd, start, end):
        if end == 100:
            log.write_bytes(b"y" * 10)
        return real(fd, start, end)

    monkeypatch.setattr(tail_module, "_read", cut_meanwhile)
    with pytest.raises(FileChangedError, match="cut"):
        tail.send(store, str(log))
    monkeypatch.undo()
    tail.send(store, str(log))
    assert assembled(store) == b"y" * 10


def test_names_are_read_back_and_nothing_else_is_taken_for_one():
    segment = Segment(path="a/b.txt", generation=(3, 4), start=5, end=9, after=ROOT, sha256="0" * 64)
    assert segment.key(LAYOUT).startswith("r/.artifactsync/tails/a/b.txt/000003-000004/")
    assert read_name(LAYOUT, ObjectInfo(key=segment.key(LAYOUT), size_bytes=4)) == segment
    assert read_name(LAYOUT, ObjectInfo(key=segment.key(LAYOUT), size_bytes=3)) is None
    seal = Seal(path="a/b.txt", generation=(3, 4), size_bytes=9, sha256="0" * 64)
    assert read_name(LAYOUT, ObjectInfo(key=seal.key(LAYOUT), size_bytes=0)) == seal
    for key in (
        "r/a/b.txt",
        "r/.artifactsync/tails/x",
        "r/.artifactsync/tails/a/000001-000001/x",
        segment.key(LAYOUT) + "0",
    ):
        assert read_name(LAYOUT, ObjectInfo(key=key, size_bytes=4)) is None


def test_any_history_of_pushes_cuts_and_attempts_reads_as_the_newest_file(log):
    """500 seeded histories: after each push that worked, the listing alone gives the file as it was."""
    for seed in range(500):
        chance = random.Random(seed)
        inner = open_store(f"memory://tail-{next(_numbers)}")
        store = FaultyStore(
            inner, [Fault(kind="lost-response", probability=0.1), Fault(kind="transient", probability=0.1)]
        )
        store._plan.seed = seed
        log.write_bytes(b"")
        attempt = 1
        tail = Tail(LAYOUT, "log.txt", attempt=attempt)
        for _ in range(12):
            what = chance.random()
            if what < 0.15:
                data = log.read_bytes()
                log.write_bytes(data[: chance.randint(0, len(data))])
            elif what < 0.25:
                attempt += 1
                tail = Tail(LAYOUT, "log.txt", attempt=attempt)
            append(log, bytes(chance.choices(b"ab", k=chance.randint(0, 3))))
            try:
                sent = tail.send(store, str(log))
            except ArtifactSyncError:
                continue
            assert sent.sha256 == hashlib.sha256(log.read_bytes()).hexdigest()
            assert assembled(inner) == log.read_bytes(), seed


@pytest.mark.crash
def test_a_log_of_1_gb_in_bounded_memory(tmp_path):
    log, store = tmp_path / "log.txt", open_store(tmp_path / "remote")
    chunk = random.Random(1).randbytes(1 << 20)
    with log.open("wb") as file:
        for _ in range(1000):
            file.write(chunk)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    Tail(LAYOUT, "log.txt", attempt=1).send(store, str(log))
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    sent = sum(info.size_bytes for info in store.list())
    print(f"a log of 1,000 MiB: {sent / 2**20:.0f} MiB sent, peak memory grew by {grown:.0f} MiB")
    assert sent == log.stat().st_size
    assert grown < 64
