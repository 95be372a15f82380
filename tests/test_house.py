"""Rules of the house that no other tool holds: what imports load, what is public, and that documents are true."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import artifactsync

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "artifactsync"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

HEAVY = {"torch", "torchvision", "numpy", "boto3", "botocore", "google", "obstore", "gcsfs", "s3fs", "tensorboard"}
# What `artifactsync.__all__` holds. A new name is a promise: add it here, in CHANGELOG.md and in the README.
PUBLIC = {
    "ArtifactSyncError",
    "Callback",
    "Checkpoint",
    "CheckpointSaver",
    "CometMLLogger",
    "ConsoleLogger",
    "Event",
    "FileLogger",
    "MLFlowLogger",
    "ObjectStoreLogger",
    "PendingCheckpoint",
    "Profiler",
    "RemoteUploaderDownloader",
    "Resumed",
    "RetentionPolicy",
    "Run",
    "State",
    "StopSignal",
    "TensorboardLogger",
    "Time",
    "Timestamp",
    "Trainer",
    "Upload",
    "UploadStatus",
    "WandBLogger",
    "__version__",
    "format_name",
    "generate_run_name",
    "list_runs",
}
NEED_TORCH = (
    {"CometMLLogger", "MLFlowLogger", "TensorboardLogger", "WandBLogger"}
    | {"Callback", "CheckpointSaver", "ConsoleLogger", "Event", "FileLogger", "Resumed"}
    | {
        "Profiler",
        "State",
        "Time",
        "Timestamp",
        "Trainer",
    }
)


def python(program: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *options, "-c", program], check=True, capture_output=True, text=True, timeout=100
    )


@pytest.mark.parametrize(
    "module",
    ["artifactsync", "artifactsync.cli", "artifactsync.run", "artifactsync.testing", "artifactsync.stores.open"],
)
def test_an_import_loads_nothing_heavy(module):
    lines = python(f"import {module}", "-X", "importtime").stderr.splitlines()
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}
    assert "artifactsync" in loaded  # the output was understood
    assert not loaded & HEAVY


def test_the_command_line_loads_nothing_heavy_for_its_help():
    program = (
        "import sys, contextlib\n"
        "from artifactsync.cli import main\n"
        "sys.argv = ['artifactsync', '--help']\n"
        "with contextlib.suppress(SystemExit): main()\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    loaded = {name.partition(".")[0] for name in python(program).stderr.split()}
    assert "artifactsync" in loaded
    assert not loaded & HEAVY


def test_the_public_names():
    assert set(artifactsync.__all__) == PUBLIC
    assert artifactsync.__all__ == sorted(artifactsync.__all__)
    assert set(dir(artifactsync)) >= PUBLIC


@pytest.mark.filterwarnings("ignore:.*ObjectStoreLogger.*:DeprecationWarning")
@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_every_public_name_is_there_and_documented(name):
    value = getattr(artifactsync, name)
    assert name == "__version__" or value.__doc__


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'nope'"):
        _ = artifactsync.nope


def test_without_torch_the_first_group_works_and_the_rest_says_what_to_install():
    program = (
        "import sys, warnings\n"
        "warnings.simplefilter('ignore')\n"
        "for name in ('torch', 'numpy', 'torchvision'): sys.modules[name] = None\n"  # import raises ModuleNotFoundError
        "import artifactsync\n"
        "from artifactsync.errors import MissingPackageError\n"
        "for name in artifactsync.__all__:\n"
        "    try:\n"
        "        getattr(artifactsync, name)\n"
        "    except MissingPackageError as error:\n"
        "        assert 'artifactsync[torch]' in error.hint, error.hint\n"
        "        print(name)\n"
    )
    missing = set(python(program).stdout.split())
    assert missing <= NEED_TORCH
    assert {"Trainer", "CheckpointSaver"} <= missing


def test_a_local_run_needs_nothing_but_what_is_always_installed(tmp_path):
    # typing_extensions is there below Python 3.12 alone, so nothing may import it at run time.
    absent = sorted(HEAVY | {"typing_extensions", "aiohttp", "requests", "psutil"})
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({absent}))\n"
        "from artifactsync import Run\n"
        f"with Run('r', remote={str(tmp_path / 'remote')!r}, local_root={str(tmp_path / 'runs')!r}) as run:\n"
        "    run.local_dir.joinpath('a.bin').write_bytes(b'x' * 1000)\n"
        "    run.save_files([run.local_dir / 'a.bin'], step=1).result(30)\n"
        f"from artifactsync.cli import main\n"
        f"main(['--remote', {str(tmp_path / 'remote')!r}, 'pull', 'r', {str(tmp_path / 'here')!r}])\n"
    )
    assert "verified" in python(program).stdout
    assert (tmp_path / "here" / "a.bin").read_bytes() == b"x" * 1000


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if "__pycache__" not in path.parts)


def test_no_grab_bags():
    grab_bags = {"utils", "util", "helpers", "helper", "common", "manager", "misc", "tools", "base"}
    words = {(path, word) for path in modules() for word in re.split(r"[_/.]", str(path.relative_to(PACKAGE)))}
    assert not [str(path) for path, word in words if word in grab_bags]
    assert len(modules()) > 30  # they were found at all


def test_every_module_says_what_it_is():
    first_lines = {path: path.read_text(encoding="utf-8").split("\n", 1)[0] for path in modules()}
    assert not [str(path) for path, line in first_lines.items() if not line.startswith('"""')]


