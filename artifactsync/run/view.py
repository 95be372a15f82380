"""What can be seen of a run, and brought here, without owning it.

Owns: ``RunView``, the reading half of ``Run``. Does not own: anything that needs a claim (``writer``).

Invariant: nothing here appends to the journal but a removal; what ``checkpoints()`` lists is committed, and whole.
"""

from __future__ import annotations

import functools
import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from artifactsync.errors import (
    RunNotFoundError,
)
from artifactsync.journal.adoption import AdoptReport, adopt_run
from artifactsync.journal.catalogue import Catalogue
from artifactsync.journal.contents import Artifact, Contents, read_contents
from artifactsync.journal.copying import CopyReport, copy_run
from artifactsync.journal.history import History
from artifactsync.journal.log import JournalLog, read_catalogue
from artifactsync.journal.newest import latest_of
from artifactsync.journal.pins import keeping_pin
from artifactsync.journal.removal import RemovalReport, plan_removal, remove_run
from artifactsync.journal.restore import PullReport, Selection, pull_run
from artifactsync.journal.status import RunStatus, read_status
from artifactsync.journal.tails import LogStore, fetch_log
from artifactsync.journal.verification import VerifyReport, verify
from artifactsync.naming import RunLayout, resolve_run_name
from artifactsync.naming.layout import HOUSE_FOLDER, safe_local_path
from artifactsync.run.folder_lock import folder_lock
from artifactsync.run.remotes import remote_of
from artifactsync.stores import open_store
from artifactsync.stores.prefix import PrefixStore
from artifactsync.stores.protocol import Store
from artifactsync.transfer.downloader import PART_BYTES
from artifactsync.transfer.pull import PullItem, pull_files

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from artifactsync.journal.catalogue import Checkpoint
    from artifactsync.stores.filesystem import StoreFileSystem


def _open_folder(remote: str, storage_options: Mapping[str, Any], run_name: str) -> Store:
    return PrefixStore(open_store(remote, storage_options), run_name)


