"""Scripts that ask a link, or a small file, which checkpoint is the newest."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from artifactsync.supervisor.links import path_in, place_link
from tests.supervisor.conftest import PRELUDE, ended

BY_A_LINK = """
    def newest():
        return load("ckpts/latest.pt") if os.path.exists("ckpts/latest.pt") else 0
    def name_it(step):
        if os.path.islink("ckpts/latest.pt"):
            os.remove("ckpts/latest.pt")
        os.symlink(f"step-{step}.pt", "ckpts/latest.pt")
    def write(step):
        save(f"ckpts/step-{step}.pt", step)
"""
BY_A_FILE = """
    def newest():
        found = pathlib.Path("out/latest")
        return load(f"out/{found.read_text()}/mp_rank_00_model_states.pt") if found.exists() else 0
    def name_it(step):
        pathlib.Path("out/latest").write_text(f"global_step{step}")
    def write(step):
        for part in ("mp_rank_00_model_states", "zero_pp_rank_0_mp_rank_00_optim_states"):
            save(f"out/global_step{step}/{part}.pt", step)
"""
BY_A_NUMBER = """
    def newest():
        found = pathlib.Path("out/latest_checkpointed_iteration.txt")
        return load(f"out/iter_{int(found.read_text()):07d}/mp_rank_00/model_optim_rng.pt") if found.exists() else 0
    def name_it(step):
        pathlib.Path("out/latest_checkpointed_iteration.txt").write_text(str(step))
    def write(step):
        save(f"out/iter_{step:07d}/mp_rank_00/model_optim_rng.pt", step)
"""
LOOP = """
    start = newest()
    print("from", start, flush=True)
    for step in range(start + 1, start + 4):
        write(step)
        name_it(step)
        print(step, flush=True)
        while not os.path.exists(f"go-{step}"):
            time.sleep(0.02)
"""


@pytest.mark.parametrize("script", [BY_A_LINK, BY_A_FILE, BY_A_NUMBER], ids=["link", "DeepSpeed", "Megatron"])
def test_in_a_fresh_folder_it_is_asked_as_before(machines, script):
    start = 0
    for _ in range(2):
        machine = machines()
        process = machine.start(script + LOOP, "--takeover")
        assert process.stdout.readline() == f"from {start}\n"
        for step in range(start + 1, start + 4):
            assert process.stdout.readline() == f"{step}\n"
            machine.wait_for(
                lambda machine=machine, step=step: (latest := machine.view().latest()) and _is_named(latest, step)
            )
            (machine.folder / f"go-{step}").touch()
        start += 3
        process.kill()
        process.communicate()
    assert machine.view().verify(deep=True).ok


def _is_named(latest, step: int) -> bool:
    return latest.step == step and any("latest" in file.path for file in latest.files)


def test_what_a_file_names_is_kept_with_it_when_its_script_dies_before_it_names_the_next(machines):
    first = machines()
    first.run(
        BY_A_FILE + "    write(1); name_it(1); time.sleep(1); write(2); os.kill(os.getpid(), signal.SIGKILL)", code=137
    )
    latest = first.view().latest()
    assert latest.step == 2
    assert {path.parts[1] for path in (Path(file.path) for file in latest.files)} == {
        "global_step1",
        "global_step2",
        "latest",
    }
    out, _ = machines().run(BY_A_FILE + "    print(newest())")
    assert out == "1\n"  # as it would have been on the machine that died


def test_a_link_comes_back_as_a_link_and_spares_what_is_newer_and_a_file_of_the_users(tmp_path):
    for step in (1, 2, 3):
        (tmp_path / f"step-{step}.pt").write_bytes(b"x")
    stand_in, link = tmp_path / "sub" / "latest.pt.symlink", tmp_path / "sub" / "latest.pt"
    later_s = time.time() + 100
    for step in (1, 2, 2):
        assert place_link(stand_in, tmp_path / f"step-{step}.pt", written_s=later_s)
        assert link.readlink() == Path("..", f"step-{step}.pt")
    assert not place_link(stand_in, tmp_path / "step-4.pt", written_s=later_s)  # is not there
    assert not place_link(stand_in, tmp_path / "step-1.pt", written_s=later_s - 200)
    assert link.readlink() == Path("../step-2.pt")
    (tmp_path / "step-2.pt").unlink()  # newer, and leads nowhere
    assert place_link(stand_in, tmp_path / "step-1.pt", written_s=later_s - 200)
    link.unlink()
    link.write_bytes(b"mine")
    assert not place_link(stand_in, tmp_path / "step-3.pt", written_s=later_s)
    assert link.read_bytes() == b"mine"


def test_a_newer_checkpoint_that_was_not_sent_is_still_asked_for_in_the_same_folder(machine):
    """The supervisor was killed before it could send it; the link on this disk knows better than the one in the run."""
    machine.run(BY_A_LINK + "    write(1); name_it(1)")
    names: dict[str, Any] = {}
    exec(PRELUDE, names)
    names["save"](machine.folder / "ckpts/step-2.pt", 2)
    (machine.folder / "ckpts/latest.pt").unlink()
    (machine.folder / "ckpts/latest.pt").symlink_to("step-2.pt")
    out, _ = machine.run(BY_A_LINK + "    print(newest())")
    assert out == "2\n"
    assert machine.view().latest().step == 2


@pytest.mark.parametrize("text", ["/etc/passwd", "../x", "a/../../x", "a\0b", "", "x" * 5000])
def test_a_text_that_leaves_the_folder_is_no_link(tmp_path, text):
    (tmp_path / "a.symlink").write_text(text)
    assert path_in(tmp_path / "a.symlink") is None


def test_a_folder_that_a_link_hides_is_told_of(machines, tmp_path):
    (tmp_path / "scratch").mkdir()
    machine = machines()
    (machine.folder / "out").symlink_to(tmp_path / "scratch")
    (machine.folder / "data").symlink_to(tmp_path)
    _, err = machine.run("save('out/step-1.pt', 1)")
    assert "out is a link out of what is watched" in err
    assert "--watch out" in err
    fresh = machines()
    _, err = ended(fresh.start("save('out/step-2.pt', 2)", "--watch", "out"))
    assert "durable: checkpoint step-2 (step 2)" in err
    assert "is a link" not in err
