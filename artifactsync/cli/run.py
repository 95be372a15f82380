"""``run``: wraps any training command: name, restore, mirror, forward signals, drain, exit code.

Owns: its arguments, and which of them, of the environment and of the configuration counts. Does not own: the
supervision (``supervisor``).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from artifactsync.batch import grace_s, parse_grace_s
from artifactsync.cli.messages import show_log_messages
from artifactsync.cli.session import global_options, pass_session
from artifactsync.cli.terminal import printable
from artifactsync.errors import ConfigurationError

if TYPE_CHECKING:
    from artifactsync.cli.session import Session
    from artifactsync.run import Run


@click.command(
    "run",
    short_help="Run a training command that survives preemption.",
    context_settings={"allow_interspersed_args": False},
    epilog="""\b
Examples:
  artifactsync run --name exp7 -- python train.py --epochs 10
  artifactsync run --name exp7 --grace 120 -- torchrun train.py
  artifactsync run --name exp7 --watch outputs -- ./train.sh

The command gets RUN_NAME, ARTIFACTSYNC_ATTEMPT, and, when it is restarted, the
path of its newest checkpoint in ARTIFACTSYNC_RESUME_FROM. Its exit code is
passed on when everything is durable, else it is 7.
""",
)
@click.option(
    "--name", metavar="RUN", help="The run's name; else ARTIFACTSYNC_RUN_NAME, RUN_NAME, the job's, a new one."
)
@click.option(
    "--grace",
    metavar="SECONDS",
    help="Time between a stop signal and the kill; else ARTIFACTSYNC_GRACE_S, else the platform's usual one.",
)
@click.option(
    "--watch",
    "watched",
    metavar="DIR",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Mirror this folder alone; may be repeated. Else the whole working folder.",
)
@click.option(
    "--checkpoint", "patterns", metavar="GLOB", multiple=True, help="Files or folders that are checkpoints too."
)
@click.option("--exclude", metavar="GLOB", multiple=True, help="Paths to leave alone.")
@click.option(
    "--settle",
    metavar="SECONDS",
    default="1",
    show_default=True,
    help="A file that was left alone for so long is finished; more for a slow network disk.",
)
@click.option("--takeover", is_flag=True, help="Take the run over from a process that is still alive.")
@click.argument("arguments", metavar="-- COMMAND...", nargs=-1, required=True, type=click.UNPROCESSED)
@global_options
@pass_session
def command(
    session: Session,
    name: str | None,
    grace: str | None,
    watched: tuple[Path, ...],
    patterns: tuple[str, ...],
    exclude: tuple[str, ...],
    settle: str,
    takeover: bool,
    arguments: tuple[str, ...],
) -> int:
    """Run COMMAND with a run name; restore before, mirror while it runs, and make all durable after.

    Files keep their paths below the working folder. Checkpoints of torch.distributed.checkpoint, Hugging Face,
    Lightning and plain .pt, .pth, .ckpt and .safetensors files are recognised, and published when they are whole.
    """
    from artifactsync.supervisor import Settings, supervise
    from artifactsync.supervisor.child import check_command

    remote = session.remote
    grace_given = parse_grace_s(grace, source="--grace") if grace is not None else grace_s()
    settle_s = max(0.05, parse_grace_s(settle, source="--settle"))
    work_dir = Path.cwd()
    more = session.configuration.run
    watched = watched or tuple(Path(folder) for folder in more.get("watch", ()))
    for folder in watched:
        if folder.exists() and not folder.is_dir():
            raise ConfigurationError(f"--watch {folder} is no folder", hint="name the folder that has the file")
    if refused := check_command(arguments, work_dir):
        what = "is there, but cannot be executed" if refused == 126 else "was not found"  # noqa: PLR2004 - a shell's
        _tell(f"the command {arguments[0]!r} {what}; nothing was started")
        return refused
    show_log_messages(session.screen)
    from artifactsync.batch.job_env import job_env

    job = job_env()
    is_owner = job.ranks.rank == 0
    run = _open(session, name or _name_of(job.name_hint), remote, work_dir, takeover=takeover, is_owner=is_owner)
    settings = Settings(
        command=arguments,
        work_dir=work_dir,
        watched=watched,
        checkpoint_patterns=(*more.get("checkpoint", ()), *patterns),
        exclude=(*more.get("exclude", ()), *exclude),
        grace_s=grace_given,
        usual_grace_s=job.usual_grace_s or Settings.usual_grace_s,
        rank=job.ranks.rank,
        job=job,
        settle_s=settle_s,
        output_fd=2 if session.is_json else 1,
        is_owner=is_owner,
    )
    outcome = supervise(run, settings, tell=(lambda _: None) if session.screen.is_quiet else _tell)
    _tell(outcome.line)
    if session.is_json:
        _write_json(session, outcome)
    return _leave(outcome.exit_code)


def _name_of(hint: str | None) -> str | None:
    """The job's own name, where the user gave none in the environment."""
    is_given = any(os.environ.get(name) for name in ("ARTIFACTSYNC_RUN_NAME", "RUN_NAME"))
    return None if is_given else hint


def _open(session: Session, name: str | None, remote: str, work_dir: Path, *, takeover: bool, is_owner: bool) -> Run:
    from artifactsync.run import Run

    return Run(
        name,
        remote=remote,
        local_root=work_dir / ".artifactsync" / "run",
        storage_options=session.storage_options,
        takeover=takeover,
        read_only=not is_owner,
        ranks="one",
        max_pending_files=1_000_000,
    )


def _tell(line: str) -> None:
    sys.stderr.write(printable(f"artifactsync: {line}") + "\n")
    sys.stderr.flush()


def _write_json(session: Session, outcome: object) -> None:
    session.screen.json(outcome)


def _leave(code: int) -> int:
    """End at once: what is not durable was told, and no thread of ours shall hold the process."""
    sys.stdout.flush()
    os._exit(code)
