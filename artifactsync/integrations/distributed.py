"""``torch.distributed.checkpoint`` for any user of it: shards on this disk, committed to a run as one checkpoint.

Owns: ``DistributedCheckpoints``, and the public names of the storage. Does not own: the shards (``checkpoint.shards``),
or machines without a common disk: there every rank opens a ``Run`` and calls its ``save`` (docs/distributed.md).

Invariant: a folder is committed after ``.metadata`` is there, which DCP writes when every rank's shards are; all ranks
load one checkpoint, which rank 0 chooses.
"""

from __future__ import annotations

import re
import shutil
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import distributed
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver

from artifactsync.checkpoint.group import GroupChannel
from artifactsync.checkpoint.shards import ShardReader, ShardWriter
from artifactsync.errors import ArtifactSyncError
from artifactsync.integrations.folders import FOLDER, FolderRun
from artifactsync.naming.layout import HOUSE_FOLDER

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from artifactsync.run import PendingCheckpoint

__all__ = ["DistributedCheckpoints", "ShardReader", "ShardWriter"]

_NAME = re.compile(r"step-(\d+)")
_FETCH_LIMIT_S = 6 * 3600.0
"""How long the other ranks wait for rank 0's download; the launcher ends them long before if rank 0 died."""


class DistributedCheckpoints(FolderRun):
    """``dcp.save`` and ``dcp.load`` by run name, for ranks that share a disk. Every rank calls the same methods.

    See ``HeldRun`` for the arguments.
    """

    @property
    def is_writer(self) -> bool:
        """Whether this process is the one that saves; a process group knows better than the environment."""
        return distributed.get_rank() == 0 if _is_together() else super().is_writer

    def save(
        self, state_dict: dict[str, Any], *, step: int, metrics: Mapping[str, float] | None = None, **arguments: Any
    ) -> PendingCheckpoint | None:
        """Write the shards with ``dcp.save``, and commit them behind.

        Args:
            state_dict: As for ``dcp.save``.
            step: Optimizer steps done.
            metrics: For ``best``.
            **arguments: For ``dcp.save``: ``planner``, ``process_group``.

        Returns:
            What is on its way; None on ranks above 0.
        """
        folder = self.run.local_dir / HOUSE_FOLDER / "dcp" / f"step-{step}"
        with _quietly():
            state_dict_saver.save(
                state_dict, storage_writer=ShardWriter(folder), no_dist=not _is_together(), **arguments
            )
        if not self.is_writer:
            return None
        pending = self.save_folder(folder, step=step, metrics=metrics)
        shutil.rmtree(folder, ignore_errors=True)
        return pending

    def load(self, state_dict: dict[str, Any], **arguments: Any) -> int:
        """Load the newest checkpoint into ``state_dict`` with ``dcp.load``, in place.

        Args:
            state_dict: As for ``dcp.load``.
            **arguments: For ``dcp.load``.

        Returns:
            Optimizer steps done when it was saved; 0 if the run has none yet.

        Raises:
            DamagedError: no checkpoint of the run is whole.
            ArtifactSyncError: rank 0 could not bring one here, on the other ranks; it has its own error.
        """
        folder = self._fetch_together() if _is_together() else self._fetch()
        if folder is None:
            return 0
        with _quietly():
            state_dict_loader.load(
                state_dict, storage_reader=ShardReader(folder), no_dist=not _is_together(), **arguments
            )
        return int(folder.name.partition("-")[2])

    def _fetch(self) -> Path | None:
        return self.fetch_folder(lambda name: _NAME.fullmatch(name) is not None)

    def _fetch_together(self) -> Path | None:
        """Rank 0 claims the run, chooses and downloads.

        Another rank that looked by itself, a moment before, could find another checkpoint to be the newest: an earlier
        attempt that is still alive may commit until rank 0 has claimed the run.
        """
        channel = GroupChannel(f"{self.run_name}/dcp")
        told: dict[str, str] = {}
        try:
            if self.is_writer and (folder := self._fetch()) is not None:
                told = {"folder": folder.name}
        except BaseException as error:
            told = {"failure": f"{type(error).__name__}: {error}", "hint": getattr(error, "hint", "")}
            raise
        finally:  # whatever happened here, no other rank is left waiting
            told = channel.choose("fetch", told, timeout_s=_FETCH_LIMIT_S)
        if "failure" in told:
            raise ArtifactSyncError(f"rank 0 brought no checkpoint here: {told['failure']}", hint=told["hint"])
        return self.run.local_dir / FOLDER / told["folder"] if told else None


def _is_together() -> bool:
    return bool(distributed.is_available() and distributed.is_initialized())


@contextmanager
def _quietly() -> Iterator[None]:
    """Without DCP's warning that one process saves alone: it is meant."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield
