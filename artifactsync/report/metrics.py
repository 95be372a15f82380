"""Curves from what a run has mirrored: its metrics files, else its text logs, and the metrics of its checkpoints.

Owns: which files are read, and the reading of their lines. Does not own: their format (``loggers``).

Invariant: every line is hostile input: one that is no line of metrics is passed over, and memory stays bounded
whatever a file holds.
"""

from __future__ import annotations

import fnmatch
import json
import re
from typing import TYPE_CHECKING, Any

from artifactsync.errors import ArtifactSyncError
from artifactsync.report.curves import Curve

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from artifactsync.journal.catalogue import Checkpoint
    from artifactsync.journal.contents import Artifact, Contents
    from artifactsync.run import Run

MAX_CURVES = 500
"""Names that are kept; a run with more has them counted."""
_READ_BYTES = 4 << 20
_MAX_LINE_BYTES = 1 << 20
_MAX_STEP = 1 << 53
_MAX_NAME_CHARS = 1000
_TEXT_LINE = re.compile(rb"\[metric\]\[batch=([0-9]{1,16})\]: (\{.*\})\s*")


class Curves:
    """Curves by name."""

    def __init__(self) -> None:
        self.by_name: dict[str, Curve] = {}
        self.points = 0
        """Points read."""
        self.left_out: set[str] = set()
        """Names beyond the limit, as far as they are remembered."""
        self.sources: list[str] = []
        """Files that were read."""
        self.problems: list[str] = []
        """What could not be read."""

    def add(self, name: str, step: int, value: float) -> None:
        """Add a point."""
        name = name[:_MAX_NAME_CHARS]
        curve = self.by_name.get(name)
        if curve is None:
            if len(self.by_name) >= MAX_CURVES:
                if len(self.left_out) < MAX_CURVES:
                    self.left_out.add(name)
                return
            curve = self.by_name[name] = Curve(name)
        self.points += 1
        curve.add(step, value)


def read_curves(run: Run, contents: Contents, checkpoints: Iterable[Checkpoint]) -> Curves:
    """All curves of a run: from ``metrics-rank*.jsonl``, else ``logs-rank*.txt``, else from its checkpoints."""
    curves = Curves()
    for pattern, read_line in (("metrics-rank*.jsonl", read_json_line), ("logs-rank*.txt", read_text_line)):
        for artifact in contents.artifacts:
            if fnmatch.fnmatchcase(artifact.path, pattern):
                _read_file(run, contents, artifact, curves, read_line)
                break  # of several ranks the first
        if curves.by_name:
            return curves
    for checkpoint in checkpoints:
        for name, value in checkpoint.metrics.items():
            curves.add(name, checkpoint.step, value)
    if curves.by_name:
        curves.sources.append("the checkpoints' own metrics")
    return curves


def _read_file(run: Run, contents: Contents, artifact: Artifact, curves: Curves, read_line: Any) -> None:
    curves.sources.append(artifact.path)
    try:
        for line in _lines(run, contents, artifact):
            for name, step, value in read_line(line):
                curves.add(name, step, value)
    except ArtifactSyncError as error:
        curves.problems.append(f"{artifact.path} could not be read to its end: {error.message}")


def _lines(run: Run, contents: Contents, artifact: Artifact) -> Iterator[bytes]:
    rest = b""
    for start in range(0, artifact.size, _READ_BYTES):
        data = run.read_artifact(artifact, contents, start=start, end=min(start + _READ_BYTES, artifact.size))
        *lines, rest = (rest + data).split(b"\n")
        yield from lines
        if len(rest) > _MAX_LINE_BYTES:
            rest = b""
    yield rest


def read_json_line(line: bytes) -> list[tuple[str, int, float]]:
    """The points of a line of ``metrics-rank*.jsonl``."""
    try:
        fields = json.loads(line)
        return _points(fields["step"], fields["metrics"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return []


def read_text_line(line: bytes) -> list[tuple[str, int, float]]:
    """The points of a line of ``logs-rank*.txt``."""
    found = _TEXT_LINE.fullmatch(line)
    try:
        return _points(int(found[1]), json.loads(found[2])) if found else []
    except (ValueError, TypeError, RecursionError):
        return []


def _points(step: Any, metrics: Any) -> list[tuple[str, int, float]]:
    if (
        isinstance(step, bool)
        or not isinstance(step, int)
        or not 0 <= step < _MAX_STEP
        or not isinstance(metrics, dict)
    ):
        return []
    return [(name, step, number) for name, value in metrics.items() if (number := _number(value)) is not None]


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        return float(value) if not isinstance(value, str) or value in {"nan", "inf", "-inf"} else None
    except (OverflowError, ValueError):
        return None
