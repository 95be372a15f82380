"""The list of runs: their names from one listing, and what is known of some of them when a page shows them.

A remote may hold thousands of runs, and each costs three or four requests: they are asked about when their rows come
into view.

Owns: which runs are listed, and the words and numbers of a row. Does not own: what a run is (``journal.runs``).

Invariant: what leaves here for the page's script is text to be shown as text, and numbers to be sorted by.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from artifactsync.errors import ArtifactSyncError
from artifactsync.journal.runs import run_names, summarise_runs
from artifactsync.report.build import STATES
from artifactsync.report.moments import age, moment_of
from artifactsync.report.text import size, visible

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from artifactsync.journal.runs import RunSummary
    from artifactsync.ui.remote import Remote

MAX_ROWS = 1000
"""Runs on one page; the others are found by a part of their name."""


@dataclass(frozen=True, kw_only=True)
class Listed:
    """Some of the names."""

    names: tuple[str, ...]
    """Greatest first: of generated names, which begin with the time, the newest run."""
    matching: int
    """How many there are of those that were asked for."""
    total: int
    """How many there are."""
    wanted: str
    """What was to be in the name; may be empty."""


def list_names(remote: Remote, wanted: str) -> Listed:
    """The names of the runs that have ``wanted`` in them."""
    every = run_names(remote.store)
    matching = [name for name in every if wanted.lower() in name.lower()]
    newest = tuple(matching[::-1][:MAX_ROWS])
    return Listed(names=newest, matching=len(matching), total=len(every), wanted=wanted)


def names_now(remote: Remote, wanted: str, now: datetime) -> dict[str, Any]:
    """The list anew, for the page's script: ``{"names", "matching", "total", "as_of"}``, or ``"error"``."""
    try:
        listed = list_names(remote, wanted)
    except ArtifactSyncError as error:
        return {"error": _in_words(error)}
    return {
        "names": listed.names,
        "matching": listed.matching,
        "total": listed.total,
        "as_of": f"{now:%Y-%m-%d %H:%M:%S} UTC",
    }


def summarise(remote: Remote, names: Sequence[str], now: datetime) -> dict[str, Any]:
    """Rows for the page's script: ``{"runs": {name: row or null}}``, and ``"error"`` if they could not be had."""
    try:
        found = summarise_runs(remote.store, names)
    except ArtifactSyncError as error:
        return {"runs": {}, "error": _in_words(error)}
    return {"runs": {name: row_of(run, now) if run else None for name, run in zip(names, found, strict=True)}}


def _in_words(error: ArtifactSyncError) -> str:
    return visible(" ".join(filter(None, (error.message, error.hint))), at_most=1000)


def row_of(run: RunSummary, now: datetime) -> dict[str, Any]:
    """A row: ``state``, ``texts`` to be shown and ``numbers`` to be sorted by."""
    committed = moment_of(run.last_commit_at)
    return {
        "state": run.state if run.state in STATES else "unknown",
        "texts": {
            "state": visible(run.state, at_most=40),
            "last_step": "-" if run.last_step is None else f"{run.last_step:,}",
            "checkpoints": f"{run.checkpoints:,}",
            "bytes": size(run.bytes),
            "age": age(committed, now),
        },
        "numbers": {
            "last_step": -1 if run.last_step is None else run.last_step,
            "checkpoints": run.checkpoints,
            "bytes": run.bytes,
            "age": committed.timestamp() if committed else 0,
        },
    }
