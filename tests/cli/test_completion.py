from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from artifactsync.cli.application import cli
from artifactsync.cli.completion import install
from artifactsync.errors import ConfigurationError
from tests.cli.conftest import Remote, make_run

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("shell", "script", "startup"),
    [
        ("bash", ".local/share/bash-completion/completions/artifactsync", ".bashrc"),
        ("zsh", ".local/share/zsh/site-functions/_artifactsync", ".zshrc"),
        ("fish", ".config/fish/completions/artifactsync.fish", None),
    ],
)
def test_it_is_installed_once(tmp_path: Path, shell: str, script: str, startup: str | None) -> None:
    lines = install(cli, shell, {}, tmp_path)
    assert (tmp_path / script).read_text().count("_ARTIFACTSYNC_COMPLETE") > 0
    assert any(str(tmp_path / script) in line for line in lines)
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert set(files) == {tmp_path / script} | ({tmp_path / startup} if startup else set())
    again = install(cli, shell, {}, tmp_path)
    assert again[-1] == f"{shell} completion was installed already"
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == files


def test_the_users_own_lines_stay(tmp_path: Path) -> None:
    bashrc = tmp_path / ".bashrc"
    bashrc.write_bytes(b"alias a=b # caf\xe9")
    install(cli, "bash", {}, tmp_path)
    before = bashrc.read_bytes()
    assert before.startswith(b"alias a=b # caf\xe9\n# >>>")
    bashrc.write_bytes(before.replace(b"[ -f ", b"[ -e ") + b"after=1\n")
    install(cli, "bash", {}, tmp_path)
    assert bashrc.read_bytes() == before + b"after=1\n"


def test_a_symlinked_startup_file_stays_a_symlink(tmp_path: Path) -> None:
    real = tmp_path / "dotfiles"
    real.write_text("x=1\n")
    (tmp_path / ".bashrc").symlink_to(real)
    install(cli, "bash", {}, tmp_path)
    assert (tmp_path / ".bashrc").is_symlink()
    assert "artifactsync" in real.read_text()


def test_the_shell_is_told_from_the_environment(tmp_path: Path) -> None:
    assert install(cli, "detect", {"SHELL": "/usr/bin/fish"}, tmp_path)[-1] == "open a new fish to use it"
    with pytest.raises(ConfigurationError, match="cannot be told") as caught:
        install(cli, "detect", {"SHELL": "/bin/tcsh"}, tmp_path)
    assert "--install-completion bash|zsh|fish" in caught.value.hint


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / ".local").write_text("a file")
    with pytest.raises(ConfigurationError, match="cannot be written"):
        install(cli, "bash", {}, tmp_path)


def completed(tmp_path: Path, program: Path, *typed: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """What bash offers after each of the half-typed lines, a line each."""
    lines = [
        f"COMPREPLY=(); COMP_WORDS=({line}); COMP_CWORD={len(line.split()) - 1}; "
        '_artifactsync_completion artifactsync; echo "${COMPREPLY[*]}"'
        for line in typed
    ]
    return subprocess.run(
        ["bash", "--norc", "-c", "\n".join([f". {tmp_path}/.bashrc", *lines])],
        env={"PATH": f"{program.parent}:/usr/bin:/bin", "HOME": str(tmp_path), **environ},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )


def test_bash_completes_commands_options_and_runs(tmp_path: Path, program: Path, digits: Path, local: Remote) -> None:
    make_run(local, "digits-2", local_root=tmp_path / "trainer2", steps=())
    make_run(local, "other", local_root=tmp_path / "trainer2", steps=())
    install(cli, "bash", {}, tmp_path)
    lines = [
        "artifactsync pu",
        "artifactsync verify --de",
        "artifactsync pull dig",
        f"artifactsync --remote {local.url} rm o",
    ]
    done = completed(tmp_path, program, *lines, ARTIFACTSYNC_REMOTE=local.url)
    assert done.stdout.splitlines() == ["pull push", "--deep", "digits digits-2", "other"]
    assert done.stderr == ""


def test_a_remote_that_does_not_answer_is_no_noise_in_the_line(tmp_path: Path, program: Path) -> None:
    install(cli, "bash", {}, tmp_path)
    nobody = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"}
    done = completed(tmp_path, program, "artifactsync ls d", ARTIFACTSYNC_REMOTE="s3://bucket", **nobody)
    assert (done.stdout, done.stderr) == ("\n", "")
    done = completed(tmp_path, program, "artifactsync ls d")  # no remote at all
    assert (done.stdout, done.stderr) == ("\n", "")
