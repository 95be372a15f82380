"""MosaicML Composer: its uploader's drop-in, and a checkpoint saver that commits to a run and never holds training up.

Owns: ``RemoteUploaderDownloader`` with Composer's arguments, and ``ArtifactSyncCheckpointSaver``. Does not own: what is
in Composer's checkpoints, or when it saves; uploads (``transfer``), commits (``run``).

Invariant: keys are those that Composer's own class makes, so that what it left can be found, and the other way round.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from artifactsync.errors import ConfigurationError, MissingPackageError

try:
    from composer.callbacks import CheckpointSaver
    from composer.loggers import LoggerDestination
except ModuleNotFoundError as missing:
    raise MissingPackageError(
        "artifactsync.integrations.composer needs Composer",
        hint="pip install mosaicml, which wants a torch of its own: see docs/from-composer.md",
    ) from missing

from artifactsync.integrations.folders import FOLDER, FolderRun
from artifactsync.transfer.remote_uploader_downloader import RemoteUploaderDownloader as _Files

if TYPE_CHECKING:
    from collections.abc import Mapping

    from composer.core import State
    from composer.loggers import Logger

_NOT_OURS = ("bucket", "host", "container", "prefix", "transfer_config")


class RemoteUploaderDownloader(LoggerDestination):  # type: ignore[misc]  # Composer ships no types to everybody
    """Composer's class of this name, with its arguments: replace the import, and nothing else.

    Files are sent by threads behind training and tried again for hours, not three times; they are not copied to a
    staging folder.

    Args:
        bucket_uri: ``s3://bucket``, ``gs://bucket``, a folder, or any remote of artifactsync.
        backend_kwargs: Composer's; ``prefix`` is heeded, the rest are options of the store.
        file_path_format_string: Template of a key, with ``{remote_file_name}``.
        num_concurrent_uploads: Files at a time.
        upload_staging_folder: Not needed, and not used.
        use_procs: Not needed, and not used: hashing and sending leave the interpreter to training.
        num_attempts: Not used: an outage is outlasted.
    """

    def __init__(
        self,
        bucket_uri: str,
        backend_kwargs: Mapping[str, Any] | None = None,
        file_path_format_string: str = "{remote_file_name}",
        num_concurrent_uploads: int = 1,
        upload_staging_folder: str | None = None,
        use_procs: bool = True,
        num_attempts: int = 3,
    ) -> None:
        del upload_staging_folder, use_procs, num_attempts
        if num_concurrent_uploads < 1:
            raise ConfigurationError("num_concurrent_uploads must be >= 1", hint="uploads always go on behind training")
        options = dict(backend_kwargs or {})
        remote = "/".join(filter(None, (bucket_uri.rstrip("/"), str(options.get("prefix") or "").strip("/"))))
        options = {name: value for name, value in options.items() if name not in _NOT_OURS}
        self._files = _Files(
            remote,
            file_path_format_string=file_path_format_string,
            storage_options=options,
            max_concurrency=max(num_concurrent_uploads, 4),
        )

    def init(self, state: State, logger: Logger) -> None:
        """Learn the run's name."""
        del logger
        self._files.bind_run_name(state.run_name)

    def upload_file(self, state: State, remote_file_name: str, file_path: Path, *, overwrite: bool) -> None:
        """Put a file in line; see ``RemoteUploaderDownloader.upload_file``."""
        del state
        self._files.upload_file(_literal(remote_file_name), file_path, overwrite=overwrite)

    def can_upload_files(self) -> bool:
        """It can."""
        return True

    def download_file(
        self, remote_file_name: str, destination: str, overwrite: bool = False, progress_bar: bool = True
    ) -> None:
        """Bring a file here; see ``RemoteUploaderDownloader.download_file``."""
        self._files.download_file(
            _literal(remote_file_name), destination, overwrite=overwrite, progress_bar=progress_bar
        )

    def get_uri_for_file(self, remote_file_name: str) -> str:
        """The file's whole URL."""
        return f"{self._files.remote}/{self._files._key(_literal(remote_file_name), {})}"  # noqa: SLF001 - one house

    def fit_end(self, state: State, logger: Logger) -> None:
        """Wait until everything is durable.

        Raises:
            NotDurableError: something is not, for good.
        """
        del state, logger
        self._files.wait()

    eval_standalone_end = predict_end = fit_end

    def post_close(self) -> None:
        """Wait, and release everything."""
        self._files.close()


