"""A folder that some program wrote, committed as one checkpoint; and back, under its own name.

Owns: keeping a folder's files as they are until they are durable, whatever the program does with the folder meanwhile.
Does not own: the folder's contents, or the commit (``run``).

Invariant: all files of a folder become visible together, or none; a folder is fetched whole before its path is told.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from artifactsync.errors import ConfigurationError, DestinationError
from artifactsync.integrations.held_run import HeldRun
from artifactsync.naming.layout import HOUSE_FOLDER

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from artifactsync.run import Checkpoint, PendingCheckpoint

FOLDER = "checkpoints"
"""Where the folders lie below the run."""


class FolderRun(HeldRun):
    """A run whose checkpoints are folders; see ``HeldRun`` for the arguments."""

    def __init__(self, run_name: str | None = None, **options: Any) -> None:
        super().__init__(run_name, **options)
        self._kept: list[tuple[PendingCheckpoint, Path]] = []

    def save_folder(
        self,
        folder: str | os.PathLike[str],
        *,
        step: int,
        epoch: int | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> PendingCheckpoint:
        """Commit a folder as one checkpoint with the folder's name; returns at once.

        The folder may be deleted as soon as this returns: its files are kept by hard links (copies, where the run's
        local folder is on another disk). Its files must not be written to in place until the result is there; replacing
        them by a rename is fine.

        Args:
            folder: Whole, and with at least one file.
            step: Optimizer steps done.
            epoch: Epochs done.
            metrics: For ``best``.

        Raises:
            ConfigurationError: there is no file in it.
            RunFencedError: a later attempt owns the run.
            DestinationError: the files cannot be kept.
        """
        source = Path(folder).absolute()
        names = sorted(file.relative_to(source).as_posix() for file in source.rglob("*") if file.is_file())
        if not names:
            raise ConfigurationError(f"there is no file in {source}", hint="save first, then publish the folder")
        files = {f"{source.name}/{name}": source / name for name in names}
        return self._save(files, name=source.name, step=step, epoch=epoch, metrics=metrics)

    def save_file(self, file: str | os.PathLike[str], *, name: str, step: int, **label: Any) -> PendingCheckpoint:
        """Commit one file as a checkpoint; see :meth:`save_folder`.

        Args:
            file: Whole.
            name: What the checkpoint is called.
            step: Optimizer steps done.
            **label: ``epoch`` and ``metrics``.
        """
        source = Path(file).absolute()
        return self._save({source.name: source}, name=name, step=step, **label)

    def _save(self, files: Mapping[str, Path], *, name: str, step: int, **label: Any) -> PendingCheckpoint:
        """Commit files by their paths below the folder of checkpoints."""
        self._let_go()
        store = self.run.local_dir / HOUSE_FOLDER / "kept" / f"{self.run.attempt}-{step}-{name}"
        try:
            shutil.rmtree(store, ignore_errors=True)
            for path, file in files.items():
                _keep(file, store / path)
        except OSError as error:
            raise DestinationError(
                f"the files of {name!r} cannot be kept below {self.run.local_dir}: {error.strerror}",
                hint="choose a local_root on the same disk, with room",
                url=str(store),
            ) from error
        kept = {f"{FOLDER}/{path}": store / path for path in files}
        pending = self.run.save_files(kept, step=step, name=name, **label)
        self._kept.append((pending, store))
        return pending

    def fetch_folder(self, is_fit: Callable[[str], bool] = lambda _: True) -> Path | None:
        """Have the newest whole folder on this disk, verified; None if the run has none yet.

        Args:
            is_fit: Whether a checkpoint of this name is of the kind that is looked for.

        Raises:
            DamagedError: no such folder is whole on the remote.
        """
        found = self.newest(lambda checkpoint: folder_of(checkpoint) is not None and is_fit(checkpoint.name))
        if found is None:
            return None
        checkpoint, files = found
        below = f"{FOLDER}/{folder_of(checkpoint)}"
        local = self.run.local_dir / below
        stray = {p for p in local.rglob("*") if p.is_file()} - {Path(file) for file in files.values()}
        for path in stray:  # of an earlier life of this folder: a framework would load it
            warnings.warn(f"{path} is no file of checkpoint {checkpoint.name!r} and was removed", stacklevel=2)
            path.unlink()
        return local

    def close(self, state: Literal["completed", "failed"] = "completed") -> None:
        """See ``HeldRun.close``; lets the kept files go."""
        try:
            super().close(state)
        finally:
            self._let_go()

    def _let_go(self) -> None:
        """Remove what was kept of checkpoints that are settled."""
        kept = self._kept
        self._kept = [(pending, store) for pending, store in kept if not pending.done()]
        for pending, store in kept:
            if pending.done():
                shutil.rmtree(store, ignore_errors=True)
                with contextlib.suppress(OSError):
                    store.parent.rmdir()


def folder_of(checkpoint: Checkpoint) -> str | None:
    """The name of the one folder that all files of a checkpoint lie in; None if there is no such one."""
    parts = [file.path.split("/") for file in checkpoint.files]
    names = {part[1] for part in parts if part[0] == FOLDER and len(part) > 2}  # noqa: PLR2004 - folder, name, file
    return names.pop() if len(names) == 1 and all(len(part) > 2 for part in parts) else None  # noqa: PLR2004


def _keep(source: Path, target: Path) -> None:
    """Have the bytes of ``source`` at ``target``, whatever happens to its name."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(os.path.realpath(source), target)
    except OSError:  # another disk, or one without hard links
        shutil.copyfile(source, target)
