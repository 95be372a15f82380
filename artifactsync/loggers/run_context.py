"""What destinations are told of a run: how their files get to its remote, and come back from it.

Owns: making a ``LogContext`` from a run. Does not own: the transfers (``run``), or the logs (each destination).

Invariant: what is wrong with the remote never stops training; that another process owns the run does.
"""

from __future__ import annotations

import hashlib
import shutil
import uuid
import warnings
from typing import TYPE_CHECKING, Any

from artifactsync.batch import placement
from artifactsync.checkpoint.local_run import LocalRun
from artifactsync.errors import ArtifactSyncError, RunOwnedError
from artifactsync.loggers.destination import LogContext
from artifactsync.naming import safe_local_path
from artifactsync.naming.layout import HOUSE_FOLDER

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from artifactsync.run import Pushed, Run


def context_of_run(run: Run | LocalRun, *, placeholders: Mapping[str, Any] | None = None) -> LogContext:
    """What loggers need to know of a run that is open for writing.

    Args:
        run: The run.
        placeholders: More values for templates.
    """
    access = _RunAccess(run)
    return LogContext(
        run_name=run.name,
        local_dir=run.local_dir,
        attempt=run.attempt,
        placeholders={**placement().__dict__, "attempt": run.attempt, **(placeholders or {})},
        mirror=access.mirror,
        fetch=access.fetch,
        bring=access.bring,
        identity=access.identity,
    )


class _RunAccess:
    def __init__(self, run: Run | LocalRun) -> None:
        self._run = run
        self._identity = ""

    def mirror(self, path: Path, /, *, remote_path: str | None = None, growing: bool = True) -> Pushed | None:
        """Mirror a file. What is wrong with the remote is told at the end, and does not stop training."""
        if isinstance(self._run, LocalRun):
            return None
        try:
            return self._run.push(path, remote_path, growing=growing)
        except RunOwnedError:
            raise
        except ArtifactSyncError as error:
            warnings.warn(f"{path} is not mirrored: {error}", RuntimeWarning, stacklevel=2)
            return None

    def fetch(self, path: str, local: Path, size_bytes: int, sha256: str) -> bool:
        """Bring a mirrored log back, if there is one that begins so."""
        if isinstance(self._run, LocalRun):
            return False
        return self._run.fetch_log(path, local, size_bytes=size_bytes, sha256=sha256)

    def bring(self, folder: str, into: Path) -> None:
        """Bring back the files below a folder that are not here."""
        run = self._run
        if isinstance(run, LocalRun) or run.attempt <= 1:
            return
        prefix = f"{folder}/"
        below = {a.path: a.path.removeprefix(prefix) for a in run.artifacts() if a.path.startswith(prefix)}
        wanted = {path: to for path, name in below.items() if not (to := safe_local_path(into, name)).exists()}
        if not wanted:
            return
        scratch = run.local_dir / HOUSE_FOLDER / f"brought-{uuid.uuid4().hex[:8]}"
        try:
            run.pull(scratch, checkpoint="none", include=[f"{prefix}*"])
            for path, to in wanted.items():
                to.parent.mkdir(parents=True, exist_ok=True)
                safe_local_path(scratch, path).replace(to)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def identity(self) -> str:
        """Of the first attempt, as long as there is no checkpoint; a run that repeats others is another history."""
        if not self._identity:
            self._identity = self._local_identity() if isinstance(self._run, LocalRun) else self._claimed_identity()
        return self._identity

    def _claimed_identity(self) -> str:
        catalogue = self._run.catalogue()  # type: ignore[union-attr]  # a Run
        claims = dict(catalogue.claims)
        number = min(claims, default=0) if catalogue.latest() is None else self._run.attempt
        return hashlib.sha256(f"{self._run.name}/{claims.get(number, number)}".encode()).hexdigest()[:32]

    def _local_identity(self) -> str:
        note = self._run.local_dir / HOUSE_FOLDER / "log-identity"
        if self._run.latest() is None and note.is_file():
            known = note.read_text(encoding="ascii").strip()
            if known:
                return known
        note.parent.mkdir(parents=True, exist_ok=True)
        identity = uuid.uuid4().hex
        partial = note.with_name(f"{note.name}.{identity[:8]}")
        partial.write_text(identity, encoding="ascii")
        partial.replace(note)
        return identity
