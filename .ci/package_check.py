"""`make package-check`: wheel and sdist are built, looked into, and installed into fresh environments of each extra.

    python .ci/package_check.py                          build, look, and try each extra with this Python
    python .ci/package_check.py --python 3.10 3.13       the core and the light extras with those too
    python .ci/package_check.py --python 3.12 --extra s3 --pip    one extra there, installed by pip itself

Owns: the build, the environments, the table of sizes. Does not own: what is tried in them (`smoke.py`), the servers
that s3, gcs and azure are tried against (`localstack/`), nor what the files must hold (`tests/test_packaging.py`).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "localstack"))
import servers

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_SERVERS = {"s3": servers.SeaweedFS, "gcs": servers.FakeGCS, "azure": servers.Azurite}
_WITH_TORCH = {"tensorboard", "wandb", "comet", "mlflow", "profiler"}  # parts of a Trainer: never used without
_LIGHT = ("", "s3", "gcs", "azure", "ui")  # what is tried with the Pythons beside this one
_OURS = {
    "bench",
    "browser",
    "cloud",
    "demo",
    "docs",
    "peers",
    "release",
    "test",
}  # extras for who works on artifactsync
_OFFLINE = {
    "WANDB_MODE": "offline",
    "COMET_AUTO_LOG_ENV_DETAILS": "0",
    "HF_HUB_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
    "ARTIFACTSYNC_NOTICE": "off",
    "AWS_EC2_METADATA_DISABLED": "true",
    "NO_PROXY": "127.0.0.1,localhost",
}


@dataclass(frozen=True, kw_only=True)
class Tried:
    """One environment that worked."""

    python: str
    """The interpreter as it was asked for."""
    extra: str
    """Empty for the core."""
    packages: int
    """How many were installed, ours among them."""
    megabytes: float
    """All of them on disk, without compiled files."""
    seconds: float
    """How long the installer took."""


def run(*command: str | Path, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> str:
    """Run a program; return what it says.

    Raises:
        SystemExit: it failed; its output is the message.
    """
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, **(env or {})}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"failed: {' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def build(target: Path) -> tuple[Path, Path]:
    """Build both from the tree; return wheel and sdist. The wheel is built from the sdist, which so proves itself."""
    shutil.rmtree(target, ignore_errors=True)
    run(sys.executable, "-m", "build", "--outdir", target, ROOT)
    wheel, sdist = next(target.glob("*.whl")), next(target.glob("*.tar.gz"))
    run(sys.executable, "-m", "twine", "check", "--strict", wheel, sdist)
    with zipfile.ZipFile(wheel) as opened, tarfile.open(sdist) as packed:
        print(
            f"{wheel.name}: {len(opened.namelist())} files, {wheel.stat().st_size / 1000:.0f} kB; "
            f"{sdist.name}: {len(packed.getnames())} files, {sdist.stat().st_size / 1000:.0f} kB; metadata is valid"
        )
    return wheel, sdist


def extras() -> list[str]:
    """Those that are for users."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return sorted(set(project["optional-dependencies"]) - _OURS)


@contextlib.contextmanager
def remote_for(extra: str) -> Iterator[dict[str, str]]:
    """The environment that leads to a remote of that kind; empty where a folder will do."""
    if extra not in _SERVERS:
        yield {}
        return
    with _SERVERS[extra]() as server:
        yield {**server.environment, "ARTIFACTSYNC_REMOTE": f"{server.make_bucket('smoke')}/runs"}


def try_extra(wheel: Path, python: str, extra: str, *, with_pip: bool) -> Tried:
    """Install one extra into a fresh environment, and do there what its users do first."""
    wanted = ",".join(filter(None, [extra, "torch" if extra in _WITH_TORCH else ""]))
    with tempfile.TemporaryDirectory(prefix="artifactsync-package-") as folder:
        made = Path(folder) / "venv"
        run(sys.executable, "-m", "uv", "venv", "--quiet", "--python", python, *(["--seed"] if with_pip else []), made)
        inner = made / "bin" / "python"
        site = Path(run(inner, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
        packages, megabytes = _weight(site)  # pip's own, where pip is wanted
        began = time.monotonic()
        what = f"{wheel}[{wanted}]" if wanted else str(wheel)
        if with_pip:
            run(inner, "-m", "pip", "install", "--quiet", what)
        else:
            run(sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python", inner, what)
        seconds = time.monotonic() - began
        run(sys.executable, "-m", "uv", "pip", "check", "--quiet", "--python", inner)
        packages_then, megabytes_then = _weight(site)
        with remote_for(extra) as environment:
            run(inner, "-I", ROOT / ".ci" / "smoke.py", *wanted.split(","), env={**_OFFLINE, **environment})
        return Tried(
            python=python,
            extra=extra,
            packages=packages_then - packages,
            megabytes=megabytes_then - megabytes,
            seconds=seconds,
        )


def interpreter(asked: str) -> str:
    """The path of a Python that was asked for by version; of pyenv's too, whose own names for them need not work.

    Raises:
        SystemExit: there is none; uv would fetch one, which is no longer what the user has.
    """
    if Path(asked).exists():
        return asked
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    found = [shutil.which(f"python{asked}"), *sorted(map(str, root.glob(f"versions/{asked}.*/bin/python")))]
    for each in filter(None, reversed(found)):
        if subprocess.run([each, "-V"], capture_output=True, check=False).returncode == 0:
            return each
    return sys.exit(
        f"there is no Python {asked} here: install it, or give its path, as in PYTHONS=/opt/python3.10/bin/python"
    )


def _weight(site: Path) -> tuple[int, float]:
    """How many packages are installed there, and their megabytes."""
    files = (path for path in site.rglob("*") if path.is_file() and path.suffix != ".pyc")
    return len(list(site.glob("*.dist-info"))), sum(path.stat().st_size for path in files) / 1e6


def main(arguments: Sequence[str] | None = None) -> None:
    """Do it all; ends with an error at the first thing that is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", nargs="*", default=[], help="other interpreters: 3.10, or a path")
    parser.add_argument("--extra", nargs="*", help="only these; '' is the core")
    parser.add_argument("--pip", action="store_true", help="install with pip instead of uv")
    parser.add_argument("--wheel", type=Path, help="try this one, and build nothing")
    parser.add_argument("--dist", type=Path, default=ROOT / "dist", help="where wheel and sdist go")
    asked = parser.parse_args(arguments)
    pythons = [interpreter(python) for python in asked.python]
    wheel = asked.wheel.resolve() if asked.wheel else build(asked.dist.resolve())[0]
    if asked.extra is None:
        pairs = [(sys.executable, extra) for extra in ["", *extras()]]
        pairs += [(python, extra) for python in pythons for extra in _LIGHT]
    else:
        pairs = [(python, extra) for python in pythons or [sys.executable] for extra in asked.extra]
    print("| Python | extra | packages | MB | install, s |\n| --- | --- | --- | --- | --- |")
    for python, extra in pairs:
        tried = try_extra(wheel, python, extra, with_pip=asked.pip)
        version = run(python, "-V").split()[1] if Path(python).exists() else python
        print(
            f"| {version} | {extra or 'core'} | {tried.packages} | {tried.megabytes:.0f} | {tried.seconds:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