class RunView:
    """A run as everybody may read it; see ``Run`` for the arguments."""

    def __init__(
        self,
        run_name: str | None,
        *,
        remote: str | os.PathLike[str] | Store | None,
        local_root: str | os.PathLike[str] | None,
        storage_options: Mapping[str, Any] | None,
        bandwidth_limit: float | None,
    ) -> None:
        self.name = resolve_run_name(run_name)
        """The run name."""
        root = local_root or os.environ.get("ARTIFACTSYNC_LOCAL_ROOT") or "runs"
        self.local_dir = Path(root) / self.name
        """The run's local folder."""
        self._store = (
            remote
            if isinstance(remote, Store)
            else open_store(remote_of(remote), storage_options, bandwidth_limit_bytes_per_s=bandwidth_limit)
        )
        self._is_store_ours = self._store is not remote
        self._storage_options = dict(storage_options or {})
        self.remote = self._store.url
        """The root under which the run lies, without secrets."""
        self._log = JournalLog(self._store, self.name)

    @property
    def attempt(self) -> int:
        """Number of the newest attempt; 0 if nobody ever claimed the run."""
        head = self._log.find_head()
        return head.record.attempt if head else 0

    @property
    def fs(self) -> StoreFileSystem:
        """The run's remote folder as an fsspec file system: plain objects, journal included.

        It may be pickled, with the storage options, unless the run was given an opened store.
        """
        from artifactsync.stores.filesystem import StoreFileSystem  # noqa: PLC0415 - fsspec is slow to import

        reopen = functools.partial(_open_folder, self.remote, self._storage_options, self.name)
        return StoreFileSystem(PrefixStore(self._store, self.name), reopen=reopen if self._is_store_ours else None)

    def catalogue(self) -> Catalogue:
        """Read the whole journal."""
        return read_catalogue(self._log)

    def contents(self) -> Contents:
        """List the run's remote folder."""
        return read_contents(self._store, self._layout, self.catalogue())

    def history(self) -> History:
        """What happened to the run: its attempts, and every checkpoint it ever had."""
        head = self._log.find_head()
        records = (slot.record for slot in self._log.read_all(up_to=head.record.seq)) if head else ()
        return History.from_records(records, run_name=self.name, url=self.remote)

    def read_artifact(self, artifact: Artifact, contents: Contents, *, start: int = 0, end: int | None = None) -> bytes:
        """Bytes of an artifact; a log that is still growing is read as the one file that it will be.

        Args:
            artifact: One of ``contents``.
            contents: A listing of the run's folder.
            start: First byte.
            end: One after the last byte; None reads to the end.

        Raises:
            ObjectNotFoundError, MissingBytesError: it changed since the listing: list again.
        """
        return LogStore(self._store, self._layout, contents.logs).get(artifact.key, start=start, end=end)

    def checkpoints(self) -> list[Checkpoint]:
        """The committed checkpoints, oldest first: by attempt and step, whatever the order of their commits."""
        return list(reversed(self.catalogue().newest_first()))

    def latest(self) -> Checkpoint | None:
        """The checkpoint that a resume takes; None if nothing is committed. Four requests however long the run."""
        return latest_of(self._log, self._log.find_head())

    def best(self, metric: str, mode: Literal["min", "max"] = "min") -> Checkpoint | None:
        """The checkpoint with the smallest (``mode="max"``: greatest) ``metric``; None if none has it."""
        return self.catalogue().best(metric, mode)

    def artifacts(self) -> list[Artifact]:
        """Files of the run that belong to no checkpoint."""
        return list(self.contents().artifacts)

    def status(self) -> RunStatus:
        """How durable the run is, as journal and heartbeat say.

        Raises:
            RunNotFoundError: there is no such run.
        """
        status = read_status(self._store, self._log)
        if status.attempt == 0:
            self._require(self.contents())
        return status

    def pull(
        self,
        destination: str | os.PathLike[str],
        *,
        checkpoint: str = "latest",
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        metric: str | None = None,
        mode: Literal["min", "max"] = "min",
        only: Literal["checkpoints", "logs", "all"] = "all",
        dry_run: bool = False,
        **observers: Any,
    ) -> PullReport:
        """Bring the run to a local folder, verified; files of a checkpoint that are there are not fetched again.

        Args:
            destination: The folder; made if it is not there.
            checkpoint: ``latest``, ``best``, ``none``, or a name. A damaged latest one falls back to the one before.
            include: Shell patterns of paths to bring; none given means all.
            exclude: Shell patterns of paths to leave.
            metric: What decides ``best``.
            mode: Whether the smallest or the greatest value is best.
            only: ``checkpoints``, ``logs`` (everything else) or ``all``. The latest checkpoint alone takes few requests
                however long the run; what else is there is known only when the run's folder was listed.
            dry_run: Say what would come.
            **observers: ``on_plan``, ``on_progress``, ``on_fallback`` of ``journal.restore.pull``.

        Raises:
            RunNotFoundError: there is no such run.
            CheckpointNotFoundError: it has no such checkpoint.
            DamagedError: bytes differ from what was committed, and there is nothing to fall back to.
            DestinationError, DiskFullError: the destination cannot be used; nothing half-written has a visible name.
        """
        newest = self._newest_alone() if (checkpoint, only) == ("latest", "checkpoints") else None
        catalogue = newest or self.catalogue()
        nothing_else = Contents(artifacts=(), bytes=0, is_empty=False)
        contents = nothing_else if newest else self._require(read_contents(self._store, self._layout, catalogue))
        return pull_run(
            self._store,
            self._layout,
            Path(destination),
            selection=Selection(
                checkpoint=checkpoint,
                metric=metric,
                mode=mode,
                only=only,
                include=tuple(include),
                exclude=tuple(exclude),
            ),
            catalogue=catalogue,
            contents=contents,
            log=self._log,
            is_partial=newest is not None,
            dry_run=dry_run,
            **observers,
        )

    def _newest_alone(self) -> Catalogue | None:
        """A catalogue of the checkpoint that a resume takes, and nothing else; None if there is none.

        Told from the newest record: four requests however long the run.
        """
        head = self._log.find_head()
        latest = latest_of(self._log, head)
        if head is None or latest is None:
            return None
        return Catalogue(checkpoints=(latest,), attempt=head.record.attempt, seq=head.record.seq)

    def verify(self, *, deep: bool = False, **observers: Any) -> VerifyReport:
        """Check that every committed file is there with its size; ``deep`` reads and hashes every byte.

        Every record of the journal is read by itself, and the packs of its index are compared with them.

        Args:
            deep: As above.
            **observers: ``on_plan`` and ``on_progress`` of ``journal.verification.verify``.

        Raises:
            RunNotFoundError: there is no such run.
        """
        catalogue, wrong = self._log.audit()  # every record as it lies there
        if not catalogue.seq:
            self._require(self.contents())
        packs = [pack.key(self._layout) for pack in wrong]
        return verify(self._store, self.name, catalogue, deep=deep, wrong_packs=packs, **observers)

    def copy_to(
        self,
        remote: str | os.PathLike[str] | Store,
        *,
        storage_options: Mapping[str, Any] | None = None,
        **observers: Any,
    ) -> CopyReport:
        """Copy the whole run to another remote, verified; an interrupted copy shows nothing there, and is continued.

        Args:
            remote: Root URI of the other remote, or an opened store.
            storage_options: What fsspec's file system for it takes.
            **observers: ``on_plan`` and ``on_progress`` of ``journal.copying.copy_run``.

        Raises:
            RunNotFoundError: there is no such run.
            DestinationError: another run of that name is there.
            DamagedError: bytes differ from what was committed; nothing became visible there.
        """
        if isinstance(remote, Store):
            return copy_run(self._store, remote, self.name, **observers)
        target = open_store(remote, storage_options)
        try:
            return copy_run(self._store, target, self.name, **observers)
        finally:
            target.close()

    def adopt(self, *, pattern: str | None = None, dry_run: bool = False, **observers: Any) -> AdoptReport:
        """Make a run of a folder that another program filled: its checkpoints get records, its bytes stay as they are.

        Args:
            pattern: How steps are named, if no program that is known did; a regular expression with a group ``step``.
            dry_run: Say what would be adopted.
            **observers: ``on_plan``, ``on_progress`` and ``allow_unfenced`` of ``journal.adoption.adopt_run``.

        Raises:
            RunNotFoundError, CheckpointNotFoundError: nothing is there that could be adopted.
            ConfigurationError: artifactsync wrote this run.
            RunIsLiveError: another process is at it.
            MissingBytesError: a file changed while it was read.
        """
        return adopt_run(self._store, self._log, pattern=pattern, dry_run=dry_run, **observers)

    def remove(self, *, dry_run: bool = False, **observers: Any) -> RemovalReport:
        """Remove the run from the remote; what was interrupted is finished by removing again.

        Args:
            dry_run: Say what would go.
            **observers: ``on_plan`` and ``on_progress`` of ``journal.removal.remove_run``.

        Raises:
            RunNotFoundError: there is no such run.
            RunIsLiveError: it has a writer that is alive, perhaps this process; nothing was changed.
            PermissionDeniedError: these credentials may not delete; nothing was changed.
        """
        if dry_run:
            return plan_removal(self._store, self._log)
        return remove_run(self._store, self._log, **observers)

    def ensure_local(self, checkpoint: Checkpoint, *, paths: Iterable[str] | None = None) -> dict[str, Path]:
        """Have every file of a checkpoint below ``local_dir``, verified by hash; fetches what is missing or differs.

        Processes that share the folder, as the ranks of a node do, go one after the other, so each file is fetched
        once.

        Args:
            checkpoint: Which.
            paths: Of its files these alone; all of them if None.

        Returns:
            Path below the run → local file.

        Raises:
            DamagedError: bytes on the remote differ from what was committed.
        """
        wanted = None if paths is None else set(paths)
        items = [
            PullItem(key=f.key, path=f.path, size_bytes=f.size, sha256=f.sha256)
            for f in checkpoint.files
            if wanted is None or f.path in wanted
        ]
        is_one_request = len(items) == 1 and (items[0].size_bytes or 0) <= PART_BYTES
        with self.reading(checkpoint, is_one_request=is_one_request) as store:
            pull_files(store, items, self.local_dir)
        return {item.path: safe_local_path(self.local_dir, item.path) for item in items}

    @contextmanager
    def reading(self, checkpoint: Checkpoint, *, is_one_request: bool = False) -> Iterator[Store]:
        """The remote, while no prune takes a file of the checkpoint away.

        No other process that shares the local folder is in such a block, so what one has fetched the next one finds.

        Args:
            checkpoint: Which.
            is_one_request: What is read comes with one answer, and is pinned only where that takes long (``pins``).
        """
        with folder_lock(self.local_dir / HOUSE_FOLDER), keeping_pin(self._store, self._layout) as keeper:
            if not self._is_safe_unpinned(checkpoint):
                (keeper.pin_unless_over if is_one_request else keeper.pin)(checkpoint.seq)
            yield self._store

    def fetch_log(self, path: str, local: Path, *, size_bytes: int, sha256: str) -> bool:
        """Bring back a mirrored log whose first ``size_bytes`` have this hash; says whether there is such a one.

        Args:
            path: Below the run's folder.
            local: Where to; replaced. It may come longer than asked for.
            size_bytes: How many bytes are known.
            sha256: Their hash.
        """
        return fetch_log(self._store, self._layout, path, local, size_bytes=size_bytes, sha256=sha256)

    def _is_safe_unpinned(self, checkpoint: Checkpoint) -> bool:  # noqa: ARG002 - the writer's own looks at it
        """Whether no prune can delete a file of it while it is being read."""
        return False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} at {self.remote}>"

    @property
    def _layout(self) -> RunLayout:
        return self._log.layout

    def _require(self, contents: Contents) -> Contents:
        if contents.is_empty:
            from difflib import get_close_matches  # noqa: PLC0415 - only for an error message

            near = get_close_matches(self.name, list(self._store.list_folders()), n=3)
            raise RunNotFoundError(
                f"there is no run {self.name!r} at {self.remote}",
                hint=f"did you mean {' or '.join(near)}?" if near else "see `artifactsync ls` for the runs there",
                url=f"{self.remote}/{self.name}",
            )
        return contents
