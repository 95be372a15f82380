"""Comet: one experiment for one run, however many attempts it takes.

Owns: how rows become Comet metrics, and the offline files below the run. Does not own: handing over
(``service_logger``), the format of archives (``comet_archive``).

Invariant: the experiment has the run's name, and a key that every attempt knows, one killed before its first
checkpoint too. Offline, each attempt is one archive; what a killed one left becomes its archive when the run goes on.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from artifactsync.loggers.comet_archive import MESSAGES, archive_left, read_metrics
from artifactsync.loggers.destination import LogContext, check_package, service_package
from artifactsync.loggers.service_logger import Row, ServiceLogger

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from artifactsync.run import Pushed

_ARCHIVE = re.compile(r"(?:-a[0-9]{6})?\.zip")
_ENDS = {"preempted": "was preempted", "failed": "failed"}
_EMPTY_ZIP_BYTES = 22
_OFF = frozenset({"0", "false", "no", "off"})


class CometMLLogger(ServiceLogger):
    """Logs to Comet, or offline to ``{run_name}/comet`` below the local root, which is mirrored.

    Offline, ``comet upload RUN/comet/*.zip`` sends the archives later, of a pulled run too: all of them belong to one
    experiment.

    Args:
        workspace: Comet's workspace.
        project_name: Its project.
        log_code: Whether Comet keeps the code.
        log_graph: Whether Comet keeps the model's graph.
        name: The name shown; the run's name if None.
        rank_zero_only: Only rank 0 logs; else each rank has an experiment of its own.
        exp_kwargs: More arguments of ``comet_ml.ExperimentConfig``, or of ``OfflineExperiment``.
        offline: Write archives and send nothing. None does so if ``COMET_START_ONLINE`` is 0, or no API key is found.
    """

    def __init__(
        self,
        workspace: str | None = None,
        project_name: str | None = None,
        log_code: bool = False,
        log_graph: bool = False,
        name: str | None = None,
        rank_zero_only: bool = True,
        exp_kwargs: Mapping[str, Any] | None = None,
        *,
        offline: bool | None = None,
    ) -> None:
        super().__init__(rank_zero_only=rank_zero_only)
        self._workspace, self._project = workspace, project_name
        self._given_name = name
        self._options = {"log_code": log_code, "log_graph": log_graph, **(exp_kwargs or {})}
        self._offline = offline
        self._comet: Any = None
        self.experiment: Any = None
        """The Comet experiment, once there is one."""
        self._key = ""
        self._folder = Path()
        self._open: Path | None = None  # where the running offline experiment writes
        self._archive: Path | None = None

    def flush(self) -> Iterable[Pushed]:
        """Mirror the messages of a running offline experiment."""
        messages = None if self._open is None else self._open / MESSAGES
        if self._context is None or messages is None or not messages.is_file():
            return ()
        pushed = self._context.mirror(messages)
        return () if pushed is None else (pushed,)

    def close(self) -> None:
        """Hand over what is left, end the experiment, mirror its archive."""
        if self._thread is None:
            return
        super().close()
        if self._context is not None and self._archive is not None and self._archive.is_file():
            self._context.mirror(self._archive, growing=False)

    def _service_check(self, context: LogContext) -> None:
        check_package("comet_ml", logger=type(self).__name__, extra="comet")
        self._folder = context.local_dir.absolute() / "comet"

    def _service_connect(self, context: LogContext) -> None:
        self._comet = service_package("comet_ml", logger=type(self).__name__, extra="comet")
        own_name = self._given_name or context.run_name
        self._key = self._identity
        if not self._rank_zero_only:
            own_name = f"{own_name}-rank{context.rank}"
            self._key = f"{self._identity[:-4]}{context.rank:04x}"
        if self._is_offline():
            self.experiment = self._offline_experiment(context)
        else:
            config = self._comet.ExperimentConfig(**self._options)
            self.experiment = self._comet.start(
                workspace=self._workspace,
                project_name=self._project,
                experiment_key=self._key,
                mode="get_or_create",
                online=True,
                experiment_config=config,
            )
        self.experiment.set_name(own_name)

    def _is_offline(self) -> bool:
        if self._offline is not None:
            return self._offline
        if os.environ.get("COMET_START_ONLINE", "").strip().lower() in _OFF:
            return True
        return self._comet.config.get_api_key(None, self._comet.get_config()) is None

    def _offline_experiment(self, context: LogContext) -> Any:
        context.bring("comet", self._folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        parts = self._archive_leftovers(context)
        number = max([context.attempt, *(int(part.stem[-6:]) + 1 for part in parts if "-a" in part.name)])
        is_first = not parts and not self._is_known
        label = "first" if is_first else f"a{number:06d}"
        place = self._folder / "open" / label
        place.mkdir(parents=True, exist_ok=True)
        kind = self._comet.OfflineExperiment if is_first else self._comet.ExistingOfflineExperiment
        with _temporary_folders_in(place):
            experiment = kind(
                workspace=self._workspace,
                project_name=self._project,
                experiment_key=self._key,
                offline_directory=str(self._folder),
                **self._options,
            )
        self._open = Path(experiment.tmpdir)
        self._archive = self._archive_of(label)
        if not is_first:  # Comet would end its name with random letters, and has begun that file
            self._folder.joinpath(f"{self._key}-{experiment.offline_archive_name_suffix}.zip").unlink(missing_ok=True)
            experiment.offline_archive_name_suffix = label
        return experiment

    def _archive_of(self, label: str) -> Path:
        return self._folder / (f"{self._key}.zip" if label == "first" else f"{self._key}-{label}.zip")

    def _archive_leftovers(self, context: LogContext) -> list[Path]:
        """Make archives of what killed attempts left; the archives of all earlier attempts, oldest first."""
        for other in self._folder.glob(f"{self._key}*.zip"):
            if other.stat().st_size <= _EMPTY_ZIP_BYTES:
                other.unlink()  # Comet begins an archive at once, and a killed process left it so
        left = sorted((self._folder / "open").glob("*/*"), key=lambda folder: (folder.parent.name != "first", folder))
        for folder in left:
            archive = self._archive_of(folder.parent.name)
            if archive.is_file() or not (folder / MESSAGES).is_file():
                continue
            archive_left(
                folder,
                archive,
                key=self._key,
                is_first=folder.parent.name == "first",
                project=self._project,
                workspace=self._workspace,
            )
            context.mirror(archive, growing=False)
        return self._archives()

    def _archives(self) -> list[Path]:
        found = self._folder.glob(f"{self._key}*.zip")
        return sorted(path for path in found if _ARCHIVE.fullmatch(path.name.removeprefix(self._key)))

    def _service_recorded(self, floor: int) -> Collection[tuple[int, str]]:
        if self._open is None:
            return self._recorded_online(floor)
        return {(step, name) for path in self._archives() for step, name, _ in read_metrics(path) if step >= floor}

    def _recorded_online(self, floor: int) -> Collection[tuple[int, str]]:
        if self._resumed_at is None and self._context is not None and self._context.attempt <= 1:
            return ()
        api = service_package("comet_ml.api", logger=type(self).__name__, extra="comet").API()
        metrics = api.get_experiment_by_key(self._key).get_metrics()
        points = {(int(m["step"]), str(m["metricName"])) for m in metrics if m.get("step") is not None}
        return {point for point in points if point[0] >= floor}

    def _service_parameters(self, parameters: Mapping[str, Any]) -> None:
        self.experiment.log_parameters({name: str(value) for name, value in parameters.items()})

    def _service_send(self, rows: Sequence[Row]) -> None:
        for step, row in rows:
            self.experiment.log_metrics(row, step=step)
        self.experiment.flush()

    def _service_finish(self) -> None:
        folder, self._open = self._open, None
        if self._end != "completed":  # Comet's own hook for uncaught errors says it so, and nothing public does
            self.experiment._report_experiment_error(f"training {_ENDS[self._end]}", has_crashed=True)  # noqa: SLF001
        self.experiment.end()
        if folder is not None:
            shutil.rmtree(folder.parent, ignore_errors=True)


class _temporary_folders_in:  # noqa: N801  (reads like a function, as contextlib's do)
    """Comet writes an offline experiment into a temporary folder; it shall lie where it survives and is mirrored."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._before: str | None = None

    def __enter__(self) -> None:
        self._before, tempfile.tempdir = tempfile.tempdir, str(self._folder)

    def __exit__(self, *_: object) -> None:
        tempfile.tempdir = self._before