class ArtifactSyncCheckpointSaver(CheckpointSaver):  # type: ignore[misc]  # as above
    """Composer's ``CheckpointSaver``, whose checkpoints are committed to a run behind training.

    Give it to ``Trainer(callbacks=[saver], load_path=saver.load_path())``, without ``save_folder``.

    Args:
        run_name: See ``HeldRun``; give the same to the ``Trainer``.
        remote: Root URI under which runs live; else ``ARTIFACTSYNC_REMOTE``.
        local_root: Local folder of all runs.
        storage_options: What fsspec's file system for the remote takes.
        retention: What stays on the remote; None keeps every checkpoint.
        run_options: More that ``Run`` takes.
        **saving: What ``CheckpointSaver`` takes: ``save_interval``, ``num_checkpoints_to_keep``, ``weights_only``, …
    """

    num_checkpoints_to_keep: int

    def __init__(
        self,
        run_name: str | None = None,
        *,
        remote: Any = None,
        local_root: Any = None,
        storage_options: Mapping[str, Any] | None = None,
        retention: Any = None,
        run_options: Mapping[str, Any] | None = None,
        **saving: Any,
    ) -> None:
        self.held = FolderRun(
            run_name,
            remote=remote,
            local_root=local_root,
            storage_options=storage_options,
            retention=retention,
            **(run_options or {}),
        )
        saving.setdefault("filename", "ep{epoch}-ba{batch}-rank{rank}.pt")
        folder = Path(local_root or "runs") / self.held.run_name / FOLDER
        super().__init__(folder=str(folder), remote_file_name=None, latest_remote_file_name=None, **saving)

    def load_path(self) -> str | None:
        """The newest checkpoint's file on this disk, verified, for ``Trainer``; None if the run has none yet.

        Raises:
            DamagedError: no checkpoint of the run is whole.
            RunIsLiveError: another process that is alive owns the run.
        """
        found = self.held.newest(lambda checkpoint: any(f.path.endswith(".pt") for f in checkpoint.files))
        if found is None:
            return None
        checkpoint, files = found
        return str(files[next(f.path for f in checkpoint.files if f.path.endswith(".pt"))].absolute())

    def fit_start(self, state: State, logger: Logger) -> None:
        """Claim the run, before any work is done in vain.

        Raises:
            ConfigurationError: the checkpoints would be sharded.
        """
        if state.fsdp_sharded_state_dict_enabled:
            raise ConfigurationError(
                "sharded checkpoints of Composer are not committed by this callback",
                hint="use its RemoteUploaderDownloader, and `artifactsync adopt` afterwards; or state_dict_type='full'",
            )
        if self.held.is_writer:
            self.held.run  # noqa: B018 - opens it
        super().fit_start(state, logger)

    def _save_checkpoint(self, state: State, logger: Logger) -> None:
        keep, self.num_checkpoints_to_keep = self.num_checkpoints_to_keep, -1  # first it is kept for the upload
        before = len(self.saved_checkpoints)
        try:
            super()._save_checkpoint(state, logger)
        finally:
            self.num_checkpoints_to_keep = keep
        if len(self.saved_checkpoints) > before and self.held.is_writer:
            at = state.timestamp
            self.held.save_file(
                self.saved_checkpoints[-1],
                name=f"ep{at.epoch.value}-ba{at.batch.value}",
                step=at.batch.value,
                epoch=at.epoch.value,
                metrics={name: metric.compute() for name, metric in (state.train_metrics or {}).items()},
            )
        if keep >= 0:
            self._rotate_checkpoints(sharding_enabled=False)

    def fit_end(self, state: State, logger: Logger) -> None:
        """Wait until everything is durable.

        Raises:
            NotDurableError: something is not.
        """
        del state, logger
        if self.held.is_open:
            self.held.run.wait()

    def post_close(self) -> None:
        """Write down how the run ended, and let it go."""
        super().post_close()
        self.held.close()


def _literal(name: str) -> str:
    """A name that Composer has filled in, as a template that gives it back."""
    return name.replace("{", "{{").replace("}", "}}")
