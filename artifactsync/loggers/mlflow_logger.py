"""MLflow: one MLflow run for one run, however many attempts it takes.

Owns: finding or making the MLflow run, and the local database where no server is named. Does not own: handing over
(``service_logger``).

Invariant: the MLflow run is found again by its id, or by a tag that every attempt knows, one killed before its first
checkpoint too.
"""

from __future__ import annotations

import os
import sqlite3
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

from artifactsync.loggers.destination import LogContext, check_package, service_package
from artifactsync.loggers.service_logger import Row, ServiceLogger
from artifactsync.naming.layout import HOUSE_FOLDER

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from pathlib import Path

    from artifactsync.run import Pushed

_TAG = "artifactsync.identity"
_BATCH = 1000
"""Metrics that MLflow takes in one call. Source: mlflow.org/docs/latest/rest-api.html, log-batch, November 2026."""
_STATUSES = {"completed": "FINISHED", "preempted": "KILLED", "failed": "FAILED"}
_PARAMETER_CHARS = 6000
_SNAPSHOT_S = 1.0
"""Least time between two snapshots of the local database; one that takes long is taken less often."""


class MLFlowLogger(ServiceLogger):
    """Logs to an MLflow server, or to a database of the run's own.

    Without a server (neither ``tracking_uri`` nor ``MLFLOW_TRACKING_URI``) metrics go to
    ``{run_name}/mlflow/mlflow.db`` below the local root, which is mirrored:
    ``mlflow ui --backend-store-uri sqlite:///RUN/mlflow/mlflow.db`` shows it, of a pulled run too.

    Args:
        experiment_name: MLflow's experiment; ``MLFLOW_EXPERIMENT_NAME`` or ``artifactsync`` if None.
        run_name: The name shown; the run's name if None.
        tags: Tags of the run.
        tracking_uri: MLflow's server or database.
        rank_zero_only: Only rank 0 logs; else each rank has an MLflow run of its own.
    """

    def __init__(
        self,
        experiment_name: str | None = None,
        run_name: str | None = None,
        tags: Mapping[str, Any] | None = None,
        tracking_uri: str | os.PathLike[str] | None = None,
        rank_zero_only: bool = True,
    ) -> None:
        super().__init__(rank_zero_only=rank_zero_only)
        self._experiment_name = experiment_name
        self._given_name = run_name
        self._tags = dict(tags or {})
        self._given_uri = None if tracking_uri is None else os.fspath(tracking_uri)
        self.tracking_uri = ""
        """Where metrics go, once the run is known."""
        self.run_id: str | None = None
        """MLflow's id of the run, once there is one."""
        self._client: Any = None
        self._entities: Any = None
        self._database: Path | None = None  # ours, and so mirrored
        self._snapshot: Path | None = None
        self._snapshot_at = float("-inf")  # when the next is due

    def flush(self) -> Iterable[Pushed]:
        """Mirror the newest snapshot of the run's own database."""
        if self._context is None or self._snapshot is None or not self._snapshot.is_file():
            return ()
        pushed = self._context.mirror(self._snapshot, remote_path=self._remote_path(), growing=False)
        return () if pushed is None else (pushed,)

    def close(self) -> None:
        """Hand over what is left, end the MLflow run, mirror the database."""
        super().close()
        self.flush()

    def _service_check(self, context: LogContext) -> None:
        name = type(self).__name__
        for module in ("mlflow", "sqlalchemy", "alembic"):  # looked for only: importing it takes seconds
            check_package(module, logger=name, extra="mlflow")
        self.tracking_uri = self._given_uri or os.environ.get("MLFLOW_TRACKING_URI", "")
        if not self.tracking_uri:
            suffix = "" if self._rank_zero_only else f"-rank{context.rank}"
            self._database = context.local_dir.absolute() / "mlflow" / f"mlflow{suffix}.db"
            self._snapshot = context.local_dir.absolute() / HOUSE_FOLDER / self._database.name
            self.tracking_uri = f"sqlite:///{self._database}"

    def _service_connect(self, context: LogContext) -> None:
        if self._database is not None:
            context.bring("mlflow", self._database.parent)
            self._database.parent.mkdir(parents=True, exist_ok=True)
            self._snapshot.parent.mkdir(parents=True, exist_ok=True)  # type: ignore[union-attr]  # there with the database
        name = type(self).__name__
        self._entities = service_package("mlflow.entities", logger=name, extra="mlflow")
        tracking = service_package("mlflow.tracking", logger=name, extra="mlflow")
        self._client = tracking.MlflowClient(tracking_uri=self.tracking_uri)
        experiment_id = self._experiment()
        own_name = self._given_name or context.run_name
        identity = self._identity
        if not self._rank_zero_only:
            own_name, identity = f"{own_name}-rank{context.rank}", f"{identity}-{context.rank}"
        found = self._known_run(experiment_id, identity)
        if found is None:
            tags = {**self._tags, _TAG: identity, "mlflow.runName": own_name}
            found = self._client.create_run(experiment_id, run_name=own_name, tags=tags).info.run_id
        else:
            self._client.update_run(found, status="RUNNING")
        self.run_id = found

    def _experiment(self) -> str:
        name = self._experiment_name or os.environ.get("MLFLOW_EXPERIMENT_NAME") or "artifactsync"
        known = self._client.get_experiment_by_name(name)
        if known is not None:
            return str(known.experiment_id)
        location = None if self._database is None else (self._database.parent / "artifacts").as_uri()
        return str(self._client.create_experiment(name, artifact_location=location))

    def _known_run(self, experiment_id: str, identity: str) -> str | None:
        """The run of an earlier attempt: by the id that the checkpoint knows, or by its tag."""
        found = self._client.search_runs([experiment_id], filter_string=f"tags.`{_TAG}` = '{identity}'")
        ids = [run.info.run_id for run in found]
        return self.run_id if self.run_id in ids else next(iter(ids), None)

    def _service_recorded(self, floor: int) -> Collection[tuple[int, str]]:
        names = self._client.get_run(self.run_id).data.metrics
        points = ((p.step, name) for name in names for p in self._client.get_metric_history(self.run_id, name))
        return {point for point in points if point[0] >= floor}

    def _service_parameters(self, parameters: Mapping[str, Any]) -> None:
        known = self._client.get_run(self.run_id).data.params
        fresh = {name: str(value)[:_PARAMETER_CHARS] for name, value in parameters.items() if name not in known}
        entities = [self._entities.Param(name, value) for name, value in fresh.items()]
        for start in range(0, len(entities), 100):
            self._client.log_batch(self.run_id, params=entities[start : start + 100])

    def _service_send(self, rows: Sequence[Row]) -> None:
        now_ms = int(time.time() * 1000)
        points = [self._entities.Metric(name, value, now_ms, step) for step, row in rows for name, value in row.items()]
        for start in range(0, len(points), _BATCH):
            self._client.log_batch(self.run_id, metrics=points[start : start + _BATCH])

    def _service_confirm(self, sent: Sequence[Row]) -> int:
        if self._database is None:
            return len(sent)
        if not sent or time.monotonic() < self._snapshot_at:
            return 0
        self._take_snapshot()
        return len(sent)

    def _service_finish(self) -> None:
        self._client.set_terminated(self.run_id, _STATUSES[self._end])
        if self._database is not None:
            self._take_snapshot()

    def _service_state(self) -> dict[str, Any]:
        return {"run_id": self.run_id}

    def _service_load(self, state: Mapping[str, Any]) -> None:
        self.run_id = state["run_id"]

    def _take_snapshot(self) -> None:
        """Copy the database as it is at one moment; it is mirrored from there."""
        assert self._database is not None
        assert self._snapshot is not None
        begun = time.monotonic()
        partial = self._snapshot.with_name(f"{self._snapshot.name}.part")
        partial.unlink(missing_ok=True)
        with closing(sqlite3.connect(self._database)) as source, closing(sqlite3.connect(partial)) as target:
            source.backup(target)
        partial.replace(self._snapshot)
        now = time.monotonic()
        self._snapshot_at = now + max(_SNAPSHOT_S, 20 * (now - begun))

    def _remote_path(self) -> str:
        assert self._database is not None
        return f"mlflow/{self._database.name}"
