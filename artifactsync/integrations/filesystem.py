"""``artifactsync://RUN/path``: the files of every run by name, for whatever reads through fsspec.

Owns: the words of the URL and the committed view of a run as folders. Does not own: what is committed (``journal``),
bytes (``stores``), open files that read ahead (fsspec).

Invariant: what a path shows is committed, or an artifact; bytes of a checkpoint in flight are never shown, and nothing
can be written. Nothing is cached but the journal, and that only while its newest record is the same.
"""

from __future__ import annotations

import os
import re
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import unquote

from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

from artifactsync.errors import (
    CheckpointNotFoundError,
    ConfigurationError,
    ObjectNotFoundError,
    PermissionDeniedError,
    RunNotFoundError,
)
from artifactsync.journal.contents import read_contents
from artifactsync.journal.log import JournalLog
from artifactsync.journal.tails import LogStore
from artifactsync.naming import validate_run_name
from artifactsync.naming.configuration import choose_remote, find_configuration, storage_options_for
from artifactsync.naming.layout import is_safe
from artifactsync.stores import open_store

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from artifactsync.journal.catalogue import Catalogue, Checkpoint
    from artifactsync.stores.protocol import Store

PROTOCOL = "artifactsync"

_QUERY = re.compile(r"\?checkpoint=([^&?]*)$")
_HINT_READ_ONLY = "save with Run.save, Run.save_files or Run.push, or `artifactsync push`"


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """A file as a path shows it."""

    key: str
    """Where its bytes are."""
    size: int
    """Length in bytes."""
    sha256: str = ""
    """Of a committed file."""
    checkpoint: str = ""
    """Name of its checkpoint."""

    def told(self, name: str) -> dict[str, Any]:
        more = {"sha256": self.sha256, "checkpoint": self.checkpoint} if self.sha256 else {}
        return {"name": name, "size": self.size, "type": "file", "key": self.key, **more}


