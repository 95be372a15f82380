"""``--install-completion``: tab completion for bash, zsh and fish.

Owns: which file each shell reads, and the marked block in its start-up file. Does not own: the completion itself
(click).

Invariant: running it again changes nothing, and nothing of the user's own lines is ever touched.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.shell_completion import get_completion_class

from artifactsync.cli.session import Session
from artifactsync.cli.terminal import printable
from artifactsync.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    _F = TypeVar("_F", bound=Callable[..., Any])

PROGRAM = "artifactsync"
_COMPLETE_VARIABLE = "_ARTIFACTSYNC_COMPLETE"
_SHELLS = ("bash", "zsh", "fish")
_DETECT = "detect"
_BEGIN = f"# >>> {PROGRAM} completion >>>"
_END = f"# <<< {PROGRAM} completion <<<"


@dataclass(frozen=True, kw_only=True)
class _Places:
    """Where one shell keeps completions."""

    script: Path
    """The file with the completion function."""
    startup: Path | None
    """The start-up file that must mention it; None where the shell finds the script by itself."""
    block: str = ""
    """What the start-up file needs, without the marks."""


def install(application: click.Command, shell: str, environ: Mapping[str, str], home: Path) -> list[str]:
    """Install the completion of one shell; return lines that say what was done.

    Args:
        application: The root command.
        shell: ``bash``, ``zsh``, ``fish``, or ``detect`` to take it from ``SHELL``.
        environ: The environment, for ``SHELL``, ``ZDOTDIR`` and the XDG folders.
        home: The user's home folder.

    Raises:
        ConfigurationError: a shell that cannot be told or is not known, or a file that cannot be written.
    """
    if shell == _DETECT:
        shell = Path(environ.get("SHELL", "")).name
        if shell not in _SHELLS:
            raise ConfigurationError(
                f"the shell cannot be told from SHELL={environ.get('SHELL', '')!r}",
                hint=f"name it: {PROGRAM} --install-completion {'|'.join(_SHELLS)}",
            )
    places = _places(shell, environ, home)
    try:
        lines = [_write_if_changed(places.script, _script(application, shell))]
        if places.startup:
            lines.append(_add_block(places.startup, places.block))
    except OSError as error:
        raise ConfigurationError(
            f"{error.filename} cannot be written: {error.strerror}", hint="check its owner and permissions"
        ) from error
    changed = any(not line.startswith("unchanged") for line in lines)
    return [*lines, f"open a new {shell} to use it" if changed else f"{shell} completion was installed already"]


def _places(shell: str, environ: Mapping[str, str], home: Path) -> _Places:
    data = Path(environ.get("XDG_DATA_HOME") or home / ".local/share")
    if shell == "bash":
        script = data / f"bash-completion/completions/{PROGRAM}"
        return _Places(
            script=script, startup=home / ".bashrc", block=f"[ -f {_quoted(script)} ] && . {_quoted(script)}"
        )
    if shell == "zsh":
        script = data / f"zsh/site-functions/_{PROGRAM}"
        block = f"fpath=({_quoted(script.parent)} $fpath)\nautoload -Uz compinit && compinit"
        return _Places(script=script, startup=Path(environ.get("ZDOTDIR") or home) / ".zshrc", block=block)
    configuration = Path(environ.get("XDG_CONFIG_HOME") or home / ".config")
    return _Places(script=configuration / f"fish/completions/{PROGRAM}.fish", startup=None)


def _script(application: click.Command, shell: str) -> str:
    completion = get_completion_class(shell)
    assert completion is not None
    # The template rather than source(): that runs a bash to ask its version, which only a bash user's shell can say.
    maker = completion(application, {}, PROGRAM, _COMPLETE_VARIABLE)
    return maker.source_template % maker.source_vars()


def _write_if_changed(path: Path, text: str) -> str:
    if path.is_file() and path.read_text(encoding="utf-8", errors="replace") == text:
        return f"unchanged: {path}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return f"wrote: {path}"


def _add_block(path: Path, block: str) -> str:
    """Put the marked block at the end of a start-up file, or replace an older one where it stands."""
    wanted = f"{_BEGIN}\n{block}\n{_END}\n"
    text = path.read_bytes().decode("utf-8", "surrogateescape") if path.exists() else ""
    if wanted in text:
        return f"unchanged: {path}"
    start, end = text.find(f"{_BEGIN}\n"), text.find(f"{_END}\n")
    if 0 <= start < end:
        text = text[:start] + wanted + text[end + len(_END) + 1 :]
    else:
        text += ("\n" if text and not text.endswith("\n") else "") + wanted
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode("utf-8", "surrogateescape"))  # through a symlink: dotfiles often are
    return f"added the completion to: {path}"


def _quoted(path: Path) -> str:
    return "'" + str(path).replace("'", "'\\''") + "'"


def _on_install(context: click.Context, _parameter: click.Parameter, value: str | None) -> None:
    if value is None or context.resilient_parsing:
        return
    session = context.ensure_object(Session)
    lines = install(context.command, value, os.environ, Path.home())
    if session.is_json:
        session.screen.json({"installed": lines})
    else:
        for line in lines:
            session.screen.text(printable(line))
    context.exit()


def install_option(command: _F) -> _F:
    """Add ``--install-completion`` to the root command."""
    return click.option(
        "--install-completion",
        type=click.Choice([*_SHELLS, _DETECT]),
        is_flag=False,
        flag_value=_DETECT,
        metavar="[bash|zsh|fish]",
        expose_value=False,
        callback=_on_install,
        help="Install tab completion for this or the named shell, then exit.",
    )(command)
