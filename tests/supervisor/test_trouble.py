"""Supervised commands in trouble: killed while restoring, a remote that goes and comes back, a rival, a full disk."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

import pytest

from tests.supervisor.conftest import ended

if TYPE_CHECKING:
    from pathlib import Path

NAMES = [f"ckpt/part{letter}-5.pt" for letter in "abcd"]
GOES_ON = f"""
    there = [path for path in {NAMES} if os.path.exists(path)]
    print("found", [load(path) for path in there], flush=True)
    for path in {NAMES} if not there else []:
        save(path, 5, size=300_000)
"""


def test_killed_while_it_restores_it_goes_on_in_the_same_folder(machines, s3, fault_proxy):
    """No command starts beside half a checkpoint, and what had come is not fetched again."""
    cloud = fault_proxy(s3)
    remote = cloud.fresh_url()
    first = machines(remote, s3.environment, s3.storage_options)
    first.run(GOES_ON)
    machine = machines(remote, cloud.environment, s3.storage_options)
    cloud.proxy.bytes_per_s = 800_000  # all of it takes more than a second
    for most in (1, 700_000):
        process = machine.start(GOES_ON, "--takeover")
        machine.wait_for(lambda most=most: _bytes_in(machine.folder / ".artifactsync/run/r/restoring") >= most)
        process.kill()
        assert "found" not in process.communicate()[0]
        assert not list(machine.folder.glob("ckpt/*"))
    cloud.proxy.bytes_per_s = None
    cloud.proxy.forget()
    out, err = machine.run(GOES_ON, "--takeover")
    assert out == "found [5, 5, 5, 5]\n"
    assert "restored checkpoint" in err
    for path in NAMES:
        assert (machine.folder / path).read_bytes() == (first.folder / path).read_bytes()
    assert len({request.path for request in cloud.proxy.seen(method="GET") if "/ckpt/" in request.path}) < len(NAMES)
    assert not (machine.folder / ".artifactsync/run/r/restoring").exists()


def _bytes_in(folder: Path) -> int:
    """On the disk: a file that is being fetched has its full length from the start."""
    return sum(file.stat().st_blocks * 512 for file in folder.rglob("*") if file.is_file())


def test_a_remote_that_goes_and_comes_back_costs_nothing(machines, s3, fault_proxy):
    cloud = fault_proxy(s3)
    machine = machines(cloud.fresh_url(), cloud.environment, s3.storage_options)
    process = machine.start("""
        for step in range(1, 6):
            save(f"ckpt/step-{step}.pt", step)
            pathlib.Path("notes.md").write_text(str(step))
            print(step, flush=True)
            while not os.path.exists(f"go-{step}"):
                time.sleep(0.02)
    """)
    assert process.stdout.readline() == "1\n"
    looking = machines(cloud.fresh_url(), s3.environment, s3.storage_options)
    looking.remote = machine.remote
    machine.wait_for(lambda: looking.view().latest() is not None)
    cloud.proxy.cut()
    for step in range(1, 4):  # it does not notice
        (machine.folder / f"go-{step}").touch()
        assert process.stdout.readline() == f"{step + 1}\n"
    cloud.proxy.heal()
    machine.wait_for(lambda: looking.view().latest().step == 4)
    (machine.folder / "go-4").touch()
    (machine.folder / "go-5").touch()
    _, err = ended(process)
    assert "durable: checkpoint step-5 (step 5)" in err
    assert "nothing is missing" in err
    run = looking.view()
    assert run.verify(deep=True).ok
    assert {c.step for c in run.checkpoints()} >= {1, 4, 5}


def test_a_rival_in_the_same_folder_takes_the_run_and_the_first_ends(machines):
    """As a scheduler does that starts a job again before its first process is gone."""
    machine = machines()
    script = """
        print("up", flush=True)
        for step in range(1, 1000):
            save(f"ckpt/{os.environ['ARTIFACTSYNC_ATTEMPT']}-step-{step}.pt", step)
            time.sleep(0.1)
            if os.environ["ARTIFACTSYNC_ATTEMPT"] == "2" and os.path.exists("enough"):
                break
    """
    first = machine.start(script)
    assert first.stdout.readline() == "up\n"
    machine.wait_for(lambda: machine.view().latest() is not None)
    second = machine.start(script, "--takeover")
    assert second.stdout.readline() == "up\n"
    _, err = ended(first, 5)
    assert "attempt 2" in err
    (machine.folder / "enough").touch()
    _, err = ended(second, 0)
    assert "nothing is missing" in err
    run = machine.view()
    assert run.verify(deep=True).ok
    assert run.latest().attempt == 2


def test_sigterm_while_it_restores_ends_at_once_and_starts_nothing(machines, s3, fault_proxy):
    cloud = fault_proxy(s3)
    remote = cloud.fresh_url()
    machines(remote, s3.environment, s3.storage_options).run(GOES_ON)
    machine = machines(remote, cloud.environment, s3.storage_options)
    cloud.proxy.bytes_per_s = 800_000
    process = machine.start(GOES_ON)
    machine.wait_for(lambda: _bytes_in(machine.folder / ".artifactsync/run/r/restoring") >= 1)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=5)
    assert process.returncode in {-signal.SIGTERM, 128 + signal.SIGTERM}
    assert "found" not in out


def test_what_was_written_last_is_the_newest_in_a_fresh_folder_too(machines):
    """Names tell nothing, and the file that was written last comes first in the alphabet."""
    names = ["z-best.pt", "m-last.pt", "a-end.pt"]
    first = machines()
    process = first.start(f"""
        for step, name in enumerate({names}, start=1):
            save(name, step)
            print(name, flush=True)
            while not os.path.exists(f"go-{{step}}"):
                time.sleep(0.02)
    """)
    for step in (1, 2, 3):
        assert process.stdout.readline() == f"{names[step - 1]}\n"
        first.wait_for(lambda step=step: (latest := first.view().latest()) and latest.step == step)
        (first.folder / f"go-{step}").touch()
    ended(process)
    out, _ = machines().run("""
        print(sorted(glob.glob("*.pt"), key=os.path.getmtime))
        print(all(os.path.getmtime(path) <= time.time() for path in glob.glob("*.pt")))
    """)
    assert out == f"{names}\nTrue\n"


def test_a_file_whose_name_no_run_can_have_is_not_called_durable(machine):
    (machine.folder / "old\nname.pt").write_bytes(b"before")
    _, err = machine.run("save('a-1.pt', 1); save('b\\n-2.pt', 2); save('c\\n-3.part', 3)", code=7)
    assert "'b\\n-2.pt' can be no file of a run by this name, and is NOT sent" in err
    assert "durable: checkpoint a-1 (step 1) and 1 other file; NOT durable: 1 other file" in err
    machine.run("os.remove('b\\n-2.pt')")


@pytest.mark.crash
def test_a_rival_elsewhere_ends_a_command_that_never_saves(machines):
    """Else it would go on for as long as it takes to its next checkpoint, beside the one that took the run over."""
    first, second = machines(), machines()
    old = first.start("print('up', flush=True); time.sleep(300)")
    assert old.stdout.readline() == "up\n"
    new = second.start("print('up', flush=True); time.sleep(300)", "--takeover")
    assert new.stdout.readline() == "up\n"
    taken_at = time.monotonic()
    _, err = ended(old, 5)
    assert "now belongs to attempt 2" in err
    print(f"\na command whose run was taken over was ended {time.monotonic() - taken_at:.0f} s later")
    _, err = ended(machines().start("print('never')"), 5)  # the second one is known to be alive
    assert "attempt 2" in err
    new.send_signal(signal.SIGTERM)
    ended(new, None)
