"""Mistakes that people make: each one clear line with a hint, the contract's exit code, within 15 seconds."""

from __future__ import annotations

import itertools
import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from tests.line_faults import BlackHole

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import Command, Remote

COMMANDS = (["ls"], ["pull", "run"], ["status", "run", "--json"], ["push", "run", "file.txt"])
WITHIN_S = 15.0


@pytest.fixture
def fails(artifactsync: Command):
    """All commands fail, side by side, each as it should; returns their messages."""
    (artifactsync.cwd / "file.txt").write_text("x")

    def ends(typed: list[str], environ: dict[str, str] | None) -> tuple[int, str, str, float]:
        began = time.monotonic()
        with artifactsync.start(*typed, env=environ) as process:
            out, err = process.communicate(timeout=60)
        return process.returncode, out, err, time.monotonic() - began

    def check(*, code: int, kinds: set[str], commands=COMMANDS, environs=()) -> list[str]:
        with ThreadPoolExecutor(len(commands) + 1) as pool:
            # How long a machine as busy as this one takes for a command that asks nobody: it is no part of the promise.
            starting = pool.submit(ends, ["ls", "--help"], None)
            running = [
                (typed, pool.submit(ends, typed, environ))
                for typed, environ in itertools.zip_longest(commands, environs)
            ]
        _, _, _, start_s = starting.result()
        messages = []
        for typed, future in running:
            returned, out, err, seconds = future.result()
            assert seconds - start_s < WITHIN_S, typed
            assert returned == code, (typed, out, err)
            if "--json" in typed:
                error = json.loads(out)["error"]
                assert error.keys() == {"kind", "message", "hint", "url"}
                assert error["kind"] in kinds
                assert error["hint"]
                assert err == ""
                messages.append(error["message"])
            else:
                assert out == ""
                line, hint = err.splitlines()
                assert line.startswith("error: ")
                assert hint.startswith("hint: ")
                messages.append(line.removeprefix("error: "))
        assert [path.name for path in artifactsync.cwd.iterdir() if path.name[0] != "."] == ["file.txt"]
        return messages

    return check


@pytest.mark.parametrize("remote", ["s3://", "gs:///x", "nonsense://bucket", "file://elsewhere/x", "s3://b/../x"])
def test_a_wrong_remote(artifactsync: Command, fails, remote: str) -> None:
    artifactsync.environ["ARTIFACTSYNC_REMOTE"] = remote
    fails(code=2, kinds={"configuration"}, commands=COMMANDS[:3])


def test_a_remote_that_is_a_file(artifactsync: Command, fails, tmp_path: Path) -> None:
    (tmp_path / "remote").write_text("a file")
    artifactsync.environ["ARTIFACTSYNC_REMOTE"] = str(tmp_path / "remote")
    for message in fails(code=2, kinds={"configuration", "destination"}):
        assert str(tmp_path / "remote") in message


def test_nobody_listens_or_answers(fails, s3, gcs, fault_proxy) -> None:
    with socket.socket() as nobody:  # bound, never listening: the port refuses every connection
        nobody.bind(("127.0.0.1", 0))
        origin = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        environs = []
        for cloud in (s3, gcs):
            silent = fault_proxy(cloud)
            environs.append({**silent.environment, "ARTIFACTSYNC_REMOTE": silent.fresh_url()})
            silent.proxy.add(BlackHole())
            deaf = {name: value.replace(cloud.server.origin, origin) for name, value in cloud.environment.items()}
            environs.append({**deaf, "ARTIFACTSYNC_REMOTE": cloud.fresh_url()})
        fails(code=2, kinds={"unreachable"}, commands=(COMMANDS[2], COMMANDS[3]) * 2, environs=environs)


@pytest.mark.parametrize("cloud", ["s3", "gcs"])
def test_no_such_bucket(artifactsync: Command, fails, request: pytest.FixtureRequest, cloud: str) -> None:
    server = request.getfixturevalue(cloud)
    artifactsync.environ.update({**server.environment, "ARTIFACTSYNC_REMOTE": f"{server.missing_bucket()}/runs"})
    for message in fails(code=2, kinds={"bucket-not-found"}, commands=COMMANDS[1:]):
        assert "artifactsync-no-such-bucket" in message


@pytest.mark.parametrize("remote", ["s3://bucket/runs", "gs://bucket/runs"])
def test_no_credentials(artifactsync: Command, fails, remote: str) -> None:
    artifactsync.environ["ARTIFACTSYNC_REMOTE"] = remote
    fails(code=6, kinds={"credentials"}, commands=COMMANDS[2:])


def test_wrong_credentials(artifactsync: Command, fails, s3) -> None:
    environ = {name: "hunter2" if "SECRET" in name else value for name, value in s3.environment.items()}
    assert environ != s3.environment
    artifactsync.environ.update({**environ, "ARTIFACTSYNC_REMOTE": s3.fresh_url()})
    assert "hunter2" not in "".join(fails(code=6, kinds={"credentials", "permission"}, commands=COMMANDS[1:]))


@pytest.mark.parametrize("name", ["", "a/b", "..", "a b", "x" * 200, "ünïcode"])
def test_an_invalid_run_name(artifactsync: Command, fails, local: Remote, name: str) -> None:
    artifactsync.environ.update(local.environ)
    fails(code=2, kinds={"run-name"}, commands=(["pull", name], ["push", name, "file.txt"], ["verify", name, "--json"]))
    assert not (artifactsync.cwd.parent / "remote").exists()


def test_an_unexpected_failure_is_one_line_unless_asked(artifactsync: Command, local: Remote) -> None:
    script = (
        "import artifactsync.run as r, artifactsync.cli as c\n"
        "def broken(*a): raise RuntimeError('s3://user:secret@host/x is\\x1b[2J odd')\n"
        "r.list_runs = broken\nc.main(['ls'])\n"
    )
    artifactsync.environ.update(local.environ)
    python = str(artifactsync.program.parent / "python")
    done = artifactsync.run([python, "-c", script])
    assert done.code == 1
    assert done.err == (
        "unexpected error: RuntimeError: s3://***@host/x is\\x1b[2J odd\n"
        "hint: set ARTIFACTSYNC_DEBUG=1 to see the traceback, and please report it\n"
    )
    artifactsync.environ["ARTIFACTSYNC_DEBUG"] = "1"
    debugged = artifactsync.run([python, "-c", script])
    assert "Traceback (most recent call last)" in debugged.err
    assert "secret" not in debugged.err
