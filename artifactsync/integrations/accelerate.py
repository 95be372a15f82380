"""Hugging Face Accelerate: what ``save_state`` writes, committed as one checkpoint; ``load_state`` by run name.

Owns: ``ArtifactSyncState``. Does not own: what is in the folders (accelerate), how they are committed (``folders``).

Invariant: a folder is published when every process has written its part.
"""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING, Any

from artifactsync.integrations.folders import FOLDER, FolderRun
from artifactsync.naming.layout import HOUSE_FOLDER

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from accelerate import Accelerator
    from typing_extensions import Self

    from artifactsync.run import PendingCheckpoint

_NAME = re.compile(r"state-(\d+)")


class ArtifactSyncState(FolderRun):
    """Saves and loads an ``Accelerator``'s state in a run. Use it in a ``with``, or ``close()`` it.

    Every process calls the same methods, as with Accelerate's own.

    Args:
        accelerator: With everything prepared and registered that shall be saved.
        run_name: See ``HeldRun``; likewise the rest.
        **options: ″
    """

    def __init__(self, accelerator: Accelerator, run_name: str | None = None, **options: Any) -> None:
        super().__init__(run_name, **options)
        self._accelerator = accelerator

    @property
    def is_writer(self) -> bool:
        """Whether this process is the one that saves."""
        return bool(self._accelerator.is_main_process)

    def save_state(
        self, *, step: int, epoch: int | None = None, metrics: Mapping[str, float] | None = None, **arguments: Any
    ) -> PendingCheckpoint | None:
        """``Accelerator.save_state``, committed behind the loop.

        Args:
            step: Optimizer steps done.
            epoch: Epochs done.
            metrics: For ``best``.
            **arguments: For ``Accelerator.save_state``.

        Returns:
            What is on its way; None in processes that only contribute.
        """
        folder = self.run.local_dir / HOUSE_FOLDER / "accelerate" / f"state-{step}"
        self._accelerator.save_state(str(folder), **arguments)
        self._accelerator.wait_for_everyone()
        if not self.is_writer:
            return None
        pending = self.save_folder(folder, step=step, epoch=epoch, metrics=metrics)
        shutil.rmtree(folder, ignore_errors=True)
        return pending

    def load_state(self, **arguments: Any) -> int:
        """Load the run's newest checkpoint with ``Accelerator.load_state``.

        Returns:
            Optimizer steps done when it was saved; 0 if the run has no checkpoint yet.

        Raises:
            DamagedError: no checkpoint of the run is whole.
        """
        folder = self.fetch_folder(lambda name: _NAME.fullmatch(name) is not None)
        if folder is None:
            return 0
        self._accelerator.load_state(str(folder), **arguments)
        found = _NAME.fullmatch(folder.name)
        assert found, f"{FOLDER}/{folder.name} was chosen by its name"
        return int(found[1])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close("completed" if error is None else "failed")
