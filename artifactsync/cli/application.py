"""The root command: wires the commands together and turns whatever ends one into an exit code.

Owns: the order of the commands in the help, ``--version``, the one place where exceptions end. Does not own: any
command, nor what a failure says (``failures``).

Invariant: the process ends with a code of CONTRACT §5, and stdout is flushed before.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
import traceback
from typing import TYPE_CHECKING, Any

import click

from artifactsync._version import __version__
from artifactsync.cli import adopt, completion, cp, doctor, ls, prune, pull, push, report, rm, run, status, ui, verify
from artifactsync.cli.failures import (
    INTERRUPTED_EXIT_CODE,
    OUTPUT_CLOSED_EXIT_CODE,
    OutputClosedError,
    describe,
    wants_json,
    wants_traceback,
)
from artifactsync.cli.interrupt import claim_last_word, end_on_interrupt
from artifactsync.cli.screen import Screen
from artifactsync.cli.session import Session, global_options
from artifactsync.errors import redact
from artifactsync.transfer.courier import forbid_courier

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

PROGRAM = "artifactsync"


class _EndedError(Exception):
    """Carries what ended a command past click, which would say its own words on some exceptions."""


class _Application(click.Group):
    """The group of all commands, listed in the order in which a newcomer needs them."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 (click's signature)
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.Abort, click.exceptions.Exit):
            raise
        except (Exception, KeyboardInterrupt) as error:
            raise _EndedError from error


@click.group(
    PROGRAM,
    cls=_Application,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=f"""\b
Examples:
  {PROGRAM} --remote s3://bucket/runs ls
  {PROGRAM} pull 1657932618-infrared-ferret
  {PROGRAM} ls 1657932618-infrared-ferret --json | jq .checkpoints

The remote comes from --remote, else ARTIFACTSYNC_REMOTE, else artifactsync.toml or [tool.artifactsync] in
pyproject.toml, here or in a folder above.

\b
Exit codes: 0 done, 1 unexpected, 2 usage or configuration, 3 not found,
4 damaged or missing bytes, 5 another writer owns the run,
6 credentials or permission, 7 not everything is durable, 130 interrupted.
""",
)
@click.version_option(__version__, prog_name=PROGRAM, message="%(prog)s %(version)s")
@completion.install_option
@global_options
@click.pass_context
def cli(context: click.Context) -> None:
    """Every checkpoint and log of a training run, in your own bucket under its run name."""
    if context.invoked_subcommand is not None:
        return
    if context.ensure_object(Session).is_json:
        raise click.UsageError("Missing command.", ctx=context)
    click.echo(context.get_help())


for _command in (
    run.command,
    ls.command,
    pull.command,
    push.command,
    status.command,
    report.command,
    ui.command,
    verify.command,
    prune.command,
    cp.command,
    adopt.command,
    rm.command,
    doctor.command,
):
    cli.add_command(_command)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and end the process with its exit code.

    Args:
        arguments: What follows the program's name; those of this process if None.
    """
    typed = list(sys.argv[1:] if arguments is None else arguments)
    forbid_courier()  # nothing trains in this process
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # a stream put in place by a caller
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr] # TextIO of a real process has it
    end_on_interrupt(lambda: os._exit(_end(KeyboardInterrupt(), typed)))
    code = _run(typed)
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:  # the reader went away, or the disk that stdout goes to is full: the code alone says so
        os._exit(code or OUTPUT_CLOSED_EXIT_CODE)  # the interpreter would flush, and complain, again
    if code == INTERRUPTED_EXIT_CODE:
        os._exit(code)  # without waiting for what is in flight: nothing half-written has a visible name
    sys.exit(code)


def _run(arguments: list[str]) -> int:
    try:
        result = cli.main(arguments, prog_name=PROGRAM, standalone_mode=False)
    except _EndedError as ended:
        return _end_once(ended.__cause__ or ended, arguments)
    except SystemExit as ended:
        # click's own: it has completed what was typed after Tab, or the reader of the help went away.
        return 0 if ended.code == 0 else OUTPUT_CLOSED_EXIT_CODE
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 (the end of the program: every failure ends here)
        return _end_once(error, arguments)
    return result if isinstance(result, int) else 0


def _end_once(error: BaseException, arguments: list[str]) -> int:
    """:func:`_end`, unless the interrupt's own thread is at it already: then wait for it to end the process."""
    while not claim_last_word():
        time.sleep(1)
    return _end(error, arguments)


def _end(error: BaseException, arguments: list[str]) -> int:
    """Show what ended the command; return the exit code."""
    if isinstance(error, OutputClosedError):
        return OUTPUT_CLOSED_EXIT_CODE
    failure = describe(error)
    try:
        if wants_traceback(os.environ):
            sys.stderr.write(redact("".join(traceback.format_exception(error))))
        Screen().failure(failure, is_json=wants_json(arguments))
    except (OutputClosedError, OSError):
        return OUTPUT_CLOSED_EXIT_CODE
    return failure.exit_code
