"""What must hold of a run whose process died: asked by a reader that shares nothing with the victim.

Owns: the judgement. Every sentence that it returns is a broken promise, with the figure that it belongs to.
"""

from __future__ import annotations

import hashlib
import re
import time
from typing import TYPE_CHECKING

from artifactsync import Run
from artifactsync.errors import ArtifactSyncError, ObjectNotFoundError
from tests.crash.scenario import NAME, PATIENCE, Remote, bytes_of, resume_step, save_step

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from artifactsync.stores.protocol import Store

KINDS = ("partial", "unresumable", "changed", "lost", "half artifacts")

Problem = tuple[str, str]

_AT_ONCE_S = 10.0  # a busy machine takes a second; watching a heartbeat would take 25


def read_committed(remote: Remote) -> dict[str, str]:
    """sha256 of every key that the run's live checkpoints name and that is there, as it is on the remote now."""
    store = remote.open()
    try:
        catalogue = Run(NAME, remote=store, read_only=True).catalogue()
        keys = {file.key for checkpoint in catalogue.checkpoints for file in checkpoint.files}
        return {key: sha256 for key in sorted(keys) if (sha256 := _sha256_of(store, key))}
    finally:
        store.close()


def inspect(remote: Remote, *, acknowledged: Collection[int] = (), before: Mapping[str, str]) -> list[Problem]:
    """What is wrong with a run now.

    Args:
        remote: Where it is.
        acknowledged: Numbers of commit records that a writer was told of.
        before: Committed keys and their sha256 from before the process began.
    """
    store = remote.open()
    try:
        return _inspect(store, acknowledged, before)
    finally:
        store.close()


def _inspect(store: Store, acknowledged: Collection[int], before: Mapping[str, str]) -> list[Problem]:
    found: list[Problem] = []
    run = Run(NAME, remote=store, read_only=True)
    catalogue = run.catalogue()
    for checkpoint in catalogue.checkpoints:
        for file in checkpoint.files:
            whole = hashlib.sha256(bytes_of(file.path, attempt=checkpoint.attempt)).hexdigest()
            if _sha256_of(store, file.key) != whole:
                found.append(("partial", f"{checkpoint.name} of attempt {checkpoint.attempt}: {file.key}"))
        if len(checkpoint.files) != 3:
            found.append(("partial", f"{checkpoint.name} has the files {checkpoint.files}"))
    if not (report := run.verify(deep=True)).ok:
        found.append(("partial", f"verify --deep: {report}"))
    newest = catalogue.latest()
    if run.latest() != newest:
        found.append(("unresumable", f"latest() is {run.latest()}, the journal says {newest}"))
    for key, sha256 in before.items():
        now = _sha256_of(store, key)
        if now != sha256 and not (now is None and key in catalogue.retired_keys):
            found.append(("changed", key))
    known = {checkpoint.seq for checkpoint in (*catalogue.checkpoints, *catalogue.retired)}
    found += [("lost", f"commit {seq} was acknowledged") for seq in acknowledged if seq not in known]
    return found + _inspect_artifacts(run, store)


def _sha256_of(store: Store, key: str) -> str | None:
    try:
        return hashlib.sha256(store.get(key)).hexdigest()
    except ObjectNotFoundError:
        return None


def _inspect_artifacts(run: Run, store: Store) -> list[Problem]:
    """No bytes of checkpoints among them, and every one a whole version of itself."""
    found: list[Problem] = []
    for artifact in run.artifacts():
        attempt = re.search(r"/a(\d+)", artifact.path)
        if artifact.path.startswith("checkpoints/") or not attempt:
            found.append(("half artifacts", f"{artifact.path} is shown"))
            continue
        whole = bytes_of(artifact.path, attempt=int(attempt[1]))
        if artifact.path.startswith("traces/") and store.get(artifact.key) != whole:
            found.append(("half artifacts", f"{artifact.path} has other bytes"))
        if artifact.path.startswith("logs/") and artifact.size not in {len(whole) // 2, len(whole)}:
            found.append(("half artifacts", f"{artifact.path} has {artifact.size} bytes of {len(whole)}"))
    return found


def inspect_resume(remote: Remote, folder: Path) -> list[Problem]:
    """Let a new attempt claim the run, resume, save and finish; whatever stops it is a problem."""
    began = time.monotonic()
    try:
        with Run(NAME, remote=remote.open(), local_root=folder, patience=PATIENCE) as run:
            claimed_s = time.monotonic() - began
            step = resume_step(run)
            committed = save_step(run, step + 1)
            if run.latest() != committed:
                return [("unresumable", f"after {committed.name} latest() is {run.latest()}")]
    except (ArtifactSyncError, AssertionError) as error:
        return [("unresumable", f"{type(error).__name__}: {error}")]
    return [] if claimed_s < _AT_ONCE_S else [("unresumable", f"the claim took {claimed_s:.1f} s")]


def inspect_pulled(folder: Path, *, attempt: int, is_whole: bool) -> list[Problem]:
    """Every visible file below a pull's destination is whole; hidden ones are the pull's own.

    Args:
        folder: The destination.
        attempt: Whose checkpoint was pulled.
        is_whole: The pull has ended well: nothing hidden may be left, and something must be there.
    """
    files = [file for file in folder.rglob("*") if file.is_file()]
    visible = [file for file in files if not file.name.startswith(".")]
    found: list[Problem] = []
    for file in visible:
        path = file.relative_to(folder).as_posix()
        author = re.search(r"/a(\d+)", path)
        whole = bytes_of(path, attempt=int(author[1]) if author else attempt)
        if file.read_bytes() not in {whole, whole[: len(whole) // 2] if path.startswith("logs/") else whole}:
            found.append(("partial", f"pulled {path} has other bytes"))
    if is_whole and not visible:
        found.append(("unresumable", "nothing was pulled"))
    if is_whole and len(files) != len(visible):
        found.append(("partial", f"left by pull: {sorted(str(f) for f in set(files) - set(visible))}"))
    return found
