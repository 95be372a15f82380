from __future__ import annotations

import hashlib
import os
import resource
import time
from typing import TYPE_CHECKING

import pytest

from tests.cli.conftest import Command, tree_of
from tests.line_faults import Answer

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import Remote


@pytest.fixture
def folder(artifactsync: Command, local: Remote, tmp_path: Path) -> Path:
    """The remote folder of the run ``mine``, which the command finds."""
    artifactsync.environ.update(local.environ)
    plots = artifactsync.cwd / "plots" / "deep"
    plots.mkdir(parents=True)
    (plots / "loss.png").write_bytes(b"png")
    (artifactsync.cwd / "plots" / "acc.png").write_bytes(b"png2")
    (artifactsync.cwd / "notes.md").write_text("# notes\n")
    return tmp_path / "remote" / "mine"


def test_files_and_folders_are_mirrored_under_their_names(artifactsync: Command, folder: Path) -> None:
    done = artifactsync("push", "mine", "notes.md", "plots/")
    *tree, verdict = done.out.splitlines()
    assert "\n".join(tree) == (
        "mine/\n"
        "├── notes.md                 8 B\n"
        "└── plots/\n"
        "    ├── acc.png              4 B\n"
        "    └── deep/\n"
        "        └── loss.png         3 B"
    )
    assert verdict.startswith("durable: 3 files, 15 B in ")
    assert tree_of(folder) == {"notes.md", "plots/acc.png", "plots/deep/loss.png"}


def test_the_json(artifactsync: Command, folder: Path) -> None:
    document = artifactsync("push", "mine", "notes.md", "--as", "docs/readme.md", "--json").json
    assert document.pop("seconds") >= 0
    digest = hashlib.sha256(b"# notes\n").hexdigest()
    assert document == {
        "run_name": "mine",
        "files": 1,
        "bytes": 8,
        "uploaded": [{"path": "docs/readme.md", "key": "mine/docs/readme.md", "size": 8, "sha256": digest}],
    }
    assert (folder / "docs" / "readme.md").read_text() == "# notes\n"


def test_a_folder_under_another_name(artifactsync: Command, folder: Path) -> None:
    artifactsync("push", "mine", "plots", "--as", "pictures")
    assert tree_of(folder) == {"pictures/acc.png", "pictures/deep/loss.png"}


def test_a_second_push_replaces(artifactsync: Command, folder: Path) -> None:
    artifactsync("push", "mine", "notes.md")
    (artifactsync.cwd / "notes.md").write_text("newer")
    artifactsync("push", "mine", "notes.md", "--quiet")
    assert (folder / "notes.md").read_text() == "newer"


def test_nothing_is_pushed_when_a_path_is_not_there(artifactsync: Command, folder: Path) -> None:
    done = artifactsync("push", "mine", "notes.md", "nothing.txt", code=3)
    assert done.err == "error: there is nothing at nothing.txt\nhint: check the path; nothing was pushed\n"
    assert not folder.exists()


def test_one_name_for_several_paths_is_a_usage_error(artifactsync: Command, folder: Path) -> None:
    done = artifactsync("push", "mine", "notes.md", "plots", "--as", "x", code=2)
    assert done.err.startswith("error: --as names one file or folder, but there are 2 PATHs.")
    assert not folder.exists()


def test_two_paths_that_would_become_one_are_refused(artifactsync: Command, folder: Path) -> None:
    (artifactsync.cwd / "plots" / "notes.md").write_text("other")
    done = artifactsync("push", "mine", "notes.md", "plots/notes.md", code=2)
    assert "would both become notes.md" in done.err
    assert not folder.exists()


@pytest.mark.parametrize("key", ["../escape", "/absolute", ".artifactsync/journal/x", "a//b", ""])
def test_a_name_outside_the_run_is_refused(artifactsync: Command, folder: Path, key: str) -> None:
    done = artifactsync("push", "mine", "notes.md", "--as", key, code=None)
    assert done.code in {2, 4}
    assert done.err.startswith("error: ")
    assert not folder.exists()


@pytest.mark.usefixtures("digits")
def test_the_bytes_of_a_checkpoint_are_never_replaced(artifactsync: Command, tmp_path: Path) -> None:
    (artifactsync.cwd / "x.pt").write_bytes(b"other")
    path = "checkpoints/ep3-ba30-rank0.pt"
    done = artifactsync("push", "digits", "x.pt", "--as", path, code=1)
    assert "committed checkpoint" in done.err
    assert (tmp_path / "remote" / "digits" / path).stat().st_size == 1_000_030
    artifactsync("verify", "digits", "--deep")


@pytest.mark.usefixtures("digits")
def test_a_push_does_not_disturb_the_runs_owner(artifactsync: Command) -> None:
    before = artifactsync("status", "digits", "--json").json
    (artifactsync.cwd / "notes.md").write_text("x")
    artifactsync("push", "digits", "notes.md")
    assert artifactsync("status", "digits", "--json").json == before


