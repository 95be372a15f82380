from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from artifactsync.errors import ConfigurationError
from artifactsync.naming.configuration import (
    Configuration,
    choose_local_root,
    choose_remote,
    find_configuration,
    storage_options_for,
)

if TYPE_CHECKING:
    from pathlib import Path


def test_a_file_of_ours_says_everything(tmp_path: Path) -> None:
    (tmp_path / "artifactsync.toml").write_text(
        'remote = "s3://bucket/runs"\nlocal_root = "out"\n[storage_options]\nendpoint_url = "http://127.0.0.1:1"\n'
    )
    found = find_configuration(tmp_path)
    assert found.remote == "s3://bucket/runs"
    assert found.local_root == str(tmp_path / "out")
    assert found.storage_options == {"endpoint_url": "http://127.0.0.1:1"}
    assert found.source == tmp_path / "artifactsync.toml"


def test_the_nearest_file_counts_and_a_foreign_pyproject_does_not(tmp_path: Path) -> None:
    inner = tmp_path / "project" / "src"
    inner.mkdir(parents=True)
    (tmp_path / "artifactsync.toml").write_text('remote = "far"\n')
    (tmp_path / "project" / "pyproject.toml").write_text('[project]\nname = "artifactsync-user"\n')
    assert find_configuration(inner).remote == str(tmp_path / "far")
    (tmp_path / "project" / "pyproject.toml").write_text('[tool.artifactsync]\nremote = "gs://near"\n')
    assert find_configuration(inner).remote == "gs://near"
    (tmp_path / "project" / "artifactsync.toml").write_text('remote = "s3://nearest"\n')
    assert find_configuration(inner).remote == "s3://nearest"


def test_no_file_is_an_empty_configuration(tmp_path: Path) -> None:
    assert find_configuration(tmp_path) == Configuration()


def test_a_broken_pyproject_that_is_not_about_us_is_none_of_our_business(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[project\n")
    assert find_configuration(tmp_path) == Configuration()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("artifactsync.toml", 'remote = "a"\nremote = s3://b\n', ", line 2: Invalid value"),
        ("artifactsync.toml", 'remote = "a"\n\nbucket = "b"\n', ", line 3: unknown key 'bucket'"),
        ("artifactsync.toml", "\nremote = 3\n", ", line 2: remote must be a text, not int"),
        ("artifactsync.toml", 'storage_options = "x"\n', ", line 1: storage_options must be a table, not str"),
        ("artifactsync.toml", '# hi\n[storage_option]\nkey = "x"\n', ", line 2: unknown key 'storage_option'"),
        ("artifactsync.toml", '# hi\nlocal.root = "x"\n', ", line 2: unknown key 'local'"),
        (
            "pyproject.toml",
            '[project]\nname="x"\n[tool.artifactsync]\nremotes = "x"\n',
            ", line 4: unknown key 'remotes'",
        ),
        ("pyproject.toml", '[tool.artifactsync]\nremote = "x\n', ", line 2: "),
        ("pyproject.toml", '[tool]\nartifactsync = "s3://x"\n', ", line 2: tool.artifactsync must be a table"),
        (
            "pyproject.toml",
            "[tool.other]\nremote = 1\n[tool.artifactsync]\nremote = 2\n",
            ", line 4: remote must be a text, not int",
        ),
    ],
)
def test_a_wrong_file_is_named_with_its_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        find_configuration(tmp_path)
    assert caught.value.message.startswith(f"{tmp_path / name}{message}")
    assert caught.value.hint
    assert caught.value.exit_code == 2


def test_a_file_that_is_not_utf8_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "artifactsync.toml").write_bytes(b'# ok\nremote = "\xff"\n')
    with pytest.raises(ConfigurationError, match="line 2: not UTF-8"):
        find_configuration(tmp_path)


def test_option_goes_before_environment_before_file() -> None:
    of_file = Configuration(remote="s3://file")
    assert choose_remote("s3://option", {"ARTIFACTSYNC_REMOTE": "s3://env"}, of_file) == "s3://option"
    assert choose_remote(None, {"ARTIFACTSYNC_REMOTE": "s3://env"}, of_file) == "s3://env"
    assert choose_remote(None, {"ARTIFACTSYNC_REMOTE": ""}, of_file) == "s3://file"


def test_no_remote_says_three_ways_to_give_one() -> None:
    with pytest.raises(ConfigurationError) as caught:
        choose_remote(None, {}, Configuration())
    for way in ("--remote", "ARTIFACTSYNC_REMOTE", "artifactsync.toml"):
        assert way in caught.value.hint


def test_local_root_comes_from_environment_then_file_then_default() -> None:
    assert choose_local_root({"ARTIFACTSYNC_LOCAL_ROOT": "/x"}, Configuration(local_root="/y")) == "/x"
    assert choose_local_root({}, Configuration(local_root="/y")) == "/y"
    assert choose_local_root({}, Configuration()) == "runs"


def test_storage_options_never_go_to_another_kind_of_store() -> None:
    options = {"secret": "s"}
    assert storage_options_for("s3://other", Configuration(remote="s3://mine", storage_options=options)) == options
    assert storage_options_for("gs://other", Configuration(remote="s3://mine", storage_options=options)) == {}
    assert storage_options_for("/folder", Configuration(remote="s3://mine", storage_options=options)) == {}
    assert storage_options_for("s3://other", Configuration(storage_options=options)) == options
