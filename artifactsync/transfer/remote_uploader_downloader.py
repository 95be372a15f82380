"""Files to and from a remote by name, as Composer's class of the same name does it.

Owns: ``RemoteUploaderDownloader``: how a remote file name becomes a key, and which store and queue serve it. Does not
own: uploading (``queue``), downloading (``download``), templates (``naming``).

Invariant: upload, download and listing make a key from a name in the same way, and nothing is prefixed silently.
"""

from __future__ import annotations

import logging
import os
import threading
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from artifactsync.errors import ArtifactSyncError, ConfigurationError, TemplateError, redact_url
from artifactsync.naming import format_name, render_path, resolve_run_name, validate_run_name
from artifactsync.transfer import at_exit
from artifactsync.transfer.download import download_file
from artifactsync.transfer.queue import UploadQueue

if TYPE_CHECKING:
    from collections.abc import Mapping

    from typing_extensions import Self

    from artifactsync.stores.protocol import Store
    from artifactsync.transfer.patience import Patience
    from artifactsync.transfer.upload import Upload, UploadStatus

_log = logging.getLogger("artifactsync.transfer")

_NAME_FIELD = "{remote_file_name}"
_KNOWN_SCHEMES = frozenset({"file", "local", "memory", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "azure"})
_RANK_VARIABLES = {
    "rank": ("RANK", "0"),
    "local_rank": ("LOCAL_RANK", "0"),
    "world_size": ("WORLD_SIZE", "1"),
    "local_world_size": ("LOCAL_WORLD_SIZE", "1"),
    "node_rank": ("NODE_RANK", "0"),
}


