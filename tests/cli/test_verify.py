from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import Command

FIRST = "digits/checkpoints/ep1-ba10-rank0.pt"
SECOND = "digits/checkpoints/ep2-ba20-rank0.pt"


@pytest.mark.usefixtures("digits")
def test_a_whole_run(artifactsync: Command) -> None:
    assert artifactsync("verify", "digits").out == (
        "verified: 3 files, 2.9 MiB (sizes compared; --deep reads every byte)\n"
    )
    assert artifactsync("verify", "--deep", "digits").out == "verified: 3 files, 2.9 MiB (every byte read)\n"
    assert artifactsync("verify", "digits", "--quiet").out == ""
    assert artifactsync("verify", "digits", "--json").json == {
        "run_name": "digits",
        "ok": True,
        "checked_files": 3,
        "checked_bytes": 3_000_060,
        "damaged": [],
        "missing": [],
        "wrong_packs": [],
    }


@pytest.mark.usefixtures("digits")
def test_a_missing_and_a_short_file_are_named(artifactsync: Command, tmp_path: Path) -> None:
    (tmp_path / "remote" / FIRST).unlink()
    (tmp_path / "remote" / SECOND).write_bytes(b"short")
    done = artifactsync("verify", "digits", "--quiet", code=4)
    assert done.out == (
        f"missing  {FIRST}\n"
        f"damaged  {SECOND}\n"
        "1 missing, 1 damaged: 3 files, 2.9 MiB (sizes compared; --deep reads every byte)\n"
    )
    document = artifactsync("verify", "digits", "--json", code=4).json
    assert (document["ok"], document["missing"], document["damaged"]) == (False, [FIRST], [SECOND])


@pytest.mark.usefixtures("digits")
def test_only_deep_sees_changed_bytes(artifactsync: Command, tmp_path: Path) -> None:
    file = tmp_path / "remote" / FIRST
    file.write_bytes(b"\x00" * file.stat().st_size)
    artifactsync("verify", "digits")
    assert artifactsync("verify", "digits", "--deep", "--json", code=4).json["damaged"] == [FIRST]
