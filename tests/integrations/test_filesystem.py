"""``artifactsync://RUN/path``: what other programs read of a run by name."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys

import fsspec
import pandas as pd
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from artifactsync import Run
from artifactsync.errors import (
    CheckpointNotFoundError,
    ConfigurationError,
    ObjectNotFoundError,
    PermissionDeniedError,
    RunNotFoundError,
)
from artifactsync.integrations.filesystem import RunFileSystem
from artifactsync.stores import open_store


@pytest.fixture
def remote(tmp_path, monkeypatch):
    """A run of two attempts: two checkpoints, of which the newest is another attempt's, logs, and an upload cut off."""
    remote = tmp_path / "bucket"
    with Run("digits", remote=remote, local_root=tmp_path / "a") as run:
        run.save({"w": torch.ones(3)}, step=1, name="first").result()
        run.save({"w": torch.ones(3) * 2}, step=2, epoch=1, name="second").result()
        table = tmp_path / "table.csv"
        table.write_text("step,loss\n1,0.5\n2,0.25\n")
        run.push(table, "tables/loss.csv")
        writer = SummaryWriter(tmp_path / "tb")
        writer.add_scalar("loss", 0.5, 1)
        writer.close()
        run.push(tmp_path / "tb", "tensorboard/digits")
    with Run("digits", remote=remote, local_root=tmp_path / "b") as run:
        run.save({"w": torch.ones(3) * 3}, step=2, epoch=1, name="second again").result()
    house = remote / "digits" / ".artifactsync" / "intents"
    house.mkdir(exist_ok=True)
    (house / "000002-000009.json").write_text(json.dumps({"keys": ["checkpoints/half.pt"]}))
    (remote / "digits" / "checkpoints" / "half.pt").write_bytes(b"half of a checkpoint")
    monkeypatch.setenv("ARTIFACTSYNC_REMOTE", str(remote))
    return remote


def _load(url, **options):
    with fsspec.open(url, **options) as file:
        return torch.load(file, weights_only=True)["w"][0].item()


def test_a_file_by_name(remote):
    assert pd.read_csv("artifactsync://digits/tables/loss.csv")["loss"].tolist() == [0.5, 0.25]
    assert _load("artifactsync://digits/checkpoints/ep0-ba1-rank0.pt") == 1
    assert _load("artifactsync://digits/checkpoints/ep1-ba2-rank0.pt") == 3, "the later attempt's"
    assert _load("artifactsync://digits/checkpoints/ep1-ba2-rank0.pt?checkpoint=second") == 2
    assert _load("artifactsync://digits/checkpoints/ep1-ba2-rank0.pt?checkpoint=second%20again") == 3
    assert _load("artifactsync://digits/checkpoints/ep1-ba2-rank0.pt?checkpoint=latest") == 3


def test_the_remote_can_be_said(remote, monkeypatch, tmp_path):
    monkeypatch.delenv("ARTIFACTSYNC_REMOTE")
    monkeypatch.chdir(tmp_path)
    url = "artifactsync://digits/checkpoints/ep0-ba1-rank0.pt"
    assert _load(url, remote=str(remote)) == 1
    with pytest.raises(ConfigurationError, match="no remote was given"):
        _load(url)
    (tmp_path / "artifactsync.toml").write_text('remote = "bucket"\n')
    assert _load(url) == 1
    assert pd.read_csv("artifactsync://digits/tables/loss.csv", storage_options={"remote": str(remote)}).shape == (2, 2)


def test_folders_show_what_is_committed_and_nothing_else(remote):
    fs = fsspec.filesystem("artifactsync")
    assert fs.ls("", detail=False) == ["digits"]
    assert fs.ls("artifactsync://digits", detail=False) == [
        "digits/checkpoints", "digits/tables", "digits/tensorboard",
    ]  # fmt: skip
    assert fs.ls("digits/checkpoints/", detail=False) == [
        "digits/checkpoints/ep0-ba1-rank0.pt", "digits/checkpoints/ep1-ba2-rank0.pt",
    ]  # fmt: skip
    assert fs.glob("artifactsync://digits/*/*.csv") == ["digits/tables/loss.csv"]
    assert fs.exists("digits/tables")
    assert not fs.exists("digits/checkpoints/half.pt")
    assert not fs.exists("digits/.artifactsync/head.json")
    only = fsspec.filesystem("artifactsync", checkpoint="first")
    assert only.ls("digits/checkpoints", detail=False) == ["digits/checkpoints/ep0-ba1-rank0.pt"]
    info = fs.info("digits/checkpoints/ep1-ba2-rank0.pt")
    assert info["key"].endswith(".a2.pt")
    assert fs.checksum("digits/checkpoints/ep1-ba2-rank0.pt") == info["sha256"]
    assert [path for path, _, _ in fs.walk("digits")][1:] == [
        "digits/checkpoints", "digits/tables", "digits/tensorboard", "digits/tensorboard/digits",
    ]  # fmt: skip