class RemoteUploaderDownloader:
    """Uploads files in the background and downloads them, by remote file name.

    The key of a file below the remote is ``file_path_format_string`` with ``{remote_file_name}`` filled in. The remote
    file name is a template itself and usually begins with ``{run_name}/``. Making one touches no network; the first
    use does. Use it in a ``with``, or ``close()`` it; what is forgotten is uploaded when the interpreter ends.

    Args:
        remote: The root URI (``s3://bucket/prefix``, a plain path …), or an open ``Store``, which stays the caller's.
        run_name: The run's name; None takes the trainer's (``bind_run_name``), else ``ARTIFACTSYNC_RUN_NAME``,
            ``RUN_NAME`` or a generated one when it is first needed.
        file_path_format_string: Template of a key, with ``{remote_file_name}`` once.
        storage_options: As for fsspec's file system of the remote's scheme.
        max_concurrency: Files uploaded at a time; if more than one, small ones (64 KiB) may be up to 64 at a time.
        bandwidth_limit: Bytes per second of all uploads together; None is no limit.
        max_pending_files: When so many uploads wait, a new one fails at once instead of blocking the training.
        patience: How long failing uploads are tried again; hours unless given.

    Raises:
        ConfigurationError: the remote or a limit makes no sense.
        TemplateError: ``file_path_format_string`` is no such template.
        RunNameError: the run name is not valid.
    """

    def __init__(
        self,
        remote: str | os.PathLike[str] | Store,
        *,
        run_name: str | None = None,
        file_path_format_string: str = _NAME_FIELD,
        storage_options: Mapping[str, Any] | None = None,
        max_concurrency: int = 8,
        bandwidth_limit: float | None = None,
        max_pending_files: int = 10_000,
        patience: Patience | None = None,
    ) -> None:
        if file_path_format_string.count(_NAME_FIELD) != 1:
            raise TemplateError(
                f"file_path_format_string {file_path_format_string!r} does not have {_NAME_FIELD} exactly once",
                hint=f"for example 'backups/{_NAME_FIELD}'",
            )
        self._store: Store | None = None
        self._url = ""
        if isinstance(remote, (str, os.PathLike)):
            self._url = os.fspath(remote)
            _check_url(self._url)
        else:
            self._store = remote
        self._is_store_ours = self._store is None
        self._format = file_path_format_string
        self._run_name = None if run_name is None else validate_run_name(run_name)
        self._storage_options = dict(storage_options or {})
        self._lock = threading.Lock()
        self._queue = UploadQueue(
            self._opened if self._store is None else self._store,
            max_concurrency=max_concurrency,
            bandwidth_limit_bytes_per_s=bandwidth_limit,
            max_pending_files=max_pending_files,
            patience=patience,
        )
        format_name(file_path_format_string, **self._values({"remote_file_name": "x"}, run_name="x"))

    @property
    def remote(self) -> str:
        """The root URI, without secrets."""
        return self._store.url if self._store is not None else redact_url(self._url)

    @property
    def run_name(self) -> str:
        """The run's name; asking settles it."""
        with self._lock:
            if self._run_name is None:
                self._run_name = resolve_run_name()
            return self._run_name

    def bind_run_name(self, run_name: str) -> None:
        """Take the trainer's run name, unless this object has one already.

        Raises:
            RunNameError: it is not valid.
        """
        with self._lock:
            if self._run_name is None:
                self._run_name = validate_run_name(run_name)

    def upload_file(
        self,
        remote_file_name: str,
        file_path: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        growing: bool = False,
        **placeholders: object,
    ) -> Upload:
        """Put a file in line for upload and return at once.

        Until it is uploaded, the file may be deleted or replaced by a rename (see ``UploadQueue``).

        Args:
            remote_file_name: A template, e.g. ``{run_name}/checkpoints/ep{epoch}.pt``.
            file_path: The local file.
            overwrite: False fails, in ``result()`` and ``wait()``, if the key has other bytes already. That check is
                atomic where the store can create such a large object in one request.
            growing: The file is append-only; what it has when it is read is sent.
            **placeholders: Values for placeholders; the run's name and the ranks are known.

        Raises:
            ObjectNotFoundError: there is no such file.
            TemplateError: the name cannot be filled in, or is no plain relative path.
            ConfigurationError: this object is closed, or was made by the process that forked this one.
        """
        key = self._key(remote_file_name, placeholders)
        return self._queue.submit(key, file_path, overwrite=overwrite, growing=growing)

    def download_file(
        self,
        remote_file_name: str,
        destination: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        progress_bar: bool = False,
        **placeholders: object,
    ) -> Path:
        """Bring a file here; it becomes visible when it is whole. Call again to continue after an interruption.

        Args:
            remote_file_name: The template that it was uploaded with.
            destination: A file path; folders above it are made.
            overwrite: Whether a file that is there is replaced.
            progress_bar: Whether to show one on stderr, if that is a terminal.
            **placeholders: As in ``upload_file``.

        Returns:
            The destination.

        Raises:
            ObjectNotFoundError: no such remote file.
            AlreadyExistsError: a file is there, and ``overwrite`` is False.
            DestinationError: the destination is a folder, or below a file.
            DiskFullError: no space is left; nothing is at the destination's name.
            DamagedError: the file keeps changing, or bytes are missing.
            TemplateError: the name cannot be filled in.
        """
        key = self._key(remote_file_name, placeholders)
        store = self._opened()
        if progress_bar:
            from artifactsync.transfer.progress import progress_bar as bar  # noqa: PLC0415 - loads rich

            with bar(key, store.head(key).size_bytes) as on_progress:
                download_file(store, key, destination, overwrite=overwrite, on_progress=on_progress)
        else:
            download_file(store, key, destination, overwrite=overwrite)
        return Path(destination)

    def list_remote_files(self, prefix: str = "", **placeholders: object) -> list[str]:
        """The remote file names that begin with ``prefix``, each as ``download_file`` takes it, in order.

        Args:
            prefix: A template, e.g. ``{run_name}/checkpoints/``; a plain string prefix.
            **placeholders: As in ``upload_file``.

        Raises:
            TemplateError: the prefix cannot be filled in.
        """
        values = self._values(placeholders)
        before, after = self._format.split(_NAME_FIELD)
        head, tail = format_name(before, **values), format_name(after, **values)
        start = head + format_name(prefix, **values)
        keys = [info.key for info in self._opened().list(start)]
        return sorted(
            key[len(head) : len(key) - len(tail)] for key in keys if key.endswith(tail) and not key.endswith("/")
        )

    def status(self) -> UploadStatus:
        """Pending files and bytes, rate, eta, last error; never blocks on the network."""
        return self._queue.status()

    def wait(self, timeout: float | None = None) -> None:
        """Wait until everything uploaded so far is durable.

        Args:
            timeout: Seconds to wait at most; None waits as long as it takes.

        Raises:
            UploadError: an upload failed for good and was not raised before; names key, cause and attempts.
            AlreadyExistsError: the one failure is an upload without ``overwrite`` of a key that exists.
            WaitTimeoutError: not all is durable in time; it goes on.
        """
        self._queue.wait(timeout)

    def close(self, timeout: float | None = None) -> None:
        """Wait as ``wait`` does, then release everything. Idempotent.

        Args:
            timeout: Seconds to wait at most; what is not durable by then is given up.

        Raises:
            NotDurableError: as ``wait``.
            AlreadyExistsError: as ``wait``.
        """
        try:
            self._queue.close(timeout)
        finally:
            if self._is_store_ours and self._store is not None:
                self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, exc_type: object, exc: BaseException | None, traceback: object) -> None:
        """Close; an exception from within the block is not masked, but what was uploaded is still waited for."""
        if exc is None:
            return self.close()
        try:
            self.close(at_exit.grace_s())
        except ArtifactSyncError as error:
            _log.error("%s", error)  # the exception under way is the one to see
        return None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.remote!r})"

    def _key(self, remote_file_name: str, placeholders: dict[str, object]) -> str:
        if self._format == _NAME_FIELD:  # the default: one template, so it is filled in once
            is_plain = "{" not in remote_file_name and "}" not in remote_file_name and not placeholders
            values = {"run_name": self.run_name} if is_plain else self._values(placeholders)
            return render_path(remote_file_name, **values)
        values = self._values(placeholders)
        name = format_name(remote_file_name, **values)
        return render_path(self._format, **{**values, "remote_file_name": name})

    def _values(self, placeholders: Mapping[str, object], run_name: str | None = None) -> dict[str, Any]:
        ranks = {
            name: int(os.environ.get(variable) or default) for name, (variable, default) in _RANK_VARIABLES.items()
        }
        return {**ranks, **placeholders, "run_name": run_name or self.run_name}

    def _opened(self) -> Store:
        """The store, opened on first use."""
        with self._lock:
            if self._store is None:
                from artifactsync.stores import open_store  # noqa: PLC0415 - loads the cloud's library

                self._store = open_store(self._url, self._storage_options)
            return self._store


class ObjectStoreLogger(RemoteUploaderDownloader):
    """The older name of ``RemoteUploaderDownloader``."""

    def __init__(self, *args: Any, **options: Any) -> None:
        warnings.warn("ObjectStoreLogger is now called RemoteUploaderDownloader", DeprecationWarning, stacklevel=2)
        super().__init__(*args, **options)


def _check_url(url: str) -> None:
    """Refuse at once what no store could ever open, without loading any cloud's library."""
    scheme, separator, rest = url.partition("://")
    if not url or (separator and not rest.strip("/") and scheme != "memory"):
        raise ConfigurationError(
            f"the remote {url!r} names no place", hint="for example s3://bucket/prefix, or a folder", url=url or None
        )
    if not separator or scheme in _KNOWN_SCHEMES:
        return
    from fsspec.registry import available_protocols  # noqa: PLC0415 - not needed for the usual schemes

    if scheme not in available_protocols():
        raise ConfigurationError(
            f"there is no kind of remote called {scheme!r}",
            hint="use s3://, gs://, az://, file://, memory://, a plain path, or any protocol of fsspec",
            url=url,
        )
