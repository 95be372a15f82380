from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

import pytest

from tests.cli.conftest import Command, Remote, make_run, tree_of
from tests.line_faults import BlackHole

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("as_json", [False, True])
def test_ctrl_c_ends_a_command_that_hangs(artifactsync: Command, s3, fault_proxy, as_json: bool) -> None:
    line = fault_proxy(s3)
    line.proxy.add(BlackHole())
    artifactsync.environ.update({**line.environment, "ARTIFACTSYNC_REMOTE": line.fresh_url()})
    process = artifactsync.start("ls", *(["--json"] if as_json else []))
    line.proxy.wait_for(1)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert time.monotonic() - began < 5
    assert process.returncode == 130
    if as_json:
        assert '"kind": "interrupted"' in out
        assert err == ""
    else:
        assert (out, err) == ("", "interrupted\n")


def test_an_interrupted_pull_shows_no_half_and_is_continued(
    artifactsync: Command, s3, fault_proxy, tmp_path: Path
) -> None:
    url = s3.fresh_url()
    make_run(Remote(url, s3.storage_options, {}), "slow", local_root=tmp_path / "trainer", steps=(10,))
    line = fault_proxy(s3)
    artifactsync.environ.update({**line.environment, "ARTIFACTSYNC_REMOTE": url})
    line.proxy.bytes_per_s = 100_000
    process = artifactsync.start("pull", "slow")
    line.proxy.wait_for(1, contains="ep1-ba10-rank0.pt")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, "interrupted\n")
    assert "checkpoints/ep1-ba10-rank0.pt" not in tree_of(artifactsync.cwd / "slow")
    line.proxy.heal()
    assert artifactsync("pull", "slow", "--json").json["verified"] is True


def test_an_interrupted_push_does_not_wait_for_its_uploads(artifactsync: Command, s3, fault_proxy) -> None:
    line = fault_proxy(s3)
    artifactsync.environ.update({**line.environment, "ARTIFACTSYNC_REMOTE": line.fresh_url()})
    (artifactsync.cwd / "big.bin").write_bytes(b"x" * 5_000_000)
    line.proxy.bytes_per_s = 50_000
    process = artifactsync.start("push", "run", "big.bin")
    line.proxy.wait_for(1, contains="big.bin")
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert time.monotonic() - began < 5
    assert (process.returncode, err) == (130, "interrupted\n")