def test_more_files_than_a_training_loop_may_queue(artifactsync: Command, folder: Path) -> None:
    many = artifactsync.cwd / "many"
    many.mkdir()
    for number in range(10_100):
        (many / f"{number:05d}").touch()
    assert artifactsync("push", "mine", "many", "--json", "--quiet").json["files"] == 10_100
    assert len(tree_of(folder)) == 10_100


def test_an_empty_folder_is_said_to_be_empty(artifactsync: Command, folder: Path) -> None:
    (artifactsync.cwd / "empty").mkdir()
    assert artifactsync("push", "mine", "empty").err == "nothing to push: there is no file in it\n"
    assert not folder.exists()


def test_a_full_remote_is_told_and_given_up(artifactsync: Command, folder: Path) -> None:
    def limit() -> None:  # EFBIG stands for ENOSPC: a small file system of its own needs root
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

    (artifactsync.cwd / "big.bin").write_bytes(b"x" * 1_000_000)
    began = time.monotonic()
    done = artifactsync("push", "mine", "big.bin", code=7, preexec_fn=limit)
    assert time.monotonic() - began < 15
    warning, error, hint = done.err.splitlines()
    assert warning.startswith("warning: upload of mine/big.bin failed and will be tried again: ")
    assert error.startswith("error: upload of mine/big.bin failed after ")
    assert hint == "hint: free some space, then try again"
    assert tree_of(folder) == set()


def test_a_role_that_may_not_write_is_a_matter_of_permission(artifactsync: Command, s3, fault_proxy) -> None:
    line = fault_proxy(s3)
    body = b"<Error><Code>AccessDenied</Code><Message>no</Message></Error>"
    line.proxy.add(Answer(403, body=body), method="PUT")
    line.proxy.add(Answer(403, body=body), method="POST")
    artifactsync.environ.update({**line.environment, "ARTIFACTSYNC_REMOTE": line.fresh_url()})
    (artifactsync.cwd / "notes.md").write_text("x")
    done = artifactsync("push", "run", "notes.md", code=6)
    assert "notes.md" in done.err.splitlines()[0]
    assert "hint: " in done.err


@pytest.mark.usefixtures("digits")
def test_a_dry_run_sends_nothing(artifactsync: Command, local: Remote) -> None:
    plots = artifactsync.cwd / "curves"
    plots.mkdir()
    (plots / "a.png").write_bytes(b"a" * 2048)
    (plots / "b.png").write_bytes(b"b")
    before = artifactsync("ls", "digits", "--json").json
    done = artifactsync("push", "digits", "curves", "--dry-run")
    assert done.out.splitlines() == [
        "digits/",
        "└── curves/",
        "    ├── a.png     2.0 KiB",
        "    └── b.png         1 B",
        "would push 2 files, 2.0 KiB; nothing was sent",
    ]
    document = artifactsync("push", "digits", "curves", "--as", "plots", "--dry-run", "--json").json
    assert [file["key"] for file in document["would_upload"]] == ["digits/plots/a.png", "digits/plots/b.png"]
    assert (document["files"], document["bytes"], document["dry_run"]) == (2, 2049, True)
    taken = artifactsync(
        "push", "digits", "curves/a.png", "--as", "checkpoints/ep1-ba10-rank0.pt", "--dry-run", code=None
    )
    really = artifactsync("push", "digits", "curves/a.png", "--as", "checkpoints/ep1-ba10-rank0.pt", code=None)
    assert (taken.code, taken.err) == (really.code, really.err)
    assert taken.code != 0
    assert artifactsync("ls", "digits", "--json").json == before


@pytest.mark.parametrize("key", ["../x", "/x", ".artifactsync/x"])
def test_a_name_that_leaves_the_run_was_typed_wrong(artifactsync: Command, folder: Path, key: str) -> None:
    done = artifactsync("push", "mine", "notes.md", "--as", key, "--json", code=2)
    assert done.json["error"]["kind"] == "configuration"
    assert not folder.exists()


def test_a_pipe_is_no_file(artifactsync: Command, folder: Path) -> None:
    os.mkfifo(artifactsync.cwd / "pipe")
    assert "neither a file nor a folder" in artifactsync("push", "mine", "pipe", code=2).err
    assert not folder.exists()


def test_a_remote_in_the_folder_is_not_sent_into_itself(artifactsync: Command, folder: Path) -> None:
    artifactsync.environ["ARTIFACTSYNC_REMOTE"] = "plots/remote"
    for _ in range(2):
        artifactsync("push", "mine", "plots")
    sent = artifactsync.cwd / "plots" / "remote" / "mine"
    assert tree_of(sent) == {"plots/acc.png", "plots/deep/loss.png"}


def test_the_names_of_the_folders_above_do_not_matter(artifactsync: Command, folder: Path) -> None:
    there = artifactsync.cwd / ".github-runner" / ".artifactsync-try" / "out"
    there.mkdir(parents=True)
    for name in (".gitignore", "a.txt"):
        (there / name).write_text(name)
    (there / ".git").mkdir()
    (there / ".git" / "config").write_text("not wanted")
    artifactsync("push", "mine", str(there))
    assert (folder / "out" / ".gitignore").read_text() == ".gitignore"
    assert {path.name for path in (folder / "out").iterdir()} == {".gitignore", "a.txt"}
