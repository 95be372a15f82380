"""The checkpoints of a run: handing them over, and taking them up again.

Owns: ``SavingRun``, the half of ``Run`` that saves and resumes. Does not own: who publishes (``writing``), what a
snapshot is (``checkpoint``, which needs torch).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from artifactsync.errors import ConfigurationError
from artifactsync.journal.catalogue import Checkpoint, CheckpointFile
from artifactsync.journal.local_checkpoints import LocalCheckpoint, resumable_locals, write_local_record
from artifactsync.journal.publication import Label, LocalFile, PendingCheckpoint, local_files
from artifactsync.run.torch_backed import state_io
from artifactsync.run.view import RunView
from artifactsync.transfer.courier import begin_courier

if TYPE_CHECKING:
    from artifactsync.journal.attempt import Attempt
    from artifactsync.journal.together import Contribution, Membership
    from artifactsync.run.launch import Launch
    from artifactsync.run.writing import Writing


class SavingRun(RunView):
    """A run as its writer sees its checkpoints; see ``Run`` for the arguments."""

    launch: Launch | None
    """The ranks that save together with this one; None if it saves alone."""

    def __init__(self, run_name: str | None, **where: Any) -> None:
        super().__init__(run_name, **where)
        self._pid = os.getpid()
        self._is_closed = False
        self._writing: Writing | None = None

    def save(
        self,
        state: Any,
        *,
        step: int,
        name: str | None = None,
        epoch: int | None = None,
        batch: int | None = None,
        metrics: Mapping[str, float] | None = None,
        overlap: Any = (),
        per_rank: Collection[str] = (),
        format: Literal["pt", "safetensors"] = "pt",  # noqa: A002 - the word that users look for
    ) -> PendingCheckpoint:
        """Take a snapshot of training state, and publish it behind the training loop. Needs torch.

        Args:
            state: Nested dicts, lists and tuples of tensors, numbers and strings, or of objects with ``state_dict()``.
                All of it may be changed as soon as this returns, unless ``overlap`` says otherwise.
            step: Optimizer steps done; orders checkpoints.
            name: Its name; ``ep{epoch}-ba{batch}`` unless given.
            epoch: Epochs done, 0 unless given.
            batch: Batches done, ``step`` unless given.
            metrics: For ``best``.
            overlap: Optimizers. Their parameters and their state are copied during the next forward and backward, and
                their ``step`` waits for what is left; everything else is copied before this returns. Whatever else
                changes those tensors calls ``wait_copied`` first; if it does not, the checkpoint fails and says so.
            per_rank: Where several ranks save together (every one calls this): names of the entries of ``state`` that
                each has for itself, as its position in the data. Of the rest, rank 0's is saved, or the shards of all.
            format: ``pt``: an ordinary file of ``torch.save``. ``safetensors``: an ordinary file of that format, for
                weights alone: ``state`` is a flat dict of tensors, none of which share memory, or a module of such.

        Raises:
            RunFencedError: a later attempt owns the run.
            ConfigurationError: the state holds something that could not be loaded again safely, or that the format
                cannot hold; names where.
            MissingPackageError: torch is not installed.
        """
        began = time.monotonic()
        pending: PendingCheckpoint = state_io().save_state(
            self,
            state,
            step=step,
            name=name,
            epoch=epoch,
            batch=batch,
            metrics=metrics,
            per_rank=per_rank,
            overlap=overlap,
            format=format,
        )
        pending.timing.stalled(time.monotonic() - began)
        return pending

    def prepare(self, state: Any) -> None:
        """Have memory, and a process to send with, at hand, so that the first ``save`` is as quick as any other.

        Call it once everything is there, after the first step of the optimizers: that makes their state.

        Args:
            state: As for ``save``, or a part of it.

        Raises:
            ConfigurationError: the state holds something that could not be loaded again safely; names where.
        """
        begin_courier(self._store)
        state_io().prepare_state(self, state)

    def wait_copied(self) -> None:
        """Hold the caller until the last ``save`` with ``overlap`` is copied, before it changes what was saved."""
        state_io().wait_copied(self)

    def resume(
        self,
        state: Any = None,
        *,
        map_location: Any = "cpu",
        strict: bool = True,
        per_rank: Collection[str] = (),
        only: str | Sequence[str] | None = None,
    ) -> Any:
        """Load the newest whole checkpoint of the run; None if it has none. Needs torch.

        Args:
            state: Objects of the same shape as were saved; those with ``load_state_dict`` and tensors are loaded in
                place.
            map_location: Where tensors go, as for ``torch.load``.
            strict: Whether missing or unexpected keys are errors.
            per_rank: As for ``save``: left out where another number of ranks saved.
            only: What is loaded, None for everything: names of what was saved, or shell patterns of the keys that lead
                to it, joined by ``/`` (``"model"``, ``("model/encoder.*", "step")``). Of a ``.pt`` file that is not on
                this disk, only those tensors' bytes are moved; what is verified then is the CRC-32 that ``torch.save``
                wrote for each tensor's storage and for the list of tensors, which tells damage but no forgery. The
                file's sha256 in the journal, which a whole load checks, cannot be checked of a part. Other files
                (shards, safetensors) come whole, with their sha256.

        Returns:
            ``Resumed`` with ``.checkpoint``, ``.state`` (what was saved) and ``.step``.

        Raises:
            DamagedError: every checkpoint of the run is damaged.
            ConfigurationError: the checkpoint does not fit ``state``, or has nothing that ``only`` names.
        """
        return state_io().resume_state(
            self, state, map_location=map_location, strict=strict, per_rank=per_rank, only=only
        )

    def save_files(
        self,
        files: Iterable[str | os.PathLike[str]] | Mapping[str, str | os.PathLike[str]],
        *,
        step: int,
        name: str | None = None,
        epoch: int | None = None,
        batch: int | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> PendingCheckpoint:
        """Publish whole local files as one checkpoint: all of them become visible at once, or none.

        Args:
            files: Local paths below ``local_dir`` (same path on the remote), or ``{path below the run: local path}``.
                They must not change until the result is there.
            step: Optimizer steps done; orders checkpoints.
            name: Its name; ``ep{epoch}-ba{batch}`` unless given.
            epoch: Epochs done, 0 unless given.
            batch: Batches done, ``step`` unless given.
            metrics: For ``best``.

        Raises:
            ObjectNotFoundError: a file is not there.
            RunFencedError: a later attempt owns the run.
        """
        by_path = files if isinstance(files, Mapping) else {self._path_below(Path(file)): file for file in files}
        described = local_files(by_path)
        return self.save_prepared(lambda: described, step=step, name=name, epoch=epoch, batch=batch, metrics=metrics)

    def save_prepared(
        self,
        prepare: Callable[[], Sequence[LocalFile]],
        *,
        step: int,
        name: str | None = None,
        epoch: int | None = None,
        batch: int | None = None,
        metrics: Mapping[str, float] | None = None,
        contribution: Contribution | None = None,
        confirm: Callable[[], None] | None = None,
    ) -> PendingCheckpoint:
        """Publish files that are still to be written: ``prepare`` writes them on the publication thread.

        Args:
            prepare: Writes the files and describes them. Called once; of several checkpoints that wait, that of the
                greatest step goes first.
            step: See ``save_files``; likewise the rest.
            name: ″
            epoch: ″
            batch: ″
            metrics: ″
            contribution: What else this rank says or does, where several save together.
            confirm: Called when every file is durable and nothing is committed yet; raises if the files are not what
                they were taken for. Only where one process saves alone.

        Raises:
            RunFencedError: a later attempt owns the run.
        """
        epoch, batch = epoch or 0, step if batch is None else batch
        label = Label(
            name=name or f"ep{epoch}-ba{batch}", step=step, epoch=epoch, batch=batch, metrics=dict(metrics or {})
        )
        return self._writable().submit(prepare, label, contribution=contribution, confirm=confirm)

    def record_local(
        self,
        files: Sequence[LocalFile],
        *,
        step: int,
        name: str,
        epoch: int,
        batch: int,
        metrics: Mapping[str, float],
    ) -> None:
        """Note that the files of a checkpoint are whole on this disk: a resume here may take it before it is committed.

        Args:
            files: With their hashes.
            step: As for ``save_prepared``; likewise the rest.
            name: ″
            epoch: ″
            batch: ″
            metrics: ″
        """
        if self._attempt is None or self.launch is not None:  # one rank's files are no whole checkpoint
            return
        entries = tuple(
            CheckpointFile(path=f.path, key=self._layout.artifact(f.path), size=f.size_bytes, sha256=f.sha256 or "")
            for f in files
        )
        label = Label(name=name, step=step, epoch=epoch, batch=batch, metrics=metrics)
        checkpoint = Checkpoint(
            name=label.name,
            step=label.step,
            epoch=label.epoch,
            batch=label.batch,
            attempt=self._attempt.number,
            metrics=label.metrics,
            files=entries,
            committed_at="",
            seq=0,
        )
        write_local_record(self.local_dir, checkpoint, claim_id=self._attempt.claim_id)

    def local_checkpoints(self) -> list[LocalCheckpoint]:
        """Checkpoints on this disk that are newer than every commit, of this very run; newest first, not verified."""
        if self._attempt is None or self.launch is not None:
            return []
        return resumable_locals(self.local_dir, latest=self.latest, catalogue=self.catalogue, run_name=self.name)

    @property
    def _attempt(self) -> Attempt | Membership | None:
        """What the run may write; None where it is only read."""
        return self._writing.attempt if self._writing else None

    def _writable(self) -> Writing:
        if os.getpid() != self._pid:
            raise ConfigurationError(
                f"run {self.name!r} was opened by the process that forked this one",
                hint="save in the process that opened it, or open another run after the fork",
            )
        if self._writing is None or self._is_closed:
            what = "closed" if self._is_closed else "open for reading only"
            raise ConfigurationError(f"run {self.name!r} is {what}", hint="open it anew: Run(name, remote=…)")
        return self._writing

    def _path_below(self, file: Path) -> str:
        try:
            return file.resolve().relative_to(self.local_dir.resolve()).as_posix()
        except ValueError as error:
            raise ConfigurationError(
                f"{file} does not lie below {self.local_dir}", hint="give {path below the run: local path} instead"
            ) from error