class RunFileSystem(AbstractFileSystem):  # type: ignore[misc]  # fsspec ships no types
    """Runs as folders, read-only. Registered as ``artifactsync`` by the package's entry point.

    ``artifactsync://`` lists the runs, ``artifactsync://RUN/…`` what is committed in one and its artifacts. A path that
    several checkpoints have, as ``latest.pt`` rewritten by each, shows the newest one's. ``?checkpoint=NAME`` (or
    ``latest``) at the end of a URL shows the files of that checkpoint alone beside the artifacts.

    Args:
        remote: Root URI of the runs; else ``ARTIFACTSYNC_REMOTE``, else the configuration file, as on the command line.
        checkpoint: As ``?checkpoint=``.
        storage_options: What fsspec's file system for the remote takes.
        **options: fsspec's own.

    Raises:
        ConfigurationError: on first use: no remote, or a wrong one.
    """

    protocol: ClassVar[str] = PROTOCOL
    root_marker: ClassVar[str] = ""

    def __init__(
        self,
        remote: str | os.PathLike[str] | None = None,
        *,
        checkpoint: str | None = None,
        storage_options: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self._remote = os.fspath(remote) if remote else None
        self._checkpoint = checkpoint
        self._options = storage_options
        self._lock = threading.Lock()
        self._stores: dict[str, Store] = {}
        self._read: dict[tuple[str, str], Catalogue] = {}

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(each) for each in path]
        text = os.fspath(path)
        for beginning in (f"{PROTOCOL}://", f"{PROTOCOL}::"):
            text = text.removeprefix(beginning)
        return _QUERY.sub("", text).strip("/")

    @staticmethod
    def _get_kwargs_from_urls(path: str) -> dict[str, Any]:
        found = _QUERY.search(path)
        return {"checkpoint": unquote(found[1])} if found else {}

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        """Name, size and type of a file or folder; of a committed file its ``sha256`` and ``checkpoint`` too.

        Raises:
            RunNotFoundError, CheckpointNotFoundError, ObjectNotFoundError: there is none (a FileNotFoundError).
        """
        del kwargs
        path = self._strip_protocol(path)
        run_name, _, below = path.partition("/")
        if not path:
            return _folder("")
        store, log = self._opened(run_name)
        catalogue = self._catalogue(store, log)
        entry = self._committed(catalogue, log).get(below)
        if entry is None:
            files = self._files(store, log, catalogue)
            entry = files.get(below)
            if entry is None and (not below or any(name.startswith(f"{below}/") for name in files)):
                return _folder(path)
        if entry is None:
            raise _nothing(path, store)
        return entry.told(path)

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        """What is directly below a folder, or the file itself; at the root, the runs."""
        del kwargs
        path = self._strip_protocol(path)
        if not path:
            entries = [_folder(name) for name in sorted(self._store().list_folders())]
        else:
            run_name, _, below = path.partition("/")
            store, log = self._opened(run_name)
            files = self._files(store, log, self._catalogue(store, log))
            entries = _children(files, run_name, below)
            if not entries:
                if below in files:
                    entries = [files[below].told(path)]
                elif below:
                    raise _nothing(path, store)
        return entries if detail else [entry["name"] for entry in entries]

    def find(
        self, path: str, maxdepth: int | None = None, withdirs: bool = False, detail: bool = False, **kwargs: Any
    ) -> Any:
        """All files below a folder, from one reading of the journal and one listing."""
        path = self._strip_protocol(path)
        if not path or maxdepth is not None or withdirs:
            return super().find(path, maxdepth=maxdepth, withdirs=withdirs, detail=detail, **kwargs)
        run_name, _, below = path.partition("/")
        store, log = self._opened(run_name)
        files = self._files(store, log, self._catalogue(store, log))
        inside = {
            f"{run_name}/{name}": files[name]
            for name in sorted(files)
            if not below or name == below or name.startswith(f"{below}/")
        }
        return {name: entry.told(name) for name, entry in inside.items()} if detail else list(inside)

    def modified(self, path: str) -> datetime:
        """When the object was written."""
        entry, store, _ = self._file(path)
        modified_at = store.head(entry.key).modified_at
        if modified_at is None:
            raise ConfigurationError(f"{store.url} keeps no times", url=f"{store.url}/{entry.key}")
        return modified_at

    def checksum(self, path: str) -> str:
        """The sha256 of a committed file; of an artifact what tells its versions apart."""
        entry, _, _ = self._file(path)
        return entry.sha256 or str(super().checksum(path))

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        """A file's bytes, or those of a range; negative positions count from the end."""
        del kwargs
        entry, _, source = self._file(path)
        first, stop, _ = slice(start, end).indices(entry.size)
        return source.get(entry.key, start=first, end=stop) if stop > first else b""

    def get_file(self, rpath: str, lpath: Any, **kwargs: Any) -> None:
        """Download a file. ``Run.pull`` also verifies it."""
        if self.isdir(rpath):
            Path(lpath).mkdir(parents=True, exist_ok=True)
            return
        super().get_file(rpath, lpath, **kwargs)

    def _open(self, path: str, mode: str = "rb", block_size: int | None = None, **kwargs: Any) -> Any:
        if mode != "rb":
            raise _refused(self._strip_protocol(path))
        entry, _, source = self._file(path)
        kwargs = {name: value for name, value in kwargs.items() if name in {"cache_type", "cache_options"}}
        kwargs.setdefault("cache_type", "readahead")
        return _RunFile(self, self._strip_protocol(path), entry, source, block_size or "default", **kwargs)

    def open(self, path: str, mode: str = "rb", *args: Any, **kwargs: Any) -> Any:
        """Open a file for reading.

        Raises:
            PermissionDeniedError: for writing.
        """
        if set(mode) & set("wax+"):
            raise _refused(self._strip_protocol(path))
        return super().open(path, mode, *args, **kwargs)

    def _refuse(self, path: Any, *_: Any, **__: Any) -> Any:
        raise _refused(str(path))

    pipe_file = put_file = cp_file = rm_file = rm = mv = touch = _refuse

    def _file(self, path: str) -> tuple[_Entry, Store, LogStore]:
        """The file at ``path``, and where its bytes can be read."""
        path = self._strip_protocol(path)
        run_name, _, below = path.partition("/")
        if not below:
            raise ObjectNotFoundError(f"{path or 'the root'} is a folder", hint="give the path of a file below it")
        store, log = self._opened(run_name)
        catalogue = self._catalogue(store, log)
        entry = self._committed(catalogue, log).get(below)
        if entry is not None:
            return entry, store, LogStore(store, log.layout, {})
        contents = read_contents(store, log.layout, catalogue)
        for artifact in contents.artifacts:
            if artifact.path == below:
                found = _Entry(key=artifact.key, size=artifact.size)
                return found, store, LogStore(store, log.layout, contents.logs)
        raise _nothing(path, store)

    def _files(self, store: Store, log: JournalLog, catalogue: Catalogue) -> dict[str, _Entry]:
        """Everything that is shown of a run, by path."""
        contents = read_contents(store, log.layout, catalogue)
        if contents.is_empty:
            raise RunNotFoundError(
                f"there is no run {log.layout.run_name!r} at {store.url}",
                hint="see `artifactsync ls` for the runs there",
                url=f"{store.url}/{log.layout.run_name}",
            )
        shown = {a.path: _Entry(key=a.key, size=a.size) for a in contents.artifacts if is_safe(a.path)}
        return {**shown, **self._committed(catalogue, log)}

    def _committed(self, catalogue: Catalogue, log: JournalLog) -> dict[str, _Entry]:
        if self._checkpoint is None:
            chosen = list(reversed(catalogue.newest_first()))
        else:
            chosen = [_chosen(catalogue, self._checkpoint, log)]
        return {
            file.path: _Entry(key=file.key, size=file.size, sha256=file.sha256, checkpoint=checkpoint.name)
            for checkpoint in chosen
            for file in checkpoint.files
        }

    def _catalogue(self, store: Store, log: JournalLog) -> Catalogue:
        head = log.find_head()
        known = self._read.get((store.url, log.layout.run_name))
        if head is None or known is None or known.seq != head.record.seq:
            known = log.read_catalogue()
            with self._lock:
                self._read[store.url, log.layout.run_name] = known
        return known

    def _opened(self, run_name: str) -> tuple[Store, JournalLog]:
        store = self._store()
        return store, JournalLog(store, validate_run_name(run_name))

    def _store(self) -> Store:
        remote, options = self._remote, self._options
        if remote is None:
            configuration = find_configuration(Path.cwd())
            remote = choose_remote(None, os.environ, configuration)
            options = options or storage_options_for(remote, configuration)
        with self._lock:
            if remote not in self._stores:
                self._stores[remote] = open_store(remote, options)
            return self._stores[remote]


