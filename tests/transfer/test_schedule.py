from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from artifactsync.transfer.schedule import BIG_BYTES, Schedule
from artifactsync.transfer.upload import Upload


def _upload(key, size_bytes=1, *, overwrite=True, is_urgent=False):
    return Upload(
        key,
        f"/{key}",
        size_bytes=size_bytes,
        overwrite=overwrite,
        growing=False,
        is_urgent=is_urgent,
        cancel=lambda _: False,
        waiting=Upload,
    )


def test_big_files_leave_room_for_small_ones():
    schedule = Schedule(max_running=4)
    for number in range(10):
        schedule.add(_upload(f"big{number}", BIG_BYTES))
    running = [schedule.take() for _ in range(4)]
    assert [upload is not None for upload in running] == [True, True, True, False]
    schedule.add(_upload("small"))
    assert schedule.take().key == "small"


def test_small_files_leave_room_for_a_big_one():
    schedule = Schedule(max_running=2)
    for number in range(100):
        schedule.add(_upload(f"small{number}"))
    schedule.add(_upload("big", BIG_BYTES))
    assert schedule.take().key == "big"


@pytest.mark.parametrize("max_running", [1, 4])
def test_an_urgent_file_goes_before_all_others(max_running):
    schedule = Schedule(max_running)
    for number in range(100):
        schedule.add(_upload(f"log{number}", BIG_BYTES * (number % 2)))
    for size_bytes in (1, BIG_BYTES, 1):
        schedule.add(_upload(f"c{len(schedule)}", size_bytes, is_urgent=True))
    order = []
    while (upload := schedule.take()) is not None:
        order.append(upload.key)
        schedule.finish(upload)
    assert {key[0] for key in order[:3]} == {"c"}
    assert len(order) == 103


def test_room_is_kept_for_an_urgent_file_while_others_fill_the_line():
    schedule = Schedule(max_running=4, keeps_room=True)
    for number in range(10):
        schedule.add(_upload(f"trace{number}"))
    assert [upload is not None for upload in (schedule.take() for _ in range(4))] == [True, True, True, False]
    schedule.add(_upload("checkpoint", BIG_BYTES, is_urgent=True))
    assert schedule.take().key == "checkpoint"


def test_with_one_worker_big_and_small_take_turns():
    schedule = Schedule(max_running=1)
    for number in range(4):
        schedule.add(_upload(f"big{number}", BIG_BYTES))
        schedule.add(_upload(f"small{number}"))
    order = []
    while (upload := schedule.take()) is not None:
        order.append(upload.key)
        schedule.finish(upload)
    assert sorted(order) == sorted(f"{kind}{n}" for kind in ("big", "small") for n in range(4))
    assert {key[:3] for key in order[:2]} == {"big", "sma"}


def test_a_replaced_upload_leaves_its_place_in_line_to_the_newer_one():
    schedule = Schedule(max_running=1)
    for key in ("log", "b", "c"):
        schedule.add(_upload(key))
    newer = _upload("log")
    assert [old.key for old in schedule.add(newer)] == ["log"]
    assert schedule.take() is newer


def test_a_create_only_upload_replaces_nothing():
    schedule = Schedule(max_running=1)
    first, second = _upload("k"), _upload("k", overwrite=False)
    schedule.add(first)
    assert schedule.add(second) == []
    assert schedule.take() is first
    schedule.finish(first)
    assert schedule.take() is second


def test_a_delayed_key_is_woken_when_it_is_due():
    schedule = Schedule(max_running=1)
    schedule.add(_upload("k"))
    upload = schedule.take()
    schedule.postpone(upload, 10.0)
    assert schedule.take() is None
    assert schedule.wake(9.9) == 10.0
    assert schedule.take() is None
    assert schedule.wake(10.0) is None
    assert schedule.take() is upload


_STEPS = st.lists(
    st.tuples(st.sampled_from(["add", "create", "take", "finish", "postpone", "wake", "remove"]), st.integers(0, 3)),
    max_size=60,
)


@settings(deadline=None)
@given(steps=_STEPS, max_running=st.integers(1, 3), keeps_room=st.booleans())
def test_keys_never_run_twice_at_once_and_nothing_is_lost(steps, max_running, keeps_room):  # noqa: C901 - a small model of the schedule
    schedule = Schedule(max_running, keeps_room=keeps_room)
    numbers = {}
    pending, running, last_started = [], [], Counter()

    def begin(upload):
        assert all(other.key != upload.key for other in running)
        assert numbers[upload] >= last_started[upload.key], "an older upload of the key overtook a newer one"
        last_started[upload.key] = numbers[upload]
        running.append(upload)

    def settle(uploads):
        for upload in uploads:
            pending.remove(upload)

    for step, (name, which) in enumerate(steps):
        if name in {"add", "create"}:
            upload = _upload(f"k{which}", BIG_BYTES if which % 2 else 1, overwrite=name == "add", is_urgent=which > 1)
            numbers[upload] = step
            pending.append(upload)
            replaced = schedule.add(upload)
            assert not set(replaced) & set(running)
            settle(replaced)
        elif name == "take" and len(running) < max_running:
            upload = schedule.take()
            if upload is not None:
                begin(upload)
        elif name in {"finish", "postpone"} and running:
            upload = running.pop(which % len(running))
            if name == "finish":
                schedule.finish(upload)
                settle([upload])
            else:
                schedule.postpone(upload, step + which)
        elif name == "wake":
            schedule.wake(step)
        elif name == "remove" and pending:
            upload = pending[which % len(pending)]
            assert schedule.remove(upload) == (upload not in running)
            if upload not in running:
                settle([upload])
        assert set(schedule.pending()) == set(pending)
        assert set(schedule.running()) == set(running)
    while True:  # whatever happened, all that is left runs to its end
        schedule.wake(float("inf"))
        upload = running.pop() if running else schedule.take()
        if upload is None:
            break
        schedule.finish(upload)
        settle([upload])
    assert not pending
