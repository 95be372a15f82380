from __future__ import annotations

import resource
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from artifactsync import __version__

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import Command

COMMANDS = ("run", "ls", "pull", "push", "status", "report", "ui", "verify", "prune", "cp", "adopt", "rm", "doctor")
HEAVY = {"torch", "numpy", "boto3", "botocore", "google", "obstore", "rich", "fsspec", "asyncio"}


def test_importing_the_command_line_loads_nothing_heavy() -> None:
    script = "import sys, artifactsync.cli.application; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert not HEAVY & set(done.stdout.split())


def test_help_is_quick(artifactsync: Command) -> None:
    def once() -> float:
        """Processor seconds, which a busy machine does not stretch as it does the wall clock's."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        artifactsync("--help")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(once() for _ in range(5)) < 0.25


def test_version(artifactsync: Command) -> None:
    assert artifactsync("--version").out == f"artifactsync {__version__}\n"


def test_the_module_is_the_command(artifactsync: Command) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "artifactsync", "--help"], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == artifactsync("--help").out


def test_nothing_typed_shows_the_help(artifactsync: Command) -> None:
    assert artifactsync().out == artifactsync("--help").out


def test_the_help_lists_the_commands_and_teaches(artifactsync: Command) -> None:
    text = artifactsync("--help").out
    assert [line.split()[0] for line in text.split("Commands:\n")[1].split("\n\n")[0].splitlines()] == list(COMMANDS)
    assert "..." not in text.split("Commands:")[1]  # no help is cut
    assert "Exit codes: 0 done" in text


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_teaches_by_examples(artifactsync: Command, command: str) -> None:
    text = artifactsync(command, "--help").out
    examples = [line for line in text.split("Examples:")[1].splitlines() if f"artifactsync {command}" in line]
    assert 2 <= len(examples) <= 4
    assert max(len(line) for line in text.splitlines()) <= 80
    assert artifactsync(command, "-h").out == text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["ls", "--nonsense"], "No such option"),
        (["pull"], "Missing argument 'RUN'"),
        (["push", "run"], "Missing argument 'PATH...'"),
        (["pull", "run", "--only", "everything"], "Invalid value for '--only'"),
        (["pull", "run", "--mode", "least"], "Invalid value for '--mode'"),
        (["--install-completion", "tcsh"], "Invalid value for '--install-completion'"),
    ],
)
def test_wrong_usage_is_one_line_and_a_hint(artifactsync: Command, arguments: list[str], message: str) -> None:
    done = artifactsync(*arguments, code=2)
    error, hint = done.err.splitlines()
    assert error.startswith(f"error: {message}")
    assert hint.startswith("hint: see artifactsync")
    assert hint.endswith("--help")
    assert done.out == ""
    as_json = artifactsync(*arguments, "--json", code=2)
    assert as_json.err == ""
    assert as_json.json["error"].keys() == {"kind", "message", "hint", "url"}
    assert as_json.json["error"]["kind"] == "usage"


def test_json_without_a_command_is_json(artifactsync: Command) -> None:
    assert artifactsync("--json", code=2).json["error"]["kind"] == "usage"


def test_no_remote_says_how_to_give_one(artifactsync: Command) -> None:
    done = artifactsync("ls", code=2)
    assert done.err.startswith("error: no remote was given\nhint: give --remote s3://bucket/prefix")


def test_a_wrong_configuration_file_is_named(artifactsync: Command) -> None:
    (artifactsync.cwd / "artifactsync.toml").write_text("remote = \n")
    done = artifactsync("ls", "--json", code=2)
    assert done.json["error"]["message"].startswith(f"{artifactsync.cwd / 'artifactsync.toml'}, line 1: ")
    assert done.json["error"]["kind"] == "configuration"


def test_completion_is_installed_for_the_users_shell(artifactsync: Command) -> None:
    done = artifactsync("--install-completion", env={"SHELL": "/bin/bash"})
    assert done.out.splitlines()[-1] == "open a new bash to use it"
    assert (artifactsync.cwd / ".bashrc").read_text().startswith("# >>> artifactsync completion >>>\n")
    assert artifactsync("--install-completion", "bash").out.splitlines()[-1] == "bash completion was installed already"


def test_a_reader_that_goes_away_is_no_error(artifactsync: Command, program: Path) -> None:
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {program} --help | true; echo ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stderr == ""


def test_a_full_output_is_no_traceback(program: Path) -> None:
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = subprocess.run(
            [program, "--help"], stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=60
        )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("unexpected error: OSError: [Errno 28]")


def test_a_full_disk_behind_stdout_is_said(artifactsync: Command, digits: Path) -> None:
    for more in ("", "--json"):
        done = artifactsync.in_bash(f"artifactsync ls {more} > /dev/full")
        assert (done.code, done.out) == (1, "")
        assert done.err.splitlines()[0] == "error: no space left for what goes to stdout"


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_closed_streams(artifactsync: Command, digits: Path, closed: str) -> None:
    done = artifactsync.in_bash(f"artifactsync ls digits {closed}")
    assert (done.code, done.err) == (0, "")
    assert ("ep1-ba10" in done.out) == (">&-" not in closed.replace("2>&-", ""))
    done = artifactsync.in_bash(f"artifactsync ls nobody {closed}")
    assert done.code == 3
    assert "Traceback" not in done.err


def test_interrupted_while_python_reads_it(artifactsync: Command) -> None:
    (artifactsync.cwd / "click.py").write_text("raise KeyboardInterrupt\n")
    done = artifactsync("ls", code=130, env={"PYTHONPATH": str(artifactsync.cwd)})
    assert done.err == "interrupted\n"
