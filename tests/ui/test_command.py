"""The command in a process of its own: what it prints, and how it ends."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

import psutil
import pytest

from tests.cli.conftest import artifactsync, program  # noqa: F401 fixtures
from tests.line_faults import BlackHole
from tests.ui.conftest import Visitor, train

if TYPE_CHECKING:
    from tests.cli.conftest import Command


def visitor_of(address):
    """Somebody who has opened the printed address."""
    url = urlsplit(address.strip())
    assert (url.scheme, url.hostname) == ("http", "127.0.0.1")
    visitor = Visitor(url.port)
    assert visitor.enter(parse_qs(url.query)["token"][0]).status == 303
    return visitor


def ended(process, how=signal.SIGINT):
    process.send_signal(how)
    out, err = process.communicate(timeout=30)
    return process.returncode, out, err


def test_it_tells_its_address_serves_and_ends_at_ctrl_c(artifactsync: Command, tmp_path):  # noqa: F811
    train(tmp_path / "bucket", tmp_path / "local")
    process = artifactsync.start("--remote", str(tmp_path / "bucket"), "ui")
    visitor = visitor_of(process.stdout.readline())
    assert "1 run" in visitor.get("/").page.text
    assert "Durable up to step 2" in visitor.get("/runs/r").page.text
    sockets = [found for found in psutil.Process(process.pid).net_connections() if found.status == "LISTEN"]
    assert [found.laddr for found in sockets] == [("127.0.0.1", visitor.port)]  # and no other address
    code, out, err = ended(process)
    assert (code, out) == (130, "")
    assert err == f"the runs at {tmp_path / 'bucket'}; Ctrl-C ends it\ninterrupted\n"


def test_one_json_document_and_sigterm(artifactsync: Command, tmp_path):  # noqa: F811
    process = artifactsync.start("--remote", str(tmp_path), "--json", "ui")
    lines = []
    while not lines or lines[-1] != "}\n":
        lines.append(process.stdout.readline())
    document = json.loads("".join(lines))
    assert document.keys() == {"url", "remote"}
    assert visitor_of(document["url"]).get("/").status == 200
    assert ended(process, signal.SIGTERM) == (-signal.SIGTERM, "", "")


def test_ctrl_c_ends_it_while_pages_wait_for_a_remote_that_never_answers(artifactsync: Command, s3, fault_proxy):  # noqa: F811
    line = fault_proxy(s3)
    line.proxy.add(BlackHole())
    artifactsync.environ.update(line.environment)
    process = artifactsync.start("--remote", line.fresh_url(), "ui", "--no-browser")
    visitor = visitor_of(process.stdout.readline())
    threads = [threading.Thread(target=_read_to_its_end, args=(visitor, place)) for place in ("/", "/runs/r")]
    for thread in threads:
        thread.start()
    line.proxy.wait_for(2)
    code, _, err = ended(process)
    assert code == 130
    assert err.endswith("interrupted\n")
    assert "Traceback" not in err
    for thread in threads:
        thread.join(30)


def _read_to_its_end(visitor, place):
    with contextlib.suppress(OSError, http.client.HTTPException):  # it is cut off, as it should be
        visitor.get(place)


def test_a_port_that_is_taken_is_one_clear_line(artifactsync: Command, tmp_path):  # noqa: F811
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = artifactsync("--remote", str(tmp_path), "ui", "--port", str(port), code=2)
        assert done.err == (
            f"error: port {port} of 127.0.0.1 is in use\nhint: leave --port out: then a free one is taken\n"
        )
        assert done.out == ""
        as_json = artifactsync("--remote", str(tmp_path), "--json", "ui", "--port", str(port), code=2).json
        assert as_json["error"]["kind"] == "configuration"
    assert "65536" in artifactsync("--remote", str(tmp_path), "ui", "--port", "65536", code=2).err


@pytest.mark.parametrize(
    ("remote", "code", "words"),
    [("", 2, "remote"), ("s3://", 2, "names no bucket"), ("s3://key:secret@bucket/x", 2, "credentials")],
)
def test_a_wrong_remote_ends_it_at_once(artifactsync: Command, remote, code, words):  # noqa: F811
    done = artifactsync(*(["--remote", remote] if remote else []), "ui", code=code)
    assert words in done.err
    assert "secret" not in done.err
    assert done.out == ""


@pytest.mark.parametrize("package", ["starlette", "uvicorn", "jinja2"])
def test_without_the_extra_it_says_what_to_install(tmp_path, package):
    script = f"import sys; sys.modules[{package!r}] = None\nfrom artifactsync.cli import main\nmain()"
    done = subprocess.run(
        [sys.executable, "-c", script, "--remote", str(tmp_path), "ui"],
        check=False, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        f"error: the page needs the Python package {package}\nhint: pip install 'artifactsync[ui]'\n"
    )


def test_on_a_terminal_the_browser_is_opened_with_a_pass_for_one(program, tmp_path):  # noqa: F811
    opened = tmp_path / "opened"
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\nprintf %s "$1" > {opened}.part\nmv {opened}.part {opened}\n')
    browser.chmod(0o755)
    environ = os.environ | {"BROWSER": f"{browser} %s", "DISPLAY": ":0", "NO_COLOR": "1"}
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [program, "--remote", str(tmp_path), "ui"], env=environ, stdin=theirs, stdout=theirs, stderr=theirs,
        start_new_session=True,
    ) as process:  # fmt: skip
        os.close(theirs)
        with os.fdopen(ours, "rb", buffering=0) as terminal:
            printed = b""
            while b"Ctrl-C" not in printed:
                printed += terminal.read(4096)
            address = printed.split(b"\r\n")[0].decode()
            while not opened.exists():
                assert process.poll() is None
                time.sleep(0.01)
            assert opened.read_text() != address  # what is on a command line is there for all to read
            visitor_of(opened.read_text())
            with pytest.raises(AssertionError):
                visitor_of(opened.read_text())
            visitor_of(address)
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 130