class _RunFile(AbstractBufferedFile):  # type: ignore[misc]  # fsspec ships no types
    """A file of a run, open for reading; what it had when it was opened."""

    def __init__(
        self, fs: RunFileSystem, path: str, entry: _Entry, source: LogStore, block_size: Any, **kwargs: Any
    ) -> None:
        self._entry, self._source = entry, source
        super().__init__(fs, path, "rb", block_size=block_size, size=entry.size, **kwargs)

    def _fetch_range(self, start: int, end: int) -> bytes:
        return self._source.get(self._entry.key, start=start, end=end)


def _chosen(catalogue: Catalogue, name: str, log: JournalLog) -> Checkpoint:
    newest_first = catalogue.newest_first()
    found = newest_first[:1] if name == "latest" else [each for each in newest_first if each.name == name]
    if not found:
        known = ", ".join(each.name for each in newest_first[:3]) or "none"
        raise CheckpointNotFoundError(
            f"run {log.layout.run_name!r} has no checkpoint {name!r}",
            hint=f"its newest: {known}",
            url=f"{log.store.url}/{log.layout.run_name}",
        )
    return found[0]


def _children(files: Mapping[str, _Entry], run_name: str, below: str) -> list[dict[str, Any]]:
    prefix = f"{below}/" if below else ""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(files):
        if path.startswith(prefix):
            name, slash, _ = path[len(prefix) :].partition("/")
            full = f"{run_name}/{prefix}{name}"
            found.setdefault(full, _folder(full) if slash else files[path].told(full))
    return [found[name] for name in sorted(found)]


def _folder(path: str) -> dict[str, Any]:
    return {"name": path, "size": 0, "type": "directory"}


def _nothing(path: str, store: Store) -> ObjectNotFoundError:
    run_name = path.partition("/")[0]
    return ObjectNotFoundError(
        f"there is no committed file {path!r} at {store.url}",
        hint=f"see `artifactsync ls {run_name}`",
        url=f"{store.url}/{path}",
    )


def _refused(path: str) -> PermissionDeniedError:
    return PermissionDeniedError(f"{PROTOCOL}://{path} is read-only: it shows what is committed", hint=_HINT_READ_ONLY)
