"""``ls``: the runs on the remote, or the checkpoints and artifacts of one.

Owns: its columns and its JSON fields (CONTRACT §5). Does not own: the catalogue (``journal``, ``run``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from artifactsync.cli.messages import show_log_messages
from artifactsync.cli.run_names import complete_run_names
from artifactsync.cli.session import global_options, pass_session
from artifactsync.cli.tables import Column
from artifactsync.cli.terminal import printable
from artifactsync.cli.units import as_moment, counted, human_age, human_bytes
from artifactsync.cli.watching import rows_that_fit, watch
from artifactsync.errors import redact_url

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from artifactsync.cli.session import Session
    from artifactsync.run import Artifact, Checkpoint, Run, RunStatus, RunSummary

RUN_COLUMNS = (
    Column(title="run", style="bold", folds=True),
    Column(title="state"),
    Column(title="last step", is_number=True),
    Column(title="check\u00adpoints", is_number=True),
    Column(title="size", is_number=True),
    Column(title="age", is_number=True),
)

CHECKPOINT_COLUMNS = (
    Column(title="checkpoint", style="bold", folds=True),
    Column(title="step", is_number=True),
    Column(title="attempt", is_number=True),
    Column(title="files", is_number=True),
    Column(title="size", is_number=True),
    Column(title="age", is_number=True),
    Column(title="metrics", folds=True),
)

ARTIFACT_COLUMNS = (Column(title="artifact", folds=True), Column(title="size", is_number=True))


@click.command(
    "ls",
    short_help="List the runs on the remote, or what is in one.",
    epilog="""\b
Examples:
  artifactsync ls                               all runs of the remote
  artifactsync ls 1657932618-infrared-ferret    one run
  artifactsync ls --watch                       again every two seconds
  artifactsync ls --json | jq -r '.runs[].run_name'
""",
)
@click.argument("run", required=False, shell_complete=complete_run_names)
@click.option("--watch", "is_watching", is_flag=True, help="Show it again and again, until Ctrl-C.")
@click.option(
    "--every",
    "interval_s",
    metavar="SECONDS",
    type=click.FloatRange(min=0.5),
    default=2.0,
    show_default=True,
    help="How often, with --watch.",
)
@global_options
@pass_session
def command(session: Session, run: str | None, *, is_watching: bool, interval_s: float) -> None:
    """List the runs on the remote, or the checkpoints and artifacts of RUN."""
    if is_watching and session.is_json:
        raise click.UsageError("--watch shows a table again and again; --json is one document.")
    if run is None:
        remote, storage_options = session.remote, session.storage_options
        show_log_messages(session.screen)
        from artifactsync.run import list_runs

        if is_watching:
            watch(session, interval_s, lambda: watched_runs(session, list_runs(remote, storage_options)))
        _show_runs(session, list_runs(remote, storage_options))
        return
    with session.open_run(run) as opened:
        if is_watching:
            watch(session, interval_s, lambda: watched_run(session, opened))
        _show_run(session, opened)


def _show_runs(session: Session, runs: Sequence[RunSummary]) -> None:
    if session.is_json:
        session.screen.json({"runs": [run.to_json() for run in runs]})
    elif runs:
        session.screen.table(RUN_COLUMNS, run_rows(runs, session.now()))
    else:
        session.screen.note(f"no runs at {redact_url(session.remote)}")


def _show_run(session: Session, run: Run) -> None:
    run_status = run.status()  # first: it says so if there is no such run
    checkpoints = run.checkpoints()
    artifacts = run.artifacts()
    if session.is_json:
        session.screen.json(
            {
                "run_name": run.name,
                "attempt": run_status.attempt,
                "state": run_status.state,
                "checkpoints": [checkpoint.to_json() for checkpoint in checkpoints],
                "artifacts": [artifact.to_json() for artifact in artifacts],
            }
        )
        return
    session.screen.text(run_title(run_status), "title")
    if checkpoints:
        session.screen.text("")
        session.screen.table(CHECKPOINT_COLUMNS, checkpoint_rows(checkpoints, session.now()))
    if artifacts:
        session.screen.text("")
        session.screen.table(ARTIFACT_COLUMNS, artifact_rows(artifacts))
    if not checkpoints:
        session.screen.note("no committed checkpoint")


def watched_runs(session: Session, runs: Sequence[RunSummary]) -> list[str]:
    """What ``--watch`` shows of a remote: as many runs as fit, those with the newest commits first."""
    if not runs:
        return [f"no runs at {redact_url(session.remote)}"]
    table = session.screen.table_text(RUN_COLUMNS, run_rows(runs[: rows_that_fit()], session.now()))
    return [session.screen.styled(counted(len(runs), "run"), "title"), "", *table.splitlines()]


def watched_run(session: Session, run: Run) -> list[str]:
    """What ``--watch`` shows of a run: as many checkpoints as fit, the newest first, and how much else there is."""
    run_status = run.status()
    checkpoints, artifacts = run.checkpoints(), run.artifacts()
    title = session.screen.styled(run_title(run_status), "title")
    artifact_bytes = human_bytes(sum(artifact.size for artifact in artifacts))
    counts = f"{counted(len(checkpoints), 'checkpoint')}; {counted(len(artifacts), 'artifact')}, {artifact_bytes}"
    if not checkpoints:
        return [title, counts]
    newest = checkpoints[: -rows_that_fit() - 1 : -1]
    table = session.screen.table_text(CHECKPOINT_COLUMNS, checkpoint_rows(newest, session.now()))
    return [title, counts, "", *table.splitlines()]


def run_title(run_status: RunStatus) -> str:
    """The line above a run's tables."""
    return printable(f"{run_status.run_name}  {run_status.state}, attempt {run_status.attempt}")


def run_rows(runs: Sequence[RunSummary], now: datetime) -> list[list[str]]:
    """The table of runs."""
    return [
        [
            run.run_name,
            str(run.state),
            "-" if run.last_step is None else f"{run.last_step:,}",
            f"{run.checkpoints:,}",
            human_bytes(run.bytes),
            human_age(as_moment(run.last_commit_at), now),
        ]
        for run in runs
    ]


def checkpoint_rows(checkpoints: Sequence[Checkpoint], now: datetime) -> list[list[str]]:
    """The table of checkpoints."""
    return [
        [
            checkpoint.name,
            f"{checkpoint.step:,}",
            str(checkpoint.attempt),
            f"{len(checkpoint.files):,}",
            human_bytes(checkpoint.bytes),
            human_age(as_moment(checkpoint.committed_at), now),
            " ".join(f"{name}={value:.4g}" for name, value in sorted(checkpoint.metrics.items())) or "-",
        ]
        for checkpoint in checkpoints
    ]


def artifact_rows(artifacts: Sequence[Artifact]) -> list[list[str]]:
    """The table of artifacts."""
    return [[artifact.path, human_bytes(artifact.size)] for artifact in artifacts]
