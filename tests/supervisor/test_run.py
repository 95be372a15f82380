from __future__ import annotations

import json
import re
import signal
import sys
from pathlib import Path

import pytest

from tests.supervisor.conftest import ended

STEPS = """
    found = sorted(glob.glob("ckpt/step-*.pt"), key=lambda path: int(path[10:-3]))
    start = load(found[-1]) if found else 0
    print("from", start, os.environ.get("ARTIFACTSYNC_RESUME_FROM", "-"), os.environ["ARTIFACTSYNC_ATTEMPT"])
    for step in range(start + 1, {last} + 1):
        save(f"ckpt/step-{{step}}.pt", step)
        time.sleep({pause})
    pathlib.Path("result.json").write_text(str({last}))
"""


def test_a_command_gets_its_name_and_everything_it_writes_is_durable(machine):
    out, err = machine.run("""
        print(os.environ["RUN_NAME"], os.environ["ARTIFACTSYNC_RUN_NAME"], os.environ["ARTIFACTSYNC_ATTEMPT"])
        print("to stderr", file=sys.stderr)
        save("ckpt/step-5.pt", 5)
        pathlib.Path("plots").mkdir()
        pathlib.Path("plots/loss.png").write_bytes(b"png")
        pathlib.Path("metrics.csv").write_text("step,loss")
    """)
    assert out == "r r 1\n"
    assert "to stderr" in err
    assert "durable: checkpoint step-5 (step 5) and 3 other files; nothing is missing" in err
    run = machine.view()
    assert run.status().state == "completed"
    assert [(c.name, c.step, [f.path for f in c.files]) for c in run.checkpoints()] == [
        ("step-5", 5, ["ckpt/step-5.pt"])
    ]
    assert {artifact.path for artifact in run.artifacts()} == {"logs-rank0.txt", "metrics.csv", "plots/loss.png"}
    run.pull(machine.folder / "pulled")
    assert set((machine.folder / "pulled/logs-rank0.txt").read_text().splitlines()) == {"r r 1", "to stderr"}
    assert not list((machine.folder / ".artifactsync/run/r").glob("sending"))


def test_a_restart_in_a_fresh_folder_goes_on_with_the_newest_checkpoint(machines):
    machines().run(STEPS.format(last=3, pause=0.3))
    fresh = machines()
    out, err = fresh.run(STEPS.format(last=5, pause=0))
    where = fresh.folder / "ckpt/step-3.pt"
    assert out == f"from 3 {where} 2\n"
    assert "attempt 2: restored checkpoint step-3 (step 3)" in err
    assert not (fresh.folder / "ckpt/step-2.pt").exists()  # only what is needed
    latest = fresh.view().latest()
    assert latest
    assert (latest.attempt, latest.step) == (2, 5)
    log = fresh.folder / "logs-rank0.txt"
    assert re.fullmatch(r"from 0 - 1\nfrom 3 .* 2\n", log.read_text())  # it goes on, too


def test_the_exit_code_is_the_commands(machine):
    machine.run("sys.exit(3)", code=3)
    assert machine.view().status().state == "failed"
    machine.run("os.kill(os.getpid(), signal.SIGKILL)", code=137)
    machine.run("", code=0)
    assert machine.view().status().state == "completed"


@pytest.mark.parametrize(
    ("command", "code", "word"), [("no-such-program", 127, "not found"), ("./plain", 126, "executed")]
)
def test_a_command_that_cannot_be_started_claims_nothing(machine, command, code, word):
    (machine.folder / "plain").write_text("no program")
    _, err = ended(machine.start_command([command]), code)
    assert word in err
    assert not Path(machine.remote).exists()


def test_a_script_without_an_interpreter_is_told_by_the_system(machine):
    script = machine.folder / "script"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)
    _, err = ended(machine.start_command(["./script"]), 127)
    assert "script" in err


def test_json_is_one_document_and_the_commands_output_goes_elsewhere(machine):
    out, err = machine.run("print('hello'); save('a.pt', 7)", "--json")
    document = json.loads(out)
    assert "hello" in err
    assert document["durable"] == "a"
    assert document["durable_step"] == 7  # read from the file, without unpickling it
    assert (document["exit_code"], document["missing"], document["state"]) == (0, [], "completed")


def test_a_run_that_is_alive_elsewhere_is_not_taken(machines):
    first = machines()
    process = first.start("print('up', flush=True); time.sleep(60)")
    assert process.stdout.readline() == "up\n"
    _, err = machines().run("print('never')", code=5)
    assert "in use by attempt 1" in err
    out, _ = machines().run("print('mine')", "--takeover")
    assert out == "mine\n"
    process.send_signal(signal.SIGTERM)
    ended(process, None)


