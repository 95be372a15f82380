"""Comet's offline archives: what they hold, and making one of what a killed process left.

Owns: reading ``messages.json`` and the zip files. Does not own: writing messages (Comet).

Invariant: an archive is there under its name only when it is whole.
"""

from __future__ import annotations

import json
import time
import zipfile
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

MESSAGES = "messages.json"
META = "experiment.json"


def read_metrics(path: Path) -> list[tuple[int, str, float]]:
    """Step, name and value of every metric in an archive, or in the folder of an experiment that is running.

    Args:
        path: A zip file, or a folder with ``messages.json``.
    """
    points = []
    for message in _messages(path):
        metric = message.get("payload", {}).get("metric") if message.get("type") == "metric_msg" else None
        if metric is not None and metric.get("step") is not None:
            points.append((int(metric["step"]), str(metric["metricName"]), float(metric["metricValue"])))
    return points


def archive_left(
    folder: Path, archive: Path, *, key: str, is_first: bool, project: str | None, workspace: str | None
) -> None:
    """Make the archive that a killed process could not make; the folder stays.

    Args:
        folder: Where it wrote.
        archive: The zip file to make.
        key: Comet's key of the experiment.
        is_first: Whether no earlier part of the experiment exists.
        project: Comet's project.
        workspace: Comet's workspace.
    """
    now_ms = int(time.time() * 1000)
    meta: dict[str, Any] = {
        "offline_id": key,
        "project_name": project,
        "start_time": now_ms,
        "stop_time": now_ms,
        "tags": [],
        "workspace": workspace,
        "resume_strategy": "create" if is_first else "get",
        "customer_error_reported": False,
        "customer_error_message": None,
        "user_provided_experiment_key": True,
        "comet_start_sourced": False,
    }
    partial = archive.with_name(f"{archive.name}.part")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as target:
        lines = (json.dumps(message) for message in _messages(folder))  # without a last line that is torn
        target.writestr(MESSAGES, "".join(f"{line}\n" for line in lines))
        target.writestr(META, json.dumps(meta))
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder).as_posix()
            if path.is_file() and name not in {MESSAGES, META}:
                target.write(path, name)
    partial.replace(archive)


def _messages(path: Path) -> Iterator[dict[str, Any]]:
    if path.is_dir():
        file = path / MESSAGES
        yield from _decoded(file.read_bytes().splitlines() if file.is_file() else ())
        return
    try:
        with zipfile.ZipFile(path) as archive:
            lines = archive.read(MESSAGES).splitlines()
    except (zipfile.BadZipFile, KeyError):  # a killed process had begun it
        return
    yield from _decoded(lines)


def _decoded(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    for line in lines:
        try:
            message = json.loads(line)
        except ValueError:
            continue
        if isinstance(message, dict):
            yield message
