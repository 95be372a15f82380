"""PyTorch Lightning: checkpoints that do not hold training up, committed to a run, and back by its name.

Owns: ``ArtifactSyncCallback`` and ``ArtifactSyncCheckpointIO``. Does not own: when Lightning saves and what is in its
checkpoints (``ModelCheckpoint`` and the modules), the snapshot and the file (``checkpoint``), the commit (``run``).

Invariant: a file that Lightning takes for written is whole under its name before its checkpoint is committed, and one
that Lightning removes stays on this disk until its bytes are on the remote.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from artifactsync.errors import CheckpointNotFoundError, ConfigurationError, MissingPackageError

try:
    from lightning.pytorch.callbacks import Callback, ModelCheckpoint
    from lightning.pytorch.plugins.io import CheckpointIO, TorchCheckpointIO
    from lightning.pytorch.utilities import rank_zero_only
except ModuleNotFoundError as missing:
    raise MissingPackageError(
        "artifactsync.integrations.lightning needs lightning", hint="pip install 'artifactsync[lightning]'"
    ) from missing

from artifactsync.checkpoint.rng import get_rng_state, set_rng_state
from artifactsync.checkpoint.saving import Flight, StateSaver
from artifactsync.integrations.held_run import HeldRun, plain_metrics

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lightning.pytorch import LightningModule, Trainer

    from artifactsync.run import Checkpoint, LocalFile, PendingCheckpoint

FOLDER = "checkpoints"
"""Where the files lie below the run."""
_URL = re.compile(r"artifactsync://([^/?]+)/?(?:\?checkpoint=latest)?")


class ArtifactSyncCheckpointIO(CheckpointIO):
    """Lightning's way to files: a save copies the state and returns; writing, upload and commit go on behind.

    Args:
        held: The run.
    """

    def __init__(self, held: HeldRun) -> None:
        self.metrics: dict[str, float] = {}
        """What the next checkpoint's ``best`` is found by."""
        self._held = held
        self._saver = StateSaver()
        self._plain = TorchCheckpointIO()
        self._pending: dict[str, PendingCheckpoint] = {}
        self._unwanted: set[str] = set()

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Copy the checkpoint; it becomes a file at ``path``, and a checkpoint of the run, behind.

        Raises:
            RunFencedError: a later attempt owns the run.
            ConfigurationError: ``path`` is no local file.
        """
        del storage_options
        if "://" in str(path):
            raise ConfigurationError(
                f"checkpoints go to local files, and from there to the run: {path}",
                hint="leave ModelCheckpoint's dirpath out",
            )
        local = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow the link last.ckpt
        self._remove_unwanted()
        earlier = self._pending.get(str(local))
        if earlier is not None and not earlier.done():
            earlier.exception()  # last.ckpt is written again and again: never while the one before is being sent
        self._unwanted.discard(str(local))
        label: dict[str, Any] = {
            "step": int(checkpoint.get("global_step", 0)),
            "epoch": int(checkpoint.get("epoch", 0)),
            "name": local.stem,
            "metrics": self.metrics,
        }
        flight = Flight(local=local, path=f"{FOLDER}/{local.name}", name=local.stem, record=_nothing, splits=False)
        link = self._held.run.local_dir / FOLDER / "latest.ckpt"

        def submit(flight: Flight) -> PendingCheckpoint:
            return self._held.run.save_prepared(flight.files.result, **label)

        try:
            pending = self._saver.save(checkpoint, flight, link, submit)
        except ConfigurationError:  # it holds objects of the user's own: Lightning's own way, which waits for the disk
            self._plain.save_checkpoint(checkpoint, local)
            pending = self._held.run.save_files({f"{FOLDER}/{local.name}": local}, **label)
        assert pending is not None, "nothing is skipped with the policy 'wait'"
        self._pending = {name: each for name, each in self._pending.items() if not each.done()}
        self._pending[str(local)] = pending

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Load a file; ``artifactsync://RUN`` is the newest checkpoint of a run.

        Raises:
            CheckpointNotFoundError: that run has none.
        """
        found = _URL.fullmatch(str(path))
        if found:
            held = self._held if found[1] == self._held.run_name else self._held.another(found[1])
            path = newest_file(held)
            if path is None:
                raise CheckpointNotFoundError(
                    f"run {found[1]!r} has no Lightning checkpoint yet",
                    hint="begin with ckpt_path=None, or use ckpt_path=sync.ckpt_path(), which is None then",
                )
        self._saver.wait()
        return self._plain.load_checkpoint(path, map_location or (lambda storage, _: storage), weights_only)

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a file from this disk, once it is not needed any more. The remote's are the retention's affair."""
        self._unwanted.add(os.path.abspath(path))  # noqa: PTH100 - as above
        self._remove_unwanted()

    def wait(self) -> None:
        """Wait until every file is whole on this disk."""
        self._saver.wait()

    def settle(self) -> None:
        """Remove what Lightning has removed, after everything is durable."""
        self._remove_unwanted()

    def _remove_unwanted(self) -> None:
        for name in list(self._unwanted):
            pending = self._pending.get(name)
            if pending is None or pending.done():
                self._unwanted.discard(name)
                with contextlib.suppress(FileNotFoundError):
                    self._plain.remove_checkpoint(name)


class ArtifactSyncCallback(HeldRun, Callback):
    """Puts the checkpoints of a Lightning ``Trainer`` into a run, without holding up training.

    ``ModelCheckpoint`` goes on deciding when to save and what stays on this disk; ``retention`` decides what stays on
    the remote. The random state of the process is saved too, and set again when training goes on.

    See ``HeldRun`` for the arguments. Sharded strategies (FSDP, ``ModelParallelStrategy``) save without Lightning's
    checkpoint plugin, and so without this one.
    """

    def __init__(self, run_name: str | None = None, **options: Any) -> None:
        super().__init__(run_name, **options)
        self._io = ArtifactSyncCheckpointIO(self)
        self._rng: dict[str, Any] | None = None

    @property
    def is_writer(self) -> bool:
        """Whether this process is the one that saves, as Lightning counts."""
        return getattr(rank_zero_only, "rank", 0) == 0

    def ckpt_path(self) -> str | None:
        """The newest checkpoint's file on this disk, verified, for ``Trainer.fit``; None if the run has none yet.

        Raises:
            DamagedError: no checkpoint of the run is whole.
            RunIsLiveError: another process that is alive owns the run.
        """
        return newest_file(self)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take over saving, and claim the run if training begins.

        Raises:
            RunIsLiveError: another process that is alive owns the run.
        """
        del pl_module
        trainer.strategy.checkpoint_io = self._io
        if stage != "fit":
            return
        folder = self.run.local_dir / FOLDER
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                callback.dirpath = os.path.abspath(folder)  # noqa: PTH100 - as it is given

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Note what goes with the checkpoint that is about to be saved."""
        del pl_module
        self._io.metrics = plain_metrics(trainer.callback_metrics)
        checkpoint["artifactsync_rng"] = get_rng_state()

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Set the random state, and keep it for the moment when everything is set up."""
        del trainer, pl_module
        self._rng = checkpoint.get("artifactsync_rng")
        self._set_rng()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the random state again: the first thing that uses it from here on is the order of the data."""
        del trainer, pl_module
        self._set_rng()
        self._rng = None

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wait until everything is durable.

        Raises:
            NotDurableError: something is not.
        """
        del trainer, pl_module
        self._io.wait()
        self.close()
        self._io.settle()

    def _set_rng(self) -> None:
        if self._rng is not None:
            set_rng_state(self._rng)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Make durable what the grace period allows."""
        del trainer, pl_module, exception
        self._io.wait()
        self.close("failed")
        self._io.settle()


def newest_file(held: HeldRun) -> str | None:
    """Have the newest Lightning checkpoint of a run on this disk, verified; None if there is none."""
    found = held.newest(lambda checkpoint: _file_of(checkpoint) is not None)
    if found is None:
        return None
    checkpoint, files = found
    return str(files[_file_of(checkpoint) or ""].absolute())


def _file_of(checkpoint: Checkpoint) -> str | None:
    """The path of the one file that a Lightning checkpoint is."""
    return checkpoint.files[0].path if [f.path for f in checkpoint.files if f.path.endswith(".ckpt")] else None


def _nothing(files: Sequence[LocalFile]) -> None:
    """Lightning looks for its files itself."""