def test_a_script_that_opens_its_supervisors_run_is_told_what_to_do(machine):
    out, _ = machine.run(
        f"""
        import artifactsync
        try:
            artifactsync.Run(remote={machine.remote!r})
        except artifactsync.errors.RunIsLiveError as error:
            print(error.hint)
        with artifactsync.Run("another", remote={machine.remote!r}) as run:
            print("a run of its own:", run.attempt)
        """
    )
    hint, own = out.splitlines()
    assert "start the script without `artifactsync run`" in hint
    assert "takeover" not in hint  # it would end the command itself
    assert own == "a run of its own: 1"


def test_a_trainer_that_is_killed_leaves_what_was_complete(machine):
    _, err = machine.run(
        """
        save("ckpt/step-1.pt", 1)
        save("ckpt/step-2.pt", 2, size=100_000)
        with open("ckpt/step-3.pt", "wb") as file:  # half of one
            file.write(open("ckpt/step-2.pt", "rb").read()[:50_000])
        os.kill(os.getpid(), signal.SIGKILL)
        """,
        code=137,
    )
    assert "durable: checkpoint step-2 (step 2)" in err
    assert {f.path for c in machine.view().checkpoints() for f in c.files} == {"ckpt/step-1.pt", "ckpt/step-2.pt"}


def test_a_supervisor_that_is_killed_takes_the_command_and_all_it_started_along(machine):
    script = """
        import subprocess
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"], start_new_session=True)
        save("ckpt/step-1.pt", 1)
        print(os.getpid(), child.pid, flush=True)
        time.sleep(100)
    """
    process = machine.start(script)
    pids = [int(pid) for pid in process.stdout.readline().split()]
    process.kill()
    process.communicate()
    machine.wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), timeout_s=10)
    # What it had not sent is sent by the next one in the same folder.
    _, err = machine.run("print(sorted(glob.glob('ckpt/*')))", "--takeover")
    assert "durable: checkpoint step-1 (step 1)" in err


def test_what_the_command_left_running_is_ended(machine):
    out, _ = machine.run("""
        import subprocess
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
        print(child.pid)
    """)
    assert not Path(f"/proc/{int(out)}").exists()


def test_a_reader_that_goes_away_does_not_stop_the_command(machine):
    process = machine.start("""
        for number in range(20_000):
            print("line", number)
        save("a.pt", 1)
    """)
    process.stdout.readline()
    process.stdout.close()
    process.stdout = None
    ended(process)
    assert (machine.folder / "logs-rank0.txt").read_text().endswith("line 19999\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
def test_signals_reach_the_commands_handler_and_its_last_checkpoint_is_published(machine, number):
    process = machine.start("""
        def stop(number, frame):
            save("last.pt", 42, size=10_000)
            sys.exit(9)
        for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP"):
            signal.signal(getattr(signal, name), stop)
        print("up", flush=True)
        time.sleep(60)
    """)
    assert process.stdout.readline() == "up\n"
    process.send_signal(number)
    _, err = ended(process, 9)
    assert f"{signal.Signals(number).name}: durable: checkpoint last (step 42)" in err
    assert machine.view().status().state == "preempted"


def test_a_command_that_ignores_the_signal_is_killed_in_time(machine):
    process = machine.start(
        """
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        save("a.pt", 1)
        print("up", flush=True)
        time.sleep(60)
        """,
        "--grace",
        "4",
    )
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGTERM)
    _, err = ended(process, 137)
    assert "has not ended by itself" in err
    assert "SIGTERM: durable: checkpoint a (step 1)" in err


def test_under_a_shell_with_a_pipe(machine):
    (machine.folder / "train.sh").write_text(f"{sys.executable} -c 'print(1)' | cat\nexit 4\n")
    out, _ = ended(machine.start_command(["sh", "train.sh"]), 4)
    assert out == "1\n"


def test_an_echo_of_sigterm_does_not_disturb_the_commands_handler(machine):
    """Slurm's daemon sends one, and its srun another."""
    process = machine.start("""
        def stop(number, frame):
            print("once", flush=True)
            time.sleep(0.5)
            save("last.pt", 42)
            sys.exit(9)
        signal.signal(signal.SIGTERM, stop)
        print("up", flush=True)
        time.sleep(60)
    """)
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "once\n"
    process.send_signal(signal.SIGTERM)
    out, err = ended(process, 9)
    assert out == ""
    assert "durable: checkpoint last (step 42)" in err
