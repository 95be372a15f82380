"""Weights & Biases: one W&B run for one run, however many attempts it takes.

Owns: how rows become W&B history, and the files of W&B below the run. Does not own: handing over (``service_logger``).

Invariant: the W&B run has the run's name, and an id that every attempt knows, one killed before its first checkpoint
too.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from artifactsync.errors import ConfigurationError
from artifactsync.loggers.destination import LogContext, service_package
from artifactsync.loggers.service_logger import Row, ServiceLogger
from artifactsync.loggers.wandb_file import HistoryReader, read_history

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from artifactsync.run import Pushed

_FLUSH_S = 1.0
"""How often W&B writes its file: what a killed process had not written is lost to whoever looks before the resume."""


class WandBLogger(ServiceLogger):
    """Logs to Weights & Biases; its files lie at ``{run_name}/wandb`` below the local root, and are mirrored.

    ``WANDB_MODE=offline`` works without a network; ``wandb sync`` of the files, of a pulled run too, sends them later:
    all parts belong to one W&B run.

    Args:
        project: W&B's project.
        group: Its group of runs.
        name: The name shown; the run's name if None.
        entity: W&B's user or team.
        tags: Tags of the run.
        log_artifacts: Log the files of the run that are mirrored as a W&B artifact of references, at the end.
        rank_zero_only: Only rank 0 logs; else each rank has a W&B run of its own, in a group of the run's name.
        init_kwargs: More arguments of ``wandb.init``.
    """

    _merges_steps = True

    def __init__(
        self,
        project: str | None = None,
        group: str | None = None,
        name: str | None = None,
        entity: str | None = None,
        tags: Sequence[str] | None = None,
        log_artifacts: bool = False,
        rank_zero_only: bool = True,
        init_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(rank_zero_only=rank_zero_only)
        self._settings = {"project": project, "group": group, "name": name, "entity": entity, "tags": tags}
        self._init = dict(init_kwargs or {})
        self._log_artifacts = log_artifacts
        self._wandb: Any = None
        self.run: Any = None
        """The ``wandb`` run, once logging has begun; None if W&B could not be started."""
        self._folder = Path()
        self._id = ""
        self._skip_below = 0
        self._reader: HistoryReader | None = None
        self._last_written = -1

    def start(self, *, resumed_at: int | None) -> None:
        """Start the W&B run, on this thread: ``wandb.run`` is there afterwards.

        Raises:
            ConfigurationError: W&B wants to know who you are.
        """
        context = self._context
        if context is None:
            return
        self._identity = self._identity or context.identity()
        context.bring("wandb", self._folder)
        for earlier in sorted(self._folder.glob("*run-*/run-*.wandb")):
            if not earlier.parent.is_symlink():  # W&B's own link to the newest
                context.mirror(earlier, remote_path=f"wandb/{earlier.parent.name}/{earlier.name}")
        self.run = self._started(context)
        self._skip_below = int(self.run.step)  # what the server has; 0 offline
        super().start(resumed_at=resumed_at)

    def flush(self) -> Iterable[Pushed]:
        """Mirror W&B's file as it is."""
        return () if self.run is None else self._mirror_file()

    def close(self) -> None:
        """Hand over what is left, end the W&B run, mirror its files."""
        if self.run is None:
            return
        super().close()
        assert self._context is not None
        self._mirror_file()
        own = self._own_file()
        if own is not None:
            for path in sorted(own.parent.joinpath("files").rglob("*")):
                if path.is_file() and not path.is_symlink():
                    self._context.mirror(path, growing=False)
        self.run = None

    def _service_check(self, context: LogContext) -> None:
        self._wandb = service_package("wandb", logger=type(self).__name__, extra="wandb")
        self._folder = context.local_dir / "wandb"

    def _service_recorded(self, floor: int) -> Collection[tuple[int, str]]:
        own, recorded = self._own_file(), set()
        for path in self._folder.glob(f"*run-*-{self._id}/run-{self._id}.wandb"):
            if path != own:
                recorded |= {(step, name) for step, row in read_history(path) if step >= floor for name in row}
        return recorded

    def _service_parameters(self, parameters: Mapping[str, Any]) -> None:
        self.run.config.update(dict(parameters), allow_val_change=True)

    def _service_send(self, rows: Sequence[Row]) -> None:
        for step, row in rows:
            if step >= self._skip_below:
                self.run.log(row, step=step, commit=True)

    def _service_confirm(self, sent: Sequence[Row]) -> int:
        own = self._own_file()
        if own is None or not sent:
            return 0
        self._reader = self._reader or HistoryReader(own)
        self._last_written = max([self._last_written, *(step for step, _ in self._reader.read())])
        return sum(step <= max(self._last_written, self._skip_below - 1) for step, _ in sent)

    def _service_finish(self) -> None:
        if self._log_artifacts:
            self._log_references()
        if self._end == "preempted":
            self.run.mark_preempting()
        self.run.finish(exit_code=0 if self._end == "completed" else 1)

    def _started(self, context: LogContext) -> Any:
        self._id = self._identity[:16] + ("" if self._rank_zero_only else f"-rank{context.rank}")
        folder = self._folder.parent.absolute()
        folder.mkdir(parents=True, exist_ok=True)
        given = dict(self._init)
        own_settings = _plain(given.pop("settings", None))
        if "x_transaction_log_flush_interval" in self._wandb.Settings.model_fields:  # older ones write when they like
            own_settings.setdefault("x_transaction_log_flush_interval", _FLUSH_S)
        settings = self._wandb.Settings(**own_settings)
        rank_name = context.run_name if self._rank_zero_only else f"{context.run_name}-rank{context.rank}"
        arguments = {
            **self._settings,
            "name": self._settings["name"] or rank_name,
            "group": self._settings["group"] or (None if self._rank_zero_only else context.run_name),
            "dir": str(folder),
            "id": self._id,
            "resume": "allow",
            "settings": settings,
            **given,
        }
        self._id = str(arguments["id"])
        try:
            return self._wandb.init(**arguments)
        except self._wandb.errors.UsageError as error:
            raise ConfigurationError(
                f"W&B cannot be used: {error}", hint="run `wandb login`, set WANDB_API_KEY, or set WANDB_MODE=offline"
            ) from error
        except self._wandb.errors.Error as error:
            self._trouble = error
            self._tell()
            return self._wandb.init(**{**arguments, "mode": "offline"})

    def _own_file(self) -> Path | None:
        path = None if self.run is None else Path(self.run.settings.sync_file)
        return path if path is not None and path.is_file() else None

    def _mirror_file(self) -> tuple[Pushed, ...]:
        assert self._context is not None
        own = self._own_file()
        if own is None:
            return ()
        remote_path = f"wandb/{own.parent.name}/{own.name}"
        pushed = self._context.mirror(own, remote_path=remote_path)
        return () if pushed is None else (pushed,)

    def _log_references(self) -> None:
        assert self._context is not None
        artifact = self._wandb.Artifact(f"{self._context.run_name}-files", type="run-files")
        artifact.add_reference(self._context.local_dir.absolute().as_uri(), checksum=False)
        self.run.log_artifact(artifact)


def _plain(settings: Any) -> dict[str, Any]:
    """Settings given as a dict, or as ``wandb.Settings``."""
    if settings is None:
        return {}
    return dict(settings) if isinstance(settings, dict) else dict(settings.model_dump(exclude_unset=True))
