"""What the page of a run says: read from the remote, put in order.

Owns: ``build_report``, and the parts that it is made of, which ``ui`` shows too. Does not own: how it looks (``page``,
``charts``).

Invariant: it reads and never writes; what cannot be read is named on the page, and the rest is shown.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from artifactsync._version import __version__
from artifactsync.errors import redact_url
from artifactsync.report.charts import Lane, draw_curve, draw_timeline
from artifactsync.report.curves import Curve
from artifactsync.report.metrics import Curves, read_curves
from artifactsync.report.moments import moment_of
from artifactsync.report.page import card, cards, page, table, totals
from artifactsync.report.text import escaped, number, seconds, size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from artifactsync.journal.catalogue import Checkpoint
    from artifactsync.journal.history import AttemptStory, History
    from artifactsync.run import Run, RunStatus

MAX_CARDS = 60
"""Metrics that are drawn; the others are listed with their last value."""
_MAX_LISTED = 200
_MAX_ROWS = 100
_MAX_LANES = 40
STATES = frozenset({"completed", "preempted", "failed", "running"})
"""Those that the style sheet knows; any other word of a record is shown as ``unknown``."""
_TIMINGS = (
    ("stall_s", "training stood still per save, s"),
    ("written_s", "from save to this disk, s"),
    ("durable_s", "from save to durable, s"),
)


@dataclass(frozen=True, kw_only=True)
class Report:
    """A finished page."""

    html: str
    """The document."""
    metrics: int
    """Curves that were found."""
    points: int
    """Their points, before they were thinned out."""
    checkpoints: int
    """Checkpoints that the run ever committed."""
    attempts: int
    """Attempts of the run."""


def build_report(run: Run, *, now: datetime | None = None) -> Report:
    """Make the page of a run.

    Args:
        run: The run, read-only is enough.
        now: The time that the page is said to be of.

    Raises:
        RunNotFoundError: there is no such run.
    """
    now = now or datetime.now(timezone.utc)
    status = run.status()  # first: it says so if there is no such run
    history = run.history()
    curves = read_curves(run, run.contents(), history.checkpoints)
    body = [
        f"<h1>{escaped(run.name)}</h1>",
        f"<p>{state_part(status)}, as of {now:%Y-%m-%d %H:%M:%S} UTC</p>",
        f'<p class="faint">{escaped(redact_url(run.remote), at_most=300)}</p>',
        totals_part(status, history),
        *metrics_part(curves, history),
        *checkpoints_part(history, status, now),
        f'<p class="note">made by artifactsync {escaped(__version__)} from the journal'
        + "".join(f" and {escaped(source)}" for source in curves.sources)
        + "</p>",
    ]
    return Report(
        html=page(f"{run.name}, {status.state}", body),
        metrics=len(curves.by_name),
        points=curves.points,
        checkpoints=len(history.checkpoints),
        attempts=len(history.attempts),
    )


def state_part(status: RunStatus) -> str:
    """The run's state in its colour, and whether it is alive."""
    kind = status.state if status.state in STATES else "unknown"
    return f'<span class="state {kind}">{escaped(status.state)}</span>{", alive" if status.alive else ""}'


def totals_part(status: RunStatus, history: History) -> str:
    """The figures of the run as a whole."""
    kept = [c for c in history.checkpoints if c.seq not in history.retired]
    stalls = [c.timing["stall_s"] for c in history.checkpoints if "stall_s" in c.timing]
    sizes = {file.key: file.size for c in kept for file in c.files}
    waiting = f"{status.pending_files:,} files, {size(status.pending_bytes)}" if status.pending_files else "none"
    figures = [
        ("durable step", "-" if status.durable_step is None else f"{status.durable_step:,}"),
        ("checkpoints", f"{len(kept):,}" + (f" of {len(history.checkpoints):,}" if history.retired else "")),
        ("their size", size(sum(sizes.values()))),
        ("attempts", f"{max(status.attempt, len(history.attempts)):,}"),
        ("all stalls together", seconds(sum(stalls)) if stalls else "-"),
        ("waiting for upload", waiting),
    ]
    return totals(figures)


def metrics_part(curves: Curves, history: History) -> list[str]:
    """A drawing of each metric, and what could not be read."""
    resumed_at = [story.after.step for story in history.attempts if story.after is not None]
    parts = ["<h2>Metrics</h2>"]
    if not curves.by_name:
        parts.append('<p class="faint">None were mirrored yet: no metrics file, no log, no metrics of checkpoints.</p>')
    ordered = sorted(curves.by_name.values(), key=lambda curve: ("/train/" not in curve.name, curve.name))
    parts.append(cards([_card(curve, resumed_at) for curve in ordered[:MAX_CARDS]]))
    if rest := ordered[MAX_CARDS:]:
        rows = [((curve.name, f"{curve.last[0]:,}", number(curve.last[1])), "") for curve in rest if curve.last]
        parts.append(f'<p class="faint">{len(rest)} more, with their last values:</p>')
        parts.append(table(("metric", "step", "last"), rows[:_MAX_LISTED], texts=frozenset({0})))
    if curves.left_out:
        parts.append(f'<p class="faint">At least {len(curves.left_out)} more names were left out.</p>')
    parts.extend(f'<p class="faint">{escaped(problem, at_most=400)}</p>' for problem in curves.problems)
    return parts