def requirement_names(requirements: list[str]) -> set[str]:
    return {re.split(r"[<>=;\[\s]", requirement, maxsplit=1)[0] for requirement in requirements} - {"artifactsync"}


def documented() -> dict[str, set[str]]:
    """The packages of docs/dependencies.md by section: heading (its first word) → names in the tables."""
    sections: dict[str, set[str]] = {}
    for section in (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8").split("\n## ")[1:]:
        heading = re.match(r"`?([\w-]+)", section)
        assert heading
        rows = re.findall(r"^\| ([\w.-]+) \| [\d.,]+ \| (.+) \|$", section, re.MULTILINE)
        assert all(len(reason) > 10 for _, reason in rows)
        sections[heading[1]] = {name for name, _ in rows}
    return sections


def test_every_dependency_has_its_reason_and_no_other_is_named():
    wanted = {"Always": requirement_names(PROJECT["dependencies"])}
    wanted |= {extra: requirement_names(names) for extra, names in PROJECT["optional-dependencies"].items()}
    assert documented() == wanted


def documents() -> list[Path]:
    top = list(ROOT.glob("*.md"))
    return sorted([*top, *(ROOT / "docs").rglob("*.md"), *(ROOT / "localstack").glob("*.md")])


@pytest.mark.parametrize("document", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_between_documents_lead_somewhere(document):
    text = re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (document.parent / path) if path else document
        assert file.exists(), f"{document.name} links to {target}"
        if anchor and file.suffix == ".md":
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, f"{document.name} links to {target}"


@pytest.mark.parametrize("document", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_documents_name_are_there(document):
    """Every `path/with/a/slash.py` in a document is a file, from the root or from the package."""
    text = document.read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:[\w.-]+/)+[\w.-]+\.(?:py|md|toml|yml))(?:::[\w:]+)?`", text))
    named -= set(re.findall(r"`([^`]+)` \(new\)", text))  # files that a guide tells its reader to make
    missing = [
        name for name in named if "NNN" not in name and not (ROOT / name).exists() and not (PACKAGE / name).exists()
    ]
    assert not missing


@pytest.mark.parametrize("document", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_tests_that_documents_name_are_there(document):
    text = document.read_text(encoding="utf-8")
    for path, name in re.findall(r"`((?:tests|artifactsync)/[\w/]+\.py)::(\w+)`", text):
        assert re.search(rf"\b(def|class) {name}\b", (ROOT / path).read_text(encoding="utf-8")), f"{path}::{name}"


def test_the_change_log_knows_the_version():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## \[?{re.escape(artifactsync.__version__)}\b", text, re.MULTILINE)
