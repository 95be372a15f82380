"""Many objects into one local folder, several at a time.

Owns: ``pull_files``. Does not own: one file (``download``), which files (``journal``, ``run``).

Remote paths are hostile input: each is checked, none leaves the destination, no symbolic link below it is followed,
and two paths that would be one file here are refused.
"""

from __future__ import annotations

import secrets
import threading
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from artifactsync.errors import DamagedError, ObjectNotFoundError, UnsafeKeyError
from artifactsync.naming.layout import check_relative, fold_case
from artifactsync.transfer.download import Downloader, Wanted
from artifactsync.transfer.folder import Folder
from artifactsync.transfer.quick_pull import QuickPull, is_quick

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Future

    from artifactsync.stores.protocol import Store

_MAX_FILES = 8  # at a time; the parts of all of them share the downloader's bound


@dataclass(frozen=True, kw_only=True)
class PullItem:
    """One object to bring here."""

    key: str
    """Key below the store's root."""
    path: str
    """Where to, relative to the destination, with ``/`` between its parts. Hostile input."""
    size_bytes: int | None = None
    """The length it must have; None takes it as it is. Without a sha256 it is what was listed: an object that was
    replaced meanwhile comes as it is now."""
    sha256: str | None = None
    """The sha256 it must have; None takes it as it is, and never skips it."""


@dataclass(frozen=True)
class PullTotals:
    """What a pull came to."""

    files: int
    """Files that are here now, the skipped ones among them."""
    bytes: int
    """Bytes of those."""
    skipped_files: int
    """Files that were here already with the right sha256."""


def pull_files(
    store: Store,
    items: Sequence[PullItem],
    destination: Path,
    *,
    overwrite: bool = True,
    on_progress: Callable[[int], None] | None = None,
) -> PullTotals:
    """Bring objects to a folder; called again after an interruption, it goes on where it stopped.

    Each file becomes visible when it is whole and verified. Files that are here with the right sha256 are skipped.

    Args:
        store: Where from.
        items: What.
        destination: A local folder; made if it is not there.
        overwrite: Whether other files at those paths are replaced.
        on_progress: As in ``download_file``; skipped files count.

    Raises:
        UnsafeKeyError: a path would leave the destination, or two would be one file here. Nothing was fetched.
        ArtifactSyncError: as ``download_file``, for the first file that fails; the others are stopped.
    """
    if not items:
        return PullTotals(0, 0, 0)
    for item in items:
        check_relative(item.path)
    with Folder(Path(destination)) as root:
        _refuse_clashes(items, root)
        with Downloader(store, on_progress=on_progress) as downloader:
            is_stopped = threading.Event()

            def pull(item: PullItem, pause_s: float = 0.0) -> tuple[int, bool]:
                is_stopped.wait(pause_s)
                return _pull(item, root, downloader, overwrite=overwrite)

            quick = QuickPull(store, root, downloader, pull, overwrite=overwrite)
            futures: list[Future[tuple[int, bool]]] = []
            with ThreadPoolExecutor(min(_MAX_FILES, len(items)), "artifactsync-pull") as threads:
                try:
                    for item in items:
                        if not is_quick(store, item):
                            futures.append(threads.submit(pull, item))
                            futures[-1].add_done_callback(quick.stop_if_failed)
                    quick.run(item for item in items if is_quick(store, item))
                    futures += [threads.submit(pull, item, pause_s) for item, pause_s in quick.left]
                    done, _ = wait(futures, return_when=FIRST_EXCEPTION)
                    results = [future.result() for future in done]
                except BaseException:
                    is_stopped.set()
                    downloader.stop()
                    for future in futures:
                        future.cancel()
                    raise
    return PullTotals(
        quick.files + len(results),
        quick.bytes + sum(size_bytes for size_bytes, _ in results),
        quick.skipped_files + sum(was_there for _, was_there in results),
    )


def _pull(item: PullItem, root: Folder, downloader: Downloader, *, overwrite: bool) -> tuple[int, bool]:
    """Bring one object here; returns its length, and whether it was here already."""
    *above, name = item.path.split("/")
    wanted = Wanted(key=item.key, size_bytes=item.size_bytes, sha256=item.sha256)
    with root.descend(tuple(above)) as folder:
        try:
            digest, was_there = downloader.fetch(wanted, folder, name, overwrite=overwrite)
        except DamagedError as error:
            if item.sha256 is not None:
                raise
            # Of no known bytes: a log that has grown since it was listed, as those of a live run do.
            try:
                digest, was_there = downloader.fetch(Wanted(key=item.key), folder, name, overwrite=overwrite)
            except ObjectNotFoundError:
                raise error from None
    return digest.size_bytes, was_there


def _refuse_clashes(items: Sequence[PullItem], root: Folder) -> None:
    """Refuse two items for one path, and a path that is a file and a folder at once."""
    ignores_case: bool | None = None
    exact: set[str] = set()
    folded: dict[str, str] = {}
    for item in items:
        if item.path in exact:
            raise UnsafeKeyError(f"two objects have the path {item.path!r}", hint="pull one of them alone")
        exact.add(item.path)
        other = folded.setdefault(fold_case(item.path), item.path)
        if other != item.path:
            ignores_case = _ignores_case(root) if ignores_case is None else ignores_case
            if ignores_case:
                raise UnsafeKeyError(
                    f"{item.path!r} and {other!r} would be one file in {root.path}",
                    hint="pull to a file system that tells upper from lower case, or one of them alone",
                )
    for item in items:
        parts = item.path.split("/")
        for end in range(1, len(parts)):
            if "/".join(parts[:end]) in exact:
                raise UnsafeKeyError(
                    f"{'/'.join(parts[:end])!r} is a file and the folder of {item.path!r} at once",
                    hint="pull one of them alone",
                )


def _ignores_case(root: Folder) -> bool:
    """Whether the destination's file system takes ``a`` and ``A`` for one name."""
    name = f".artifactsync-case-{secrets.token_hex(6)}"
    probe = root.child(name)
    probe.close()
    try:
        return root.stat(name.upper()) is not None
    finally:
        (root.path / name).rmdir()
