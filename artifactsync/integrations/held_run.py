"""The run behind a framework's callback: opened when something is to be saved, closed when training ends.

Owns: when the run is claimed, and which checkpoint a framework goes on from. Does not own: what a checkpoint is made of
(the frameworks' own modules).

Invariant: in each process group one process claims the run, its rank 0; every other one only reads.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Literal

from artifactsync.batch import rank
from artifactsync.errors import ArtifactSyncError, DamagedError
from artifactsync.naming import resolve_run_name
from artifactsync.run import Run
from artifactsync.transfer import at_exit

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from artifactsync.run import Checkpoint, RetentionPolicy
    from artifactsync.stores.protocol import Store


class HeldRun:
    """A run that is opened on first use.

    Args:
        run_name: The run's name; else ``ARTIFACTSYNC_RUN_NAME``, ``RUN_NAME``, or a generated one.
        remote: Root URI under which runs live; else ``ARTIFACTSYNC_REMOTE``.
        local_root: Local folder of all runs; else ``ARTIFACTSYNC_LOCAL_ROOT``, else ``runs``.
        storage_options: What fsspec's file system for the remote takes.
        retention: What stays on the remote; None keeps every checkpoint. What the framework itself deletes locally is
            its own affair.
        **options: Anything else that ``Run`` takes: ``takeover``, ``bandwidth_limit``, ``max_concurrency``, …

    Raises:
        RunNameError: the name is not allowed.
    """

    def __init__(
        self,
        run_name: str | None = None,
        *,
        remote: str | os.PathLike[str] | Store | None = None,
        local_root: str | os.PathLike[str] | None = None,
        storage_options: Mapping[str, Any] | None = None,
        retention: RetentionPolicy | None = None,
        **options: Any,
    ) -> None:
        self.run_name = resolve_run_name(run_name)
        """The run's name."""
        where: dict[str, Any] = {"remote": remote, "local_root": local_root, "storage_options": storage_options}
        self._where: dict[str, Any] = where
        self._options: dict[str, Any] = {"ranks": "one", "retention": retention, **options}
        self._run: Run | None = None

    @property
    def is_writer(self) -> bool:
        """Whether this process is the one that saves."""
        return rank() == 0

    @property
    def run(self) -> Run:
        """The run: open for writing in the process that saves, to look at in the others.

        Raises:
            RunIsLiveError: another process that is alive owns it.
            ConfigurationError: no remote, or a wrong one.
        """
        if self._run is None:
            options = self._options if self.is_writer else {"read_only": True}
            self._run = Run(self.run_name, **self._where, **options)
        return self._run

    @property
    def is_open(self) -> bool:
        """Whether the run is held at the moment."""
        return self._run is not None

    def another(self, run_name: str) -> HeldRun:
        """A run beside this one, to read from.

        Args:
            run_name: Its name.
        """
        return HeldRun(run_name, **self._where, read_only=True)

    def newest(self, is_fit: Callable[[Checkpoint], bool]) -> tuple[Checkpoint, dict[str, Path]] | None:
        """Have the files of the newest whole checkpoint that a framework can load on this disk, verified.

        Args:
            is_fit: Whether a checkpoint was saved by the framework.

        Returns:
            The checkpoint, and its files by their path below the run; None if the run has none yet.

        Raises:
            DamagedError: none of them is whole.
        """
        damage: DamagedError | None = None
        for checkpoint in reversed(self.run.checkpoints()):
            if not is_fit(checkpoint):
                continue
            try:
                return checkpoint, self.run.ensure_local(checkpoint)
            except DamagedError as error:
                damage = error
                warnings.warn(
                    f"checkpoint {checkpoint.name!r} of run {self.run_name!r} is damaged and was passed over: {error}",
                    RuntimeWarning,
                    stacklevel=3,
                )
        if damage is not None:
            raise DamagedError(
                f"no checkpoint of run {self.run_name!r} is whole; the oldest one: {damage}",
                hint="run `artifactsync verify --deep`, and restore the files or start a new run",
                url=damage.url,
            ) from damage
        return None

    def close(self, state: Literal["completed", "failed"] = "completed") -> None:
        """Wait until everything is durable, write down how the run ended, and let it go. Used again, it opens anew.

        Raises:
            NotDurableError, RunFencedError: something did not become durable; only where ``state`` is ``completed``.
        """
        run, self._run = self._run, None
        if run is None:
            return
        if state == "completed":
            run.close()
            return
        try:
            run.close(at_exit.grace_s(), state=state)
        except ArtifactSyncError as error:  # must not hide what ended the training
            at_exit.tell(f"not everything is durable: {error}")


def plain_metrics(values: Mapping[str, Any]) -> dict[str, float]:
    """Those of a framework's metrics that are one number each."""
    found: dict[str, float] = {}
    for name, value in values.items():
        number = value.item() if getattr(value, "numel", lambda: 0)() == 1 else value
        if isinstance(number, (int, float)) and not isinstance(number, bool):
            found[str(name)] = float(number)
    return found
