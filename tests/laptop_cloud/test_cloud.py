from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import boto3
import cloud
import programs
import psutil
import pytest
import yaml
from child_process import process_started
from servers import SeaweedFS
from signing import send

PROGRAM = Path(cloud.__file__)


class User:
    """Somebody who types commands in a folder of theirs."""

    def __init__(self, folder):
        self.folder = folder
        self.seen_pids = set()
        self.environment = dict(os.environ)

    def type(self, *words, expect=0, timeout_s=60):
        answer = subprocess.run(
            [sys.executable, PROGRAM, *words],
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        assert answer.returncode == expect, answer.stderr
        assert "Traceback" not in answer.stderr
        self.seen_pids |= set(self.pids().values())
        return answer

    def shell(self, text):
        """Run a shell line after ``eval`` of what ``env`` prints."""
        line = f'eval "$({sys.executable} {PROGRAM} env)" && {text}'
        scripts = Path(sys.executable).parent
        environment = {**self.environment, "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"}
        return subprocess.run(
            ["sh", "-c", line], cwd=self.folder, env=environment, capture_output=True, text=True, timeout=60, check=True
        ).stdout

    @property
    def state_file(self):
        return self.folder / ".cloud" / "state.json"

    def pids(self):
        try:
            state = json.loads(self.state_file.read_text())
            return {scheme: server["pid"] for scheme, server in state["servers"].items()}
        except (OSError, ValueError, TypeError, KeyError):
            return {}


@pytest.fixture
def user(tmp_path):
    user = User(tmp_path)
    yield user
    user.type("down")
    assert not [pid for pid in user.seen_pids if process_started(pid)]


def error_of(answer):
    (line,) = answer.stderr.splitlines()
    assert line.startswith("error: ")
    return line


def test_up_use_down_and_up_again(user):
    first = user.type("up")
    assert user.type("up").stdout == first.stdout, "a second up changes nothing"
    assert user.type("env").stdout == first.stdout
    assert set(user.pids()) == {"s3", "gs"}
    assert "seaweedfs   running" in user.type("status").stdout

    (user.folder / "weights").write_text("bytes of a checkpoint")
    user.shell("aws s3 cp weights s3://artifactsync/runs/weights")
    upload = "$STORAGE_EMULATOR_HOST/upload/storage/v1/b/artifactsync/o?uploadType=media&name=kept"
    user.shell(f'python -c "import sys, urllib.request as u; u.urlopen(sys.argv[1], b\'to gcs\')" "{upload}"')

    assert "Ended seaweedfs and fake-gcs." in user.type("down").stderr
    assert "not up" in user.type("status", expect=1).stdout
    assert not user.state_file.exists()

    user.type("up")
    assert user.shell("aws s3 cp s3://artifactsync/runs/weights -") == "bytes of a checkpoint"
    exports = dict(re.findall(r"^export (\w+)=(\S+)$", user.type("env").stdout, re.MULTILINE))
    assert exports["ARTIFACTSYNC_REMOTE"] == "s3://artifactsync/runs"
    assert send("GET", f"{exports['STORAGE_EMULATOR_HOST']}/storage/v1/b/artifactsync/o/kept") == 200
    assert (user.folder / ".cloud" / ".gitignore").read_text() == "*\n"


@pytest.mark.timeout(600)  # its first use installs LocalStack
def test_localstack_is_the_other_s3(user):
    assert (
        "# S3: localstack at http://127.0.0.1:"
        in user.type("up", "--no-gcs", "--s3", "localstack", timeout_s=590).stdout
    )
    assert "artifactsync" in user.shell("aws s3 ls")
    assert user.type("down").stderr == "Ended localstack.\n", "of data it keeps none"


def test_exports_win_over_what_the_shell_has(user):
    # Else a user might write to the real cloud while believing to be on the laptop.
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID"):
        user.environment[name] = "http://127.0.0.1:1" if "URL" in name else "elsewhere"
    user.type("up", "--no-gcs")
    assert "artifactsync" in user.shell("aws s3 ls")


def test_servers_that_died_are_noticed_and_started_again(user):
    user.type("up")
    before = user.pids()
    os.kill(before["s3"], signal.SIGKILL)
    wait_for(lambda: process_started(before["s3"]) is None)
    assert "seaweedfs   died" in user.type("status", expect=1).stdout
    assert "seaweedfs died; start it:" in error_of(user.type("env", expect=1))
    user.type("up")
    after = user.pids()
    assert after["gs"] == before["gs"]
    assert after["s3"] != before["s3"]
    assert "died" not in user.type("status").stdout


def test_what_a_killed_up_left_behind_is_ended(user):
    orphan = SeaweedFS(user.folder / ".cloud" / "seaweedfs", outlives_parent=True)
    user.type("up", "--no-gcs")
    assert process_started(orphan.pid) is None
    assert set(user.pids()) == {"s3"}
    orphan.stop()


def test_a_process_that_got_a_dead_servers_id_is_left_alone(user):
    user.type("up", "--no-gcs")
    user.type("down")
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as innocent:
        record = {"kind": "seaweedfs", "pid": innocent.pid, "started": "1", "endpoint_url": "", "environment": {}}
        user.state_file.write_text(json.dumps({"servers": {"s3": record}}))
        assert "Nothing was running" in user.type("down").stderr
        assert innocent.poll() is None
        innocent.kill()


def test_another_s3_beside_the_running_one_is_refused(user):
    user.type("up", "--no-gcs")
    refused = user.type("up", "--s3", "localstack", expect=1)
    assert "S3 runs already, as seaweedfs" in error_of(refused)


def test_a_state_that_cannot_be_understood(user):
    user.state_file.parent.mkdir()
    for text in ("not json", "[]", '{"servers": {"s3": {"kind": "x"}}}'):
        user.state_file.write_text(text)
        for command in ("up", "env", "status", "down"):
            assert "cannot be understood" in error_of(user.type(command, expect=1))
    user.state_file.unlink()


def test_a_folder_that_is_a_file(user):
    (user.folder / "file").write_text("")
    for command in ("up", "env", "status", "down"):
        assert "cannot use" in error_of(user.type("--folder", "file", command, expect=1))


def test_nothing_to_use_or_end(user):
    assert "the cloud is not up; start it:" in error_of(user.type("env", expect=1))
    assert "Nothing was running" in user.type("down").stderr
    assert not (user.folder / ".cloud").exists()
    assert "usage:" in user.type("fly", expect=2).stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_foreground_ends_with_its_program(user, number):
    command = [sys.executable, PROGRAM, "up", "--foreground"]
    with subprocess.Popen(command, cwd=user.folder, stdout=subprocess.PIPE, text=True, start_new_session=True) as up:
        while not up.stdout.readline().startswith("export ARTIFACTSYNC_REMOTE"):
            pass
        pids = user.pids().values()
        assert len(pids) == 2
        up.send_signal(number)
        assert up.wait(30) == (-9 if number == signal.SIGKILL else 0)
    wait_for(lambda: not any(process_started(pid) for pid in pids))
    user.type("down")


def test_programs_get_a_throw_away_cloud():
    with cloud.s3() as remote:
        bucket, _, prefix = remote.url.removeprefix("s3://").partition("/")
        assert remote.environment["ARTIFACTSYNC_REMOTE"] == remote.url
        client = boto3.client(
            "s3",
            endpoint_url=remote.environment["AWS_ENDPOINT_URL"],
            aws_access_key_id=remote.environment["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=remote.environment["AWS_SECRET_ACCESS_KEY"],
            region_name=remote.environment["AWS_REGION"],
        )
        client.put_object(Bucket=bucket, Key=f"{prefix}/k", Body=b"x")
        process = psutil.Process(remote.server.pid)
    assert not process.is_running()
    with cloud.gcs() as remote:
        assert send("GET", f"{remote.server.endpoint_url}/storage/v1/b/{remote.url.split('/')[2]}") == 200


def test_compose_file():
    composed = yaml.safe_load(PROGRAM.with_name("compose.yaml").read_text())
    assert set(composed) == {"name", "services"}
    assert set(composed["services"]) == {"s3", "gcs", "gcs-bucket"}
    ports = {}
    for name, service in composed["services"].items():
        assert set(service) <= {"image", "ports", "environment", "volumes", "healthcheck", "command", "depends_on"} | {
            "entrypoint"
        }
        assert re.search(r":\d+\.\d+", service["image"]), "pinned"
        assert service["healthcheck"]["test"][0] == "CMD"
        assert set(service.get("depends_on", {})) <= set(composed["services"])
        for port in service.get("ports", ()):
            host, outside, inside = port.split(":")
            assert (host, outside) == ("127.0.0.1", inside)
            ports[name] = outside
    exported = " ".join(cloud.exports(cloud._compose_servers()))
    assert all(f"http://127.0.0.1:{ports[name]}" in exported for name in ("s3", "gcs"))
    script, inside, mode = composed["services"]["s3"]["volumes"][0].split(":")
    assert (PROGRAM.parent / script).stat().st_mode & stat.S_IXUSR, "LocalStack runs only executable scripts"
    assert inside.startswith("/etc/localstack/init/ready.d/")
    assert mode == "ro"


def test_compose_gives_fake_gcs_flags_that_it_knows():
    known = subprocess.run([programs.fake_gcs(), "-help"], capture_output=True, text=True, check=False).stderr
    composed = yaml.safe_load(PROGRAM.with_name("compose.yaml").read_text())
    for flag in composed["services"]["gcs"]["command"]:
        assert f"  {flag.partition('=')[0]} " in known


def wait_for(is_true, timeout_s=20):
    deadline = time.monotonic() + timeout_s
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.01)
