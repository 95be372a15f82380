"""What real libraries write, told apart: whole, half, and no checkpoint at all."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file

from artifactsync.errors import ConfigurationError
from artifactsync.stores import open_store
from artifactsync.supervisor.structure import is_whole, missing_shards, step_inside
from artifactsync.supervisor.tree import Tree
from artifactsync.supervisor.units import Rules, newest_of_each_family, step_of


def look(folder: Path, *patterns: str):
    """The units of a folder by path, each with whether it is complete."""
    tree, rules = Tree(folder), Rules(patterns)
    units = {unit.path: unit for unit in rules.units(tree.look())}
    complete = {
        path: rules.is_complete(unit, tree, quiet_s=1000, settle_s=1, is_over=False) for path, unit in units.items()
    }
    return tree, units, complete


def test_no_prefix_of_a_file_is_taken_for_a_whole_one(tmp_path):
    torch.save({"global_step": 7, "weights": torch.zeros(1000)}, tmp_path / "a.pt")
    save_file({"w": torch.zeros(1000)}, tmp_path / "a.safetensors", metadata={"step": "9"})
    for name, step in (("a.pt", 7), ("a.safetensors", 9)):
        data = (tmp_path / name).read_bytes()
        assert is_whole(tmp_path / name)
        assert step_inside(tmp_path / name) == step
        cut = tmp_path / f"cut{Path(name).suffix}"
        for size in (0, 3, 4, 100, len(data) // 2, len(data) - 30, len(data) - 1):
            cut.write_bytes(data[:size])
            assert not is_whole(cut), (name, size)


def test_the_step_is_found_without_running_anything(tmp_path):
    class Hostile:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/ran",)

    torch.save({"bad": Hostile(), "global_step": 12, "step": 3}, tmp_path / "evil.pt")
    assert step_inside(tmp_path / "evil.pt") == 12
    (tmp_path / "bare.pt").write_bytes(pickle.dumps({"step": 4}))
    assert step_inside(tmp_path / "bare.pt") is None
    (tmp_path / "junk.pt").write_bytes(b"PK\x03\x04junk")
    assert step_inside(tmp_path / "junk.pt") is None
    assert not (tmp_path / "ran").exists()


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
def test_a_distributed_checkpoint_is_complete_with_its_metadata_and_all_its_shards(tmp_path):
    dcp.save({"w": torch.zeros(100)}, checkpoint_id=tmp_path / "dcp/step-20", no_dist=True)
    tree, units, complete = look(tmp_path)
    assert complete == {"dcp/step-20": True}
    assert step_of(units["dcp/step-20"], tree) == 20
    (shard,) = (tmp_path / "dcp/step-20").glob("*.distcp")
    os.utime(shard, ns=(2**62, 2**62))  # written after the metadata: it is being saved anew
    assert look(tmp_path)[2] == {"dcp/step-20": False}
    shutil.copy(tmp_path / "dcp/step-20/.metadata", tmp_path / ".metadata")
    assert missing_shards(tmp_path / ".metadata") == [shard.name]
    (tmp_path / "dcp/step-20/.metadata").unlink()
    assert look(tmp_path)[2] == {"dcp/step-20": False}


def test_a_hugging_face_folder_is_complete_with_its_state(tmp_path):
    tree, rules = Tree(tmp_path), Rules()
    for step in (500, 1000):
        folder = tmp_path / f"out/checkpoint-{step}"
        folder.mkdir(parents=True)
        save_file({"w": torch.zeros(10)}, folder / "model.safetensors")
        torch.save({}, folder / "optimizer.pt")
        if step == 500:
            (folder / "trainer_state.json").write_text('{"global_step": 500}')
    units = {unit.path: unit for unit in rules.units(tree.look())}
    assert set(units) == {"out/checkpoint-500", "out/checkpoint-1000"}
    found = [
        rules.is_complete(units[path], tree, quiet_s=1000, settle_s=1, is_over=False)
        for path in ("out/checkpoint-500", "out/checkpoint-1000")
    ]
    assert found == [True, False]
    assert step_of(units["out/checkpoint-500"], tree) == 500


@pytest.mark.parametrize(
    ("path", "step"),
    [
        ("ckpts/epoch=3-step=400.ckpt", 400),
        ("ep1-ba10-rank0.pt", 10),
        ("checkpoint_12.pth.tar", 12),
        ("iter_0000100.pt", 100),
        ("global_step77.pt", 77),
        ("model-epoch3.pt", 3),
        ("last.ckpt", 5),
    ],
)
def test_steps_in_names(tmp_path, path, step):
    (tmp_path / path).parent.mkdir(exist_ok=True)
    torch.save({"global_step": 5} if path.startswith("last") else {}, tmp_path / path)
    tree, units, complete = look(tmp_path)
    assert complete == {path: True}
    assert step_of(units[path], tree) == step


def test_of_each_family_the_newest(tmp_path):
    for age, name in enumerate(
        [
            "fold1/step-1.pt",
            "last.pt",
            "best.pt",
            "fold0/step-20.pt",
            "fold0/step-10.pt",
            "epoch_2/a.pt",
            "epoch_1/a.pt",
        ]
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        torch.save({}, tmp_path / name)
        os.utime(tmp_path / name, ns=(10**18 - age, 10**18 - age))
    _, units, _ = look(tmp_path)
    newest = {unit.path for unit in newest_of_each_family(units.values())}
    assert newest == {"fold1/step-1.pt", "last.pt", "best.pt", "fold0/step-20.pt", "epoch_2/a.pt"}


def test_rules_of_a_users_own(tmp_path):
    (tmp_path / "state").mkdir()
    (tmp_path / "state/a.bin").write_bytes(b"a")
    (tmp_path / "weights.h5").write_bytes(b"b")
    (tmp_path / "notes.txt").write_text("none")
    assert set(look(tmp_path)[1]) == set()
    assert set(look(tmp_path, "state/", "*.h5")[1]) == {"state", "weights.h5"}


def test_what_is_none_of_our_business(tmp_path):
    for name in (".git/x", "venv/pyvenv.cfg", "venv/lib/a.py", "__pycache__/a.pyc", "a.tmp", ".hidden", "kept.bin"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    for name, to in (("link.bin", "kept.bin"), ("out.bin", ".."), ("gone.bin", "gone"), (".git/in.bin", "../kept.bin")):
        (tmp_path / name).symlink_to(to)
    assert set(Tree(tmp_path).look()) == {"kept.bin", "link.bin.symlink"}
    assert set(Tree(tmp_path, exclude=["kept.*"]).look()) == set()


def test_a_remote_below_the_watched_folder_is_not_mirrored_into_itself(tmp_path):
    remote = tmp_path / "a bucket"
    (remote / "r").mkdir(parents=True)
    (remote / "r/step-1.pt").write_bytes(b"x")
    (tmp_path / "kept.bin").write_bytes(b"x")
    (tmp_path / "link").symlink_to(tmp_path)
    for url in (open_store(remote).url, open_store(tmp_path / "link" / "a bucket").url):
        assert set(Tree(tmp_path, remote=url).look()) == {"kept.bin"}  # and the link to all of it is none of ours
    for below in (remote, remote / "r"):
        with pytest.raises(ConfigurationError, match="copied into itself"):
            Tree(below, remote=open_store(remote).url)
