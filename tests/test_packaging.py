"""What users install: the wheel and the sdist hold what they should, and the release workflow has no right too many."""

from __future__ import annotations

import email
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

import artifactsync

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NAME = f"artifactsync-{artifactsync.__version__}"
WORKFLOW = ROOT / ".github" / "workflows" / "release.yml"


def build(kind: str, source: Path, target: Path) -> Path:
    """Build without an isolated environment: the backend is among what the tests install."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(target)]
    subprocess.run(command, cwd=source, check=True, capture_output=True, text=True, timeout=100)
    return next(target.glob("*.whl" if kind == "wheel" else "*.tar.gz"))


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("sdist", ROOT, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def unpacked(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as opened:
        how: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # since 3.11.4
        opened.extractall(folder, **how)
    return folder / NAME


@pytest.fixture(scope="module")
def wheel(unpacked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the sdist alone, as installers do that want no wheel of ours."""
    return build("wheel", unpacked, tmp_path_factory.mktemp("wheel"))


def of_the_package(folder: Path) -> set[str]:
    found = (path for path in (folder / "artifactsync").rglob("*") if path.is_file() and path.suffix != ".pyc")
    return {path.relative_to(folder).as_posix() for path in found}


def test_the_wheel_has_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as opened:
        names = set(opened.namelist())
    metadata = {name for name in names if name.startswith(f"{NAME}.dist-info/")}
    assert names - metadata == of_the_package(ROOT)
    assert "artifactsync/py.typed" in names
    assert {name.partition("/")[2] for name in metadata} == {
        "METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE",
    }  # fmt: skip


def test_its_metadata(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as opened:
        metadata = email.message_from_bytes(opened.read(f"{NAME}.dist-info/METADATA"))
        points = opened.read(f"{NAME}.dist-info/entry_points.txt").decode()
        licence = opened.read(f"{NAME}.dist-info/licenses/LICENSE")
        tag = email.message_from_bytes(opened.read(f"{NAME}.dist-info/WHEEL"))["Tag"]
    assert metadata["Metadata-Version"] == "2.4", "what this year's registries and their tools take"
    assert (metadata["Version"], metadata["Requires-Python"]) == (artifactsync.__version__, ">=3.10")
    assert metadata["License-Expression"] == "Apache-2.0"
    assert licence == (ROOT / "LICENSE").read_bytes()
    assert metadata["Description-Content-Type"] == "text/markdown"
    always = [each for each in metadata.get_all("Requires-Dist", []) if "extra ==" not in each]
    assert len(always) == len(PROJECT["dependencies"])
    assert not re.search("torch|boto3|numpy|google", " ".join(always))
    assert "artifactsync = artifactsync.cli:main" in points
    assert "artifactsync = artifactsync.integrations.filesystem:RunFileSystem" in points
    assert tag == "py3-none-any"


def test_the_sdist_has_all_that_tests_need(unpacked: Path) -> None:
    assert of_the_package(unpacked) == of_the_package(ROOT)
    for name in ("Makefile", ".ci/run", "tests/conftest.py", "localstack/cloud.py", "docs/guarantees.md", "README.md"):
        assert (unpacked / name).read_bytes() == (ROOT / name).read_bytes()
    assert not [path for path in unpacked.rglob("*") if path.suffix in {".pyc", ".whl"} or path.name == ".venv"]
    assert sum(path.stat().st_size for path in unpacked.rglob("*")) < 10_000_000


def test_the_release_is_built_without_rights_and_published_without_a_token() -> None:
    text = WORKFLOW.read_text(encoding="utf-8")
    workflow = yaml.safe_load(text)
    assert workflow["permissions"] == {}
    assert {name: job["permissions"] for name, job in workflow["jobs"].items()} == {
        "build": {"contents": "read"},
        "publish": {"id-token": "write"},
    }
    assert workflow["jobs"]["publish"]["environment"] == "release"
    assert not any("run" in step for step in workflow["jobs"]["publish"]["steps"]), (
        "no code of ours beside the identity"
    )
    assert "secrets." not in text
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    actions = [step["uses"] for step in steps if "uses" in step]
    assert len(actions) == 6
    assert all(re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", action) for action in actions), "a tag can be moved"
    commands = [step["run"] for step in steps if "run" in step]
    assert not any("${{" in command for command in commands), "a tag's name is no code"
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    asked = {word for command in commands for word in re.findall(r"^make ([\w-]+)", command)}
    assert asked == {"package-check", "sbom"}
    assert asked <= targets
