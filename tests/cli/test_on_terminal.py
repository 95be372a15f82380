from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.cli.conftest import Command, Remote, make_run, shown, without_escapes

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.usefixtures("digits")
@pytest.mark.parametrize("arguments", [["ls"], ["ls", "digits"]])
def test_tables_fit_80_columns(artifactsync: Command, arguments: list[str]) -> None:
    text = artifactsync.on_terminal(*arguments)
    assert "\x1b[1m" in text
    assert "──" in text
    assert max(len(line) for line in without_escapes(text).splitlines()) <= 80


@pytest.mark.usefixtures("digits")
@pytest.mark.parametrize("columns", [80, 40])
def test_names_and_figures_are_seen_whole(artifactsync: Command, local: Remote, tmp_path: Path, columns: int) -> None:
    name = "1657932618-infrared-ferret"
    make_run(local, name, local_root=tmp_path / "trainer2", steps=(10,))
    lines = shown(artifactsync.on_terminal("ls", columns=columns), columns)
    assert [line for line in lines if line.startswith(name)], lines
    assert "\n".join(lines).count("completed") == 2
    text = "\n".join(shown(artifactsync.on_terminal("ls", "digits", columns=columns), columns))
    for part in ("ep1-ba10", "ep3-ba30", "976.6 KiB", "val_loss=0.03333", "logs-rank0.txt", "plots/loss.png"):
        assert part in text
    lines = shown(artifactsync.on_terminal("pull", "digits", "--dry-run", columns=columns), columns)
    assert "│   └── ep3-ba30-rank0.pt   976.6 KiB" in lines


def test_a_long_name_is_folded_and_never_cut(artifactsync: Command, local: Remote, tmp_path: Path) -> None:
    artifactsync.environ.update(local.environ)
    name = "n" * 128
    make_run(local, name, local_root=tmp_path / "trainer", steps=(10,))
    text = without_escapes(artifactsync.on_terminal("ls"))
    assert sum(line.count("n") for line in text.splitlines() if line.startswith("nn")) >= 128
    assert max(len(line) for line in text.splitlines()) <= 80
    assert name in artifactsync("ls").out


@pytest.mark.usefixtures("digits")
@pytest.mark.parametrize("env", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_no_escape_where_none_is_wanted(artifactsync: Command, env: dict[str, str]) -> None:
    for arguments in (["ls", "digits"], ["pull", "digits"]):
        assert "\x1b" not in artifactsync.on_terminal(*arguments, env=env)
    assert "\x1b" not in artifactsync.on_terminal("ls", "nothing", env=env, code=3)


def test_a_slow_pull_shows_files_bytes_and_rate(artifactsync: Command, s3, fault_proxy, tmp_path: Path) -> None:
    url = s3.fresh_url()
    make_run(Remote(url, s3.storage_options, {}), "slow", local_root=tmp_path / "trainer", steps=(10,))
    line = fault_proxy(s3)
    line.proxy.bytes_per_s = 600_000
    artifactsync.environ.update({**line.environment, "ARTIFACTSYNC_REMOTE": url})
    text = artifactsync.on_terminal("pull", "slow")
    assert "pulling 3 files" in text
    assert "of 977.0 KiB" in text
    assert "KiB/s" in text
    assert without_escapes(text).rstrip().splitlines()[-1].startswith("verified: checkpoint ep1-ba10, 3 files")
    quiet = artifactsync.on_terminal("pull", "slow", "again", "--quiet")
    assert quiet == ""


def test_a_slow_push_shows_files_and_bytes(artifactsync: Command, s3, fault_proxy) -> None:
    line = fault_proxy(s3)
    line.proxy.bytes_per_s = 1_000_000
    artifactsync.environ.update({**line.environment, "ARTIFACTSYNC_REMOTE": line.fresh_url()})
    (artifactsync.cwd / "big.bin").write_bytes(b"x" * 1_500_000)
    text = artifactsync.on_terminal("push", "slow", "big.bin")
    assert "pushing 1 file" in text
    assert "of 1.4 MiB" in text
    assert "durable: 1 file, 1.4 MiB" in text


@pytest.mark.usefixtures("digits")
def test_errors_are_coloured_words(artifactsync: Command) -> None:
    text = artifactsync.on_terminal("ls", "digit", code=3)
    assert text.startswith("\x1b[31merror:")
    assert "did you mean digits?" in text


@pytest.mark.usefixtures("digits")
def test_json_on_a_terminal_is_json(artifactsync: Command) -> None:
    assert artifactsync.on_terminal("ls", "--json").startswith('{\n  "runs": [')
