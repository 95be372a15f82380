"""One invocation of the command: its global options, and what every command asks of them.

Owns: ``--remote``, ``--json`` and ``--quiet``, accepted before and after the command. Does not own: where a remote
comes from when none is given (``configuration``).
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from artifactsync.cli.messages import show_log_messages
from artifactsync.cli.screen import Screen
from artifactsync.naming.configuration import (
    Configuration,
    choose_local_root,
    choose_remote,
    find_configuration,
    storage_options_for,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from artifactsync.run import Run

    _F = TypeVar("_F", bound=Callable[..., Any])


@dataclass
class Session:
    """What the global options say; click's ``ctx.obj``."""

    remote_option: str | None = None
    """``--remote``."""
    is_json: bool = False
    """``--json``."""
    now: Callable[[], datetime] = field(default=lambda: datetime.now(timezone.utc))
    """The clock for ages; another one in tests."""
    screen: Screen = field(default_factory=Screen)
    """Where results and messages go."""

    @cached_property
    def configuration(self) -> Configuration:
        """The nearest configuration file."""
        return find_configuration(Path.cwd())

    @property
    def remote(self) -> str:
        """The remote to work on."""
        return choose_remote(self.remote_option, os.environ, self.configuration)

    @property
    def storage_options(self) -> dict[str, Any]:
        """The storage options that go with the remote."""
        return storage_options_for(self.remote, self.configuration)

    @property
    def local_root(self) -> str:
        """The folder of local runs."""
        return choose_local_root(os.environ, self.configuration)

    @property
    def has_progress(self) -> bool:
        """Whether a bar is wanted."""
        return not self.screen.is_quiet

    def open_run(self, run_name: str, **uploading: Any) -> Run:
        """Open a run without claiming it: for everything but saving checkpoints.

        Args:
            run_name: What the user typed.
            **uploading: ``patience`` and ``max_pending_files`` of ``Run``.

        Raises:
            RunNameError: not a name that a run can have.
            ConfigurationError: no remote, or a wrong one.
        """
        remote = self.remote
        show_log_messages(self.screen)
        from artifactsync.naming import validate_run_name
        from artifactsync.run import Run

        return Run(
            validate_run_name(run_name),
            remote=remote,
            local_root=self.local_root,
            storage_options=self.storage_options,
            read_only=True,
            **uploading,
        )


def _remember(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    """Store a global option in the session; the last place where it is given counts."""
    session = context.ensure_object(Session)
    if parameter.name == "remote" and value is not None:
        session.remote_option = value
    elif parameter.name == "json" and value:
        session.is_json = True
    elif parameter.name == "quiet" and value:
        session.screen.is_quiet = True


def global_options(command: _F) -> _F:
    """Add the global options to a command or group."""
    for option in (
        click.option(
            "--quiet", "-q", is_flag=True, expose_value=False, callback=_remember, help="No progress, no messages."
        ),
        click.option(
            "--json", is_flag=True, expose_value=False, callback=_remember, help="One JSON document on stdout."
        ),
        click.option(
            "--remote",
            metavar="URI",
            expose_value=False,
            callback=_remember,
            help="Where the runs are: s3://bucket/prefix, gs://..., az://..., a folder.",
        ),
    ):
        command = option(command)
    return command


pass_session = click.make_pass_decorator(Session, ensure=True)
