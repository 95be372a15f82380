"""Where the remote comes from when the command does not say: environment, ``artifactsync.toml``, ``pyproject.toml``.

Owns: the file's keys and the order of the three sources. Does not own: what a remote or a storage option means
(``stores``).

Invariant: a key that is not known is an error with its file and line, never ignored: a typing error in
``storage_options`` must not turn into a request to another endpoint.
"""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from artifactsync.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

FILE_NAME = "artifactsync.toml"
PYPROJECT_NAME = "pyproject.toml"
PYPROJECT_TABLE = "tool.artifactsync"
DEFAULT_LOCAL_ROOT = "runs"
RUN_KEYS = ("watch", "checkpoint", "exclude")

_EXAMPLE = 'for example: remote = "s3://bucket/prefix"'

NO_REMOTE_HINT = (
    "give --remote s3://bucket/prefix, or set ARTIFACTSYNC_REMOTE, "
    f'or write remote = "s3://bucket/prefix" into {FILE_NAME}'
)


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """What one configuration file says."""

    remote: str | None = None
    """Root of all runs. A relative path in the file counts from the file's folder."""
    storage_options: Mapping[str, Any] = field(default_factory=dict)
    """Handed to the store, as with fsspec; see :func:`storage_options_for`. Never shown."""
    local_root: str | None = None
    """Folder of local runs. A relative path in the file counts from the file's folder."""
    run: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """``[run]``: what ``artifactsync run`` takes beside its options: ``watch``, ``checkpoint`` and ``exclude``."""
    source: Path | None = None
    """The file; None where there is none."""


def find_configuration(folder: Path) -> Configuration:
    """Read the nearest configuration in ``folder`` or a folder above it; an empty one if there is none.

    ``artifactsync.toml`` goes before ``pyproject.toml`` in the same folder; a ``pyproject.toml`` without
    ``[tool.artifactsync]`` does not count.

    Raises:
        ConfigurationError: TOML that cannot be read, an unknown key, or a value of the wrong type.
    """
    folder = folder.absolute()
    for parent in (folder, *folder.parents):
        for name in (FILE_NAME, PYPROJECT_NAME):
            path = parent / name
            text = _read(path)
            if text is None or (name == PYPROJECT_NAME and "artifactsync" not in text):
                continue
            table = _parse(path, text)
            if name == PYPROJECT_NAME:
                tool = table.get("tool")
                section = tool.get("artifactsync") if isinstance(tool, dict) else None
                if section is None:
                    continue
                if not isinstance(section, dict):
                    line = _line_of(text, "artifactsync")
                    raise ConfigurationError(f"{path}, line {line}: {PYPROJECT_TABLE} must be a table", hint=_EXAMPLE)
                table = section
            return _checked(path, text, table)
    return Configuration()


def choose_remote(option: str | None, environ: Mapping[str, str], configuration: Configuration) -> str:
    """The remote of ``--remote``, else of the environment, else of the file.

    Raises:
        ConfigurationError: none of them names one.
    """
    remote = option or environ.get("ARTIFACTSYNC_REMOTE") or configuration.remote
    if not remote:
        raise ConfigurationError("no remote was given", hint=NO_REMOTE_HINT)
    return remote


def choose_local_root(environ: Mapping[str, str], configuration: Configuration) -> str:
    """The folder of local runs: environment, else file, else ``runs``."""
    return environ.get("ARTIFACTSYNC_LOCAL_ROOT") or configuration.local_root or DEFAULT_LOCAL_ROOT


def storage_options_for(remote: str, configuration: Configuration) -> dict[str, Any]:
    """The file's storage options, if they are meant for ``remote``.

    They are when the file names no remote of its own, or one of the same scheme: credentials written for one kind of
    store are never sent to another.
    """
    if configuration.remote and _scheme(configuration.remote) != _scheme(remote):
        return {}
    return dict(configuration.storage_options)


def _scheme(remote: str) -> str:
    return remote.partition("://")[0].lower() if "://" in remote else "file"


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None
    except PermissionError as error:
        if path.name == PYPROJECT_NAME:  # somebody else's project in a folder above: none of our business
            return None
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}", hint="make the file readable") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigurationError(f"{path}, line {line}: not UTF-8", hint="save the file as UTF-8") from error
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error


def _parse(path: Path, text: str) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib  # noqa: PLC0415 - only where there is a file to read
    else:
        import tomli as tomllib  # noqa: PLC0415 - as above
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        what, line = _split_position(str(error), text)
        raise ConfigurationError(
            f"{path}, line {line}: {what}", hint="correct the TOML; texts need quotes, tables [brackets]"
        ) from error


def _split_position(message: str, text: str) -> tuple[str, int]:
    """``Invalid value (at line 3, column 8)`` → the words, the line."""
    found = re.search(r"\s*\(at line (\d+), column \d+\)", message)
    if found:
        return message.replace(found.group(0), ""), int(found.group(1))
    return re.sub(r"\s*\(at end of document\)", " at the end", message), max(text.count("\n"), 1)


def _checked(path: Path, text: str, table: dict[str, Any]) -> Configuration:
    expected: dict[str, tuple[type, str]] = {
        "remote": (str, "a text"),
        "storage_options": (dict, "a table"),
        "local_root": (str, "a text"),
        "run": (dict, "a table"),
    }
    for key, value in table.items():
        line = _line_of(text, key)
        if key not in expected:
            raise ConfigurationError(
                f"{path}, line {line}: unknown key {key!r}", hint=f"known keys: {', '.join(expected)}"
            )
        kind, word = expected[key]
        if not isinstance(value, kind):
            raise ConfigurationError(
                f"{path}, line {line}: {key} must be {word}, not {type(value).__name__}",
                hint=_EXAMPLE,
            )
    return Configuration(
        run=_checked_run(path, text, table.get("run", {})),
        remote=_anchored(table.get("remote"), path.parent),
        storage_options=table.get("storage_options", {}),
        local_root=_anchored(table.get("local_root"), path.parent),
        source=path,
    )


def _checked_run(path: Path, text: str, table: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    for key, value in table.items():
        line = _line_of(text, key)
        if key not in RUN_KEYS:
            raise ConfigurationError(
                f"{path}, line {line}: unknown key {key!r} in run", hint=f"known keys: {', '.join(RUN_KEYS)}"
            )
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise ConfigurationError(
                f"{path}, line {line}: run.{key} must be a list of texts", hint='for example: checkpoint = ["state/"]'
            )
    return {key: tuple(value) for key, value in table.items()}


def _line_of(text: str, key: str) -> int:
    """The line that sets ``key``, or opens its table; our table's first line if it hides (inline, escaped)."""
    lines = text.splitlines()
    start = next(
        (number for number, line in enumerate(lines) if re.match(r"\s*\[\s*tool\s*\.\s*artifactsync", line)), 0
    )
    word = rf"[\"']?{re.escape(key)}[\"']?"
    for pattern in (rf"^\s*{word}\s*[=.]", rf"^\s*\[.*{word}\s*\]", re.escape(key)):
        for number in range(start, len(lines)):
            if re.search(pattern, lines[number]):
                return number + 1
    return start + 1


def _anchored(value: str | None, folder: Path) -> str | None:
    """``value`` with a relative path made absolute from the file's folder; URLs stay as they are."""
    if not value or "://" in value:
        return value or None
    return os.path.normpath(folder / Path(value).expanduser())