def test_ranges_and_copies(remote, tmp_path):
    fs = fsspec.filesystem("artifactsync")
    assert fs.cat("digits/tables/loss.csv").startswith(b"step,loss")
    assert fs.cat_file("digits/tables/loss.csv", -5, -1) == b"0.25"
    fs.get("digits/tables", str(tmp_path / "here"), recursive=True)
    assert (tmp_path / "here" / "loss.csv").read_text().endswith("2,0.25\n")
    with pickle.loads(pickle.dumps(fs)).open("digits/tables/loss.csv", "r") as file:
        assert file.readline() == "step,loss\n"


def test_a_new_commit_is_seen_at_once_and_a_growing_log_is_one_file(remote, tmp_path):
    fs = fsspec.filesystem("artifactsync")
    log = tmp_path / "log.txt"
    with Run("digits", remote=remote, local_root=tmp_path / "c") as run:
        for number in range(3):
            with log.open("a") as file:
                file.write(f"line {number}\n")
            run.push(log, "log.txt", growing=True).result()
            assert fs.cat("digits/log.txt").decode().splitlines() == [f"line {n}" for n in range(number + 1)]
        assert not fs.exists("digits/checkpoints/ep0-ba9-rank0.pt")
        run.save({"w": torch.zeros(1)}, step=9).result()
        assert _load("artifactsync://digits/checkpoints/ep0-ba9-rank0.pt") == 0


def test_tensorboard_reads_its_folder(remote):
    events = EventAccumulator("artifactsync://digits/tensorboard/digits")
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 0.5)]


@pytest.mark.parametrize(
    ("url", "error", "words"),
    [
        ("artifactsync://digits/no.csv", ObjectNotFoundError, "no committed file 'digits/no.csv'"),
        ("artifactsync://nobody/no.csv", ObjectNotFoundError, "no committed file"),
        ("artifactsync://digits/tables/loss.csv?checkpoint=third", CheckpointNotFoundError, "no checkpoint 'third'"),
        ("artifactsync://digits", ObjectNotFoundError, "is a folder"),
        ("artifactsync://../secret", ValueError, "run name"),
    ],
)
def test_what_is_not_there(remote, url, error, words):
    with pytest.raises(error, match=words), fsspec.open(url) as file:
        file.read()


def test_a_missing_run_is_a_file_not_found(remote):
    fs = fsspec.filesystem("artifactsync")
    with pytest.raises(RunNotFoundError, match="no run 'nobody'"):
        fs.ls("nobody")
    assert not fs.exists("nobody")


def test_nothing_can_be_written(remote, tmp_path):
    fs = fsspec.filesystem("artifactsync")
    before = sorted(remote.rglob("*"))
    local = tmp_path / "x"
    local.write_text("x")
    for act in (
        lambda: fs.open("digits/x", "wb"),
        lambda: fs.open("digits/x", "a"),
        lambda: fs.pipe("digits/x", b"1"),
        lambda: fs.put(str(local), "digits/x"),
        lambda: fs.rm("digits", recursive=True),
        lambda: fs.mv("digits/tables/loss.csv", "digits/x"),
        lambda: fs.touch("digits/x"),
        lambda: pd.DataFrame({"a": [1]}).to_csv("artifactsync://digits/x.csv"),
    ):
        with pytest.raises(PermissionDeniedError, match="read-only"):
            act()
    assert sorted(remote.rglob("*")) == before


def test_over_s3(s3, tmp_path):
    remote = s3.fresh_url()
    with Run("r", remote=remote, local_root=tmp_path, storage_options=s3.storage_options) as run:
        run.save({"w": torch.ones(1)}, step=1).result()
    where = {"remote": remote, "storage_options": s3.storage_options}
    assert _load("artifactsync://r/checkpoints/ep0-ba1-rank0.pt", **where) == 1
    assert RunFileSystem(**where).ls("", detail=False) == ["r"]


def test_the_protocol_is_registered_and_loads_no_torch(remote):
    program = (
        "import fsspec, sys\n"
        "print(fsspec.open('artifactsync://digits/tables/loss.csv').open().read())\n"
        "assert 'torch' not in sys.modules and 'boto3' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "0.25" in done.stdout


def test_the_folder_of_a_run_goes_along_to_other_processes(tmp_path):
    with Run("digits", remote=tmp_path / "bucket", local_root=tmp_path / "a") as run:
        with run.fs.open("ray/state.json", "wb") as file:
            file.write(b"{}")
        again = pickle.loads(pickle.dumps(run.fs))
    assert again.cat("ray/state.json") == b"{}"
    again.pipe("ray/more.json", b"1")
    with Run("digits", remote=tmp_path / "bucket", read_only=True) as run:
        assert run.fs.find("ray") == ["ray/more.json", "ray/state.json"]
    opened = Run("digits", remote=open_store(tmp_path / "bucket"), read_only=True)
    with opened, pytest.raises(TypeError, match="made from an open store"):
        pickle.dumps(opened.fs)
