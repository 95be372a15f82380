"""What a run's page shows, read from the remote when a part of the page first asks for it.

Owns: the order of reading, and the words about durability. Does not own: drawings and tables (``report``).

Invariant: nothing is read twice for one page.
"""

from __future__ import annotations

import math
import shlex
from functools import cached_property
from typing import TYPE_CHECKING

from markupsafe import Markup

from artifactsync.report.build import checkpoints_part, metrics_part, state_part, totals_part
from artifactsync.report.metrics import read_curves
from artifactsync.report.text import seconds, size

if TYPE_CHECKING:
    from datetime import datetime

    from artifactsync.journal.contents import Artifact, Contents
    from artifactsync.journal.history import History
    from artifactsync.journal.status import RunStatus
    from artifactsync.report.metrics import Curves
    from artifactsync.ui.remote import Remote

MAX_FILES = 500
"""Artifacts that are listed."""


class RunPage:
    """One look at one run.

    Args:
        remote: Where it is.
        run_name: A valid name.
        now: The time of the page.
    """

    def __init__(self, remote: Remote, run_name: str, *, now: datetime) -> None:
        self.run_name = run_name
        self.now = now
        self._url = remote.url
        self._run = remote.run(run_name)

    @cached_property
    def status(self) -> RunStatus:
        """How durable it is.

        Raises:
            RunNotFoundError: there is no such run.
        """
        return self._run.status()

    @cached_property
    def history(self) -> History:
        """Its attempts and checkpoints."""
        return self._run.history()

    @cached_property
    def contents(self) -> Contents:
        """Its folder."""
        return self._run.contents()

    @cached_property
    def curves(self) -> Curves:
        """Its metrics, from the mirrored logs."""
        return read_curves(self._run, self.contents, self.history.checkpoints)

    @property
    def state(self) -> Markup:
        """Its state, in colour."""
        return Markup(state_part(self.status))  # noqa: S704 (escaped by report, as are the three below)

    @property
    def totals(self) -> Markup:
        """Its figures."""
        return Markup(totals_part(self.status, self.history))  # noqa: S704

    @property
    def metrics(self) -> Markup:
        """Its curves, drawn."""
        return Markup("".join(metrics_part(self.curves, self.history)))  # noqa: S704

    @property
    def checkpoints(self) -> Markup:
        """Its timeline, attempts and checkpoints."""
        return Markup("".join(checkpoints_part(self.history, self.status, self.now)))  # noqa: S704

    @property
    def files(self) -> tuple[Artifact, ...]:
        """The artifacts that are listed."""
        return self.contents.artifacts[:MAX_FILES]

    @property
    def sources(self) -> str:
        """Where the curves come from."""
        return ", ".join(self.curves.sources)

    @property
    def durability(self) -> str:
        """One sentence on what is safe."""
        status = self.status
        if status.durable_step is None:
            return "No checkpoint is durable yet."
        safe = f"Durable up to step {status.durable_step:,}"
        if status.local_step is not None and status.local_step > status.durable_step:
            safe += f"; the writer has taken a checkpoint at step {status.local_step:,}"
        return f"{safe}."

    @property
    def backlog(self) -> str:
        """One sentence on what is on its way; empty if nothing is."""
        status = self.status
        if not status.pending_files:
            return ""
        files = "1 file waits" if status.pending_files == 1 else f"{status.pending_files:,} files wait"
        sentence = f"{files} for upload, {size(status.pending_bytes)}"
        if status.bytes_per_s > 0:
            sentence += f", at {size(status.bytes_per_s)}/s"
        if status.eta_s is not None and math.isfinite(status.eta_s):
            sentence += f", done in about {seconds(status.eta_s)}"
        return f"{sentence}."

    @property
    def commands(self) -> tuple[tuple[str, str], ...]:
        """What to type: what it does, and the command."""
        start = ["artifactsync", "--remote", self._url]
        return (
            ("Bring it here, verified", shlex.join([*start, "pull", self.run_name])),
            ("Its logs and other files alone", shlex.join([*start, "pull", self.run_name, "--only", "logs"])),
        )
