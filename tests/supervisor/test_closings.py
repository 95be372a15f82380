"""What the kernel tells of files that were closed, and what is made of it."""

from __future__ import annotations

import os
import threading

import pytest
import torch

from artifactsync.supervisor.closings import Closings
from artifactsync.supervisor.due import Due, Moment, newest_unsent
from artifactsync.supervisor.tree import Tree
from artifactsync.supervisor.units import Rules

SETTLE_S = 100.0


@pytest.fixture
def closings():
    made = Closings()
    yield made
    made.close()


class Folder:
    """A folder that is listened to, and what is due in it a moment after something was written."""

    def __init__(self, path, closings):
        self.path, self.closings = path, closings
        self.tree, self.rules = Tree(path), Rules()
        self.due = Due(self.tree, self.rules, settle_s=SETTLE_S)
        self.sent = {}
        self.tree.look(closings.listen)

    def look(self, quiet_s=1.0, now=1.0):
        heard = self.closings.hear()
        for folder, prefix in heard.folders:
            self.tree.look_into(folder, prefix, self.closings.listen)
        seen = self.tree.look()
        now = max(now, quiet_s)
        moment = Moment(now=now, changed_at=dict.fromkeys(seen, now - quiet_s), is_closed=self.closings.is_closed)
        whole, torn = self.due.sort(self.rules.units(seen), moment)
        fresh = self.due.fresh(newest_unsent(whole, self.sent), torn, moment)
        return [unit.path for unit in fresh], fresh

    def publish(self, quiet_s=1.0):
        paths, fresh = self.look(quiet_s)
        self.due.sent(fresh, fresh)
        self.sent.update({unit.path: unit.files for unit in fresh})
        return paths


@pytest.fixture
def folder(tmp_path, closings):
    return Folder(tmp_path, closings)


def save(path, step=1):
    torch.save({"step": step}, path)


def test_a_file_is_heard_of_when_it_is_closed_and_not_before(tmp_path, folder, closings):
    with (tmp_path / "a.txt").open("w") as file:
        file.write("half")
        file.flush()
        assert not closings.hear().files
        assert not closings.is_closed(folder.tree.look()["a.txt"])
        assert not closings.wait(0)
    assert closings.wait(10)
    assert closings.hear().files == {"a.txt"}
    assert closings.is_closed(folder.tree.look()["a.txt"])
    with (tmp_path / "a.txt").open("a") as file:
        file.write("more")
        file.flush()
        assert not closings.is_closed(folder.tree.look()["a.txt"])


def test_a_new_folder_and_a_renamed_file_are_heard_of(tmp_path, folder, closings):
    (tmp_path / "step-1").mkdir()
    assert closings.hear().folders == {(str(tmp_path / "step-1"), "step-1/")}
    folder.tree.look(closings.listen)
    (tmp_path / "step-1" / ".metadata.tmp").write_bytes(b"x")
    os.rename(tmp_path / "step-1/.metadata.tmp", tmp_path / "step-1/.metadata")  # noqa: PTH104
    assert closings.hear().files == {"step-1/.metadata"}
    assert closings.is_closed(folder.tree.look()["step-1/.metadata"])
    os.rename(tmp_path / "step-1", tmp_path / "best")  # noqa: PTH104
    folder.tree.look(closings.listen)
    (tmp_path / "best" / "a.txt").write_bytes(b"x")
    assert "best/a.txt" in closings.hear().files  # under its new name


def test_somebody_else_ends_the_sleep(closings):
    waker = threading.Timer(0.05, closings.wake)
    waker.start()
    assert not closings.wait(60)
    waker.join()


def test_without_the_kernel_nothing_is_heard_and_nothing_fails(tmp_path):
    closings = Closings(use_kernel=False)
    Tree(tmp_path).look(closings.listen)
    save(tmp_path / "a.pt")
    assert not closings.hear()
    assert not closings.is_listening
    closings.close()
    closings.close()


def test_the_first_of_its_kind_waits_and_the_next_ones_do_not(tmp_path, folder):
    save(tmp_path / "step-1.pt")
    assert folder.look()[0] == []
    assert folder.publish(quiet_s=SETTLE_S) == ["step-1.pt"]
    save(tmp_path / "step-2.pt", 2)
    assert folder.publish() == ["step-2.pt"]


def test_what_is_saved_more_often_than_it_is_left_alone_is_published_all_the_same(tmp_path, folder):
    for step in range(1, 5):
        save(tmp_path / f"step-{step}.pt", step)
        found = folder.look(now=step * SETTLE_S / 3)[0]
        assert found == (["step-4.pt"] if step == 4 else [])


def test_what_came_together_is_waited_for(tmp_path, folder):
    for step in (1, 2):
        save(tmp_path / f"model-{step}.pt", step)
        if step == 2:
            assert folder.look()[0] == []
        save(tmp_path / f"optimizer-{step}.pt", step)
        assert sorted(folder.publish(1.0 if step == 2 else SETTLE_S)) == [f"model-{step}.pt", f"optimizer-{step}.pt"]


def test_a_file_that_is_open_waits_however_whole_it_looks(tmp_path, folder):
    save(tmp_path / "step-1.pt")
    folder.publish(quiet_s=SETTLE_S)
    save(tmp_path / "other.bin")
    data = (tmp_path / "other.bin").read_bytes()
    with (tmp_path / "step-2.pt").open("wb") as file:
        file.write(data)
        file.flush()
        assert folder.look()[0] == []
    assert folder.look()[0] == ["step-2.pt"]


def test_half_a_file_that_was_closed_is_no_checkpoint(tmp_path, folder):
    save(tmp_path / "step-1.pt")
    data = (tmp_path / "step-1.pt").read_bytes()
    folder.publish(quiet_s=SETTLE_S)
    (tmp_path / "step-2.pt").write_bytes(data[:-30])
    assert folder.look(quiet_s=10 * SETTLE_S)[0] == []


def hugging_face(path, *, names=("model.safetensors", "optimizer.pt")):
    path.mkdir()
    for name in names:
        torch.save({}, path / name.replace("model.safetensors", "scheduler.pt"))
    (path / "trainer_state.json").write_text('{"global_step": 1}')


def test_a_folder_is_finished_when_its_sign_is_closed_and_it_has_what_the_one_before_had(tmp_path, folder):
    hugging_face(tmp_path / "checkpoint-1")
    assert folder.look()[0] == []
    folder.publish(quiet_s=SETTLE_S)
    hugging_face(tmp_path / "checkpoint-2", names=("optimizer.pt",))
    folder.look()  # it is listened to from now on
    (tmp_path / "checkpoint-2/trainer_state.json").write_text('{"global_step": 2}')
    assert folder.look()[0] == []  # the scheduler's file is missing
    save(tmp_path / "checkpoint-2/scheduler.pt")
    after_ns = (tmp_path / "checkpoint-2/trainer_state.json").stat().st_mtime_ns + 10**7  # a tick of the file clock
    os.utime(tmp_path / "checkpoint-2/scheduler.pt", ns=(after_ns, after_ns))
    assert folder.look()[0] == []  # written after its sign
    os.utime(tmp_path / "checkpoint-2/scheduler.pt", ns=(0, 0))
    assert folder.look()[0] == ["checkpoint-2"]
