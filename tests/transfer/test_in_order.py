from __future__ import annotations

import hashlib
import itertools
import json
import os
import threading
import time
import zlib

import pytest

from artifactsync.transfer import in_order
from artifactsync.transfer.folder import Folder
from artifactsync.transfer.held import part_line, prefix_line, read_held
from artifactsync.transfer.in_order import InOrder
from artifactsync.transfer.partial import PartialFile
from artifactsync.transfer.places import Places
from tests.transfer.conftest import DEADLINE_S

PART = 1000
DATA = os.urandom(3 * PART + 7)
PARTS = [DATA[at : at + PART] for at in range(0, len(DATA), PART)]


@pytest.fixture
def begin(tmp_path):
    """Opens the partial file as a download does; what is there is kept."""
    opened = []
    with Folder(tmp_path) as folder:

        def open_it(places=None):
            partial = PartialFile(folder, "f", "s3://b/f")
            opened.append(partial)
            partial.is_resumable = True
            held = partial.held_parts({"sha256": "x"}, PART, len(DATA))
            return partial, held, InOrder(partial, PART, len(DATA), held, places or Places(PART, 12))

        yield open_it
        for partial in opened:
            partial.close()


def _record(tmp_path):
    (path,) = tmp_path.glob(".*.ranges")
    return [json.loads(line) for line in path.read_text().splitlines()[1:]]


def _wait_until(is_so):
    until = time.monotonic() + DEADLINE_S
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.001)


@pytest.mark.parametrize("kept", [1, 2, 12])
@pytest.mark.parametrize("way", list(itertools.permutations(range(4))))
def test_parts_are_hashed_in_order_however_they_come_and_however_few_may_wait(begin, kept, way):
    places = Places(PART, kept)
    partial, _, order = begin(places)
    for part in way:
        place = places.take()
        place[: len(PARTS[part])] = PARTS[part]
        data = place[: len(PARTS[part])]
        partial.write(data, part * PART)
        order.add(part, data, place)
    while order.front < len(PARTS):
        assert order.hash_next()
    assert order.digest().sha256 == hashlib.sha256(DATA).hexdigest()
    order.close()
    assert [places.may_keep() for _ in range(kept + 1)] == [True] * kept + [False]


def test_no_place_is_used_for_a_second_part_before_its_first_is_hashed(begin):
    places = Places(PART, 2)
    partial, _, order = begin(places)
    taken = []
    for part in (1, 2, 3):
        place = places.take()
        taken.append(place)
        partial.write(PARTS[part], part * PART)
        order.add(part, PARTS[part], place)
    assert places.take() is taken[2]  # for which there was no room
    assert all(places.take() is not place for place in taken)
    order.close()
    assert {id(places.take()), id(places.take())} == {id(taken[0]), id(taken[1])}


def test_what_is_hashed_is_noted_and_goes_on_from_there(begin, tmp_path):
    partial, _, order = begin()
    for part in (0, 1):
        partial.write(PARTS[part], part * PART)
        order.add(part, PARTS[part])
        order.hash_next()
    assert _record(tmp_path) == [["sha256", n, hashlib.sha256(DATA[: n * PART]).hexdigest()] for n in (1, 2)]
    partial.close()  # as a kill would
    _, held, order = begin()
    assert (held.leading, held.others) == (2, {})
    assert order.front == 2
    for part in (3, 2):
        order.add(part, PARTS[part])
    assert order.hash_next()
    assert order.hash_next()
    assert order.digest().sha256 == hashlib.sha256(DATA).hexdigest()