def _card(curve: Curve, resumed_at: Sequence[int]) -> str:
    notes = [f"last {number(curve.last[1])} at step {curve.last[0]:,}"] if curve.last else []
    if points := curve.points():
        low, high = min(points, key=lambda p: p[1]), max(points, key=lambda p: p[1])
        notes.append(f"least {number(low[1])} at {low[0]:,}, greatest {number(high[1])} at {high[0]:,}")
    if curve.not_finite_count:
        notes.append(f"{curve.not_finite_count:,} not finite, the first at step {curve.not_finite[0]:,}")
    return card(curve.name, draw_curve(curve, resumed_at=resumed_at), "; ".join(notes))


def checkpoints_part(history: History, status: RunStatus, now: datetime) -> list[str]:
    """The timeline, what saving cost, the attempts, the checkpoints."""
    if not history.attempts and not history.checkpoints:
        return ["<h2>Checkpoints</h2>", '<p class="faint">The run has no journal: nothing was ever committed.</p>']
    parts = ["<h2>Attempts and checkpoints</h2>"]
    lanes = [
        lane for story in history.attempts[-_MAX_LANES:] if (lane := _lane(story, history, status, now)) is not None
    ]
    if lanes:
        words = "A mark is a commit: from there on the checkpoint is durable. Grey ones were removed later."
        parts.append(f'<div class="card">{draw_timeline(lanes)}<p class="note">{words}</p></div>')
    timed = [_timing_card(history, field, title) for field, title in _TIMINGS]
    parts.append(f"<p></p>{cards([made for made in timed if made])}")
    parts.append(_attempt_table(history))
    parts.append("<h2>Checkpoints</h2>")
    newest = history.checkpoints[::-1][:_MAX_ROWS]
    if len(history.checkpoints) > len(newest):
        parts.append(f'<p class="faint">The newest {len(newest)} of {len(history.checkpoints):,}.</p>')
    rows = [(_row(checkpoint), "gone" if checkpoint.seq in history.retired else "") for checkpoint in newest]
    titles = ("checkpoint", "step", "attempt", "files", "size", "stall", "durable after", "committed", "metrics")
    parts.append(
        table(titles, rows, texts=frozenset({0, 8})) if rows else '<p class="faint">None is committed yet.</p>'
    )
    return parts


def _row(checkpoint: Checkpoint) -> tuple[str, ...]:
    metrics = list(checkpoint.metrics.items())[:4]
    return (
        checkpoint.name,
        f"{checkpoint.step:,}",
        str(checkpoint.attempt),
        f"{len(checkpoint.files):,}",
        size(checkpoint.bytes),
        seconds(checkpoint.timing.get("stall_s")),
        seconds(checkpoint.timing.get("durable_s")),
        _shown(checkpoint.committed_at),
        " ".join(f"{name}={number(value)}" for name, value in metrics),
    )


def _attempt_table(history: History) -> str:
    rows = [
        (
            (
                str(story.number),
                _shown(story.began_at),
                f"{story.after.name}, step {story.after.step:,}" if story.after else "the beginning",
                f"{story.commits:,}",
                story.state or "it did not say",
                story.host or "-",
            ),
            "",
        )
        for story in history.attempts[::-1][:_MAX_ROWS]
    ]
    return table(("attempt", "began", "after", "commits", "ended", "host"), rows, texts=frozenset({0, 1, 2, 4, 5}))


def _lane(story: AttemptStory, history: History, status: RunStatus, now: datetime) -> Lane | None:
    began = moment_of(story.began_at)
    if began is None:
        return None
    own = [c for c in history.checkpoints if c.attempt == story.number]
    is_running = status.alive and story.number == history.attempts[-1].number
    ended = now if is_running else moment_of(story.ended_at) or began
    state = story.state if story.state in STATES else "unknown"
    marks = [
        (at, c.seq not in history.retired, _words(c)) for c in own if (at := moment_of(c.committed_at)) is not None
    ]
    after = f", after {story.after.name}" if story.after else ""
    ending = "running" if is_running else story.state or "no word of its end"
    return Lane(
        f"attempt {story.number}{after}: {ending}", began, max(began, ended), "running" if is_running else state, marks
    )


def _words(checkpoint: Checkpoint) -> str:
    stall, durable = (seconds(checkpoint.timing.get(field)) for field in ("stall_s", "durable_s"))
    return f"{checkpoint.name}: stall {stall}, durable after {durable}"


def _timing_card(history: History, field: str, title: str) -> str:
    curve = Curve(title)
    for checkpoint in history.checkpoints:
        if field in checkpoint.timing:
            curve.add(checkpoint.step, checkpoint.timing[field])
    return _card(curve, []) if curve.count else ""


def _shown(text: str) -> str:
    moment = moment_of(text)
    return f"{moment:%Y-%m-%d %H:%M:%S}" if moment else "-"