def test_what_waits_for_a_part_that_does_not_come_is_noted_at_once(begin, tmp_path, monkeypatch):
    monkeypatch.setattr(in_order, "_PATIENCE_S", 0.0)
    partial, _, order = begin()
    hashing = threading.Thread(target=order.hash_next)
    hashing.start()
    _wait_until(lambda: order._idle_since_s is not None)
    time.sleep(0.002)
    for part in (2, 3):
        partial.write(PARTS[part], part * PART)
        order.add(part, PARTS[part])
    assert _record(tmp_path) == [[part, zlib.crc32(PARTS[part])] for part in (2, 3)]
    order.stop()
    hashing.join()
    partial.close()  # as a kill would
    _, held, order = begin()
    assert (held.leading, list(held.others)) == (0, [2, 3])
    order.close()  # and not noted a second time
    assert _record(tmp_path) == [[part, zlib.crc32(PARTS[part])] for part in (2, 3)]


def test_what_waits_is_not_summed_while_there_is_enough_to_hash(begin, tmp_path):
    partial, _, order = begin()
    for part in (3, 2, 1):
        partial.write(PARTS[part], part * PART)
        order.add(part, PARTS[part])
    assert _record(tmp_path) == []


def test_a_download_that_ends_early_notes_what_waits(begin, tmp_path):
    partial, _, order = begin()
    for part in (0, 2):
        partial.write(PARTS[part], part * PART)
        order.add(part, PARTS[part])
    assert order.hash_next()
    order.stop()
    assert not order.hash_next()
    order.close()
    assert _record(tmp_path)[1:] == [[2, zlib.crc32(PARTS[2])]]
    partial.close()
    _, held, _ = begin()
    assert (held.leading, list(held.others)) == (1, [2])


def test_stopping_wakes_who_waits_for_a_part(begin):
    _, _, order = begin()
    ended = []
    hashing = threading.Thread(target=lambda: ended.append(order.hash_next()))
    hashing.start()
    order.stop()
    hashing.join(DEADLINE_S)
    assert ended == [False]


# What a record says.


def _sha(parts):
    return hashlib.sha256(DATA[: parts * PART]).hexdigest()


def _held(*lines):
    return read_held("".join(lines).split("\n"), PARTS.__getitem__, count=len(PARTS))


def test_the_longest_beginning_that_is_confirmed_counts():
    held = _held(prefix_line(1, _sha(1)), prefix_line(3, _sha(3)), prefix_line(2, _sha(2)), prefix_line(4, "0" * 64))
    assert held.leading == 3
    assert held.digest.hexdigest() == _sha(3)


def test_a_damaged_part_ends_the_beginning_and_others_count_by_themselves():
    crcs = [zlib.crc32(part) for part in PARTS]
    held = _held(
        prefix_line(1, _sha(1)), prefix_line(2, "bad"), part_line(0, crcs[0]), part_line(2, 1), part_line(3, crcs[3])
    )
    assert (held.leading, held.digest.hexdigest(), dict(held.others)) == (1, _sha(1), {3: crcs[3]})
    assert _held(held.lines()) is not None
    assert dict(_held(held.lines()).others) == {3: crcs[3]}


@pytest.mark.parametrize(
    "line",
    [
        '["sha256", 5, "x"]',
        '["sha256", -1, "x"]',
        '["sha256", 1e999, "x"]',
        '["sha256"]',
        '["sha256", 1, {}]',
        "[-1, 0]",
        "[4, 0]",
        "[1e999, 0]",
        "[0]",
        "{}",
        "3",
        "[" * 100_000,
        "[[], 1]",
        "\x00",
    ],
)
def test_lines_that_make_no_sense_are_passed_over(line):
    held = _held(line + "\n", prefix_line(2, _sha(2)))
    assert (held.leading, dict(held.others)) == (2 if "1, {}" not in line else 0, {})


def test_one_thread_at_a_time_writes_to_a_file(begin, monkeypatch):
    partial, _, _ = begin()
    inside, most, together = [], [], threading.Barrier(4, timeout=DEADLINE_S)
    pwrite = os.pwrite

    def slow(fd, data, offset):
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.01)  # for another one to come in, if it may
        inside.pop()
        return pwrite(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", slow)

    def write(part):
        together.wait()
        partial.write(PARTS[part], part * PART)

    threads = [threading.Thread(target=write, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert most == [1] * 4
    assert partial.read(len(DATA), 0) == DATA
