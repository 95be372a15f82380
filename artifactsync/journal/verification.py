"""Is every committed byte still there? By size, or by reading and hashing all of it.

Invariant: a file is reported damaged only if the store gave a definite answer; a store that cannot be asked raises.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from artifactsync.errors import ObjectNotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from artifactsync.journal.catalogue import Catalogue, CheckpointFile
    from artifactsync.stores.protocol import Store

_THREADS = 8
_READ_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """What ``verify`` found."""

    run_name: str
    """The run."""
    checked_files: int
    """How many committed files were looked at; a file that several checkpoints share counts once."""
    checked_bytes: int
    """How many bytes they have together."""
    damaged: tuple[str, ...]
    """Keys whose length or hash differs from the record."""
    missing: tuple[str, ...]
    """Keys that are not there."""
    wrong_packs: tuple[str, ...] = ()
    """Keys of packs of the journal's index that are not what they should be. They harm nobody, as the records are read
    in their place, and so are no damage; `prune` removes them."""

    @property
    def ok(self) -> bool:
        """Whether nothing is damaged or missing."""
        return not self.damaged and not self.missing

    def to_json(self) -> dict[str, Any]:
        """The JSON form of ``artifactsync verify --json``."""
        return {
            "run_name": self.run_name,
            "ok": self.ok,
            "checked_files": self.checked_files,
            "checked_bytes": self.checked_bytes,
            "damaged": list(self.damaged),
            "missing": list(self.missing),
            "wrong_packs": list(self.wrong_packs),
        }


def verify(
    store: Store,
    run_name: str,
    catalogue: Catalogue,
    *,
    deep: bool = False,
    wrong_packs: Sequence[str] = (),
    on_plan: Callable[[int, int], None] = lambda _files, _bytes: None,
    on_progress: Callable[[int], None] = lambda _bytes: None,
) -> VerifyReport:
    """Check every file of every live checkpoint.

    Args:
        store: The remote.
        run_name: The run.
        catalogue: Its journal.
        deep: Read and hash every byte, instead of asking for sizes.
        wrong_packs: What was found on the way to the catalogue, for the report.
        on_plan: Told the number of files and bytes.
        on_progress: Told of bytes as they are done with, of a missing or damaged file too; from any thread.
    """
    files: Sequence[CheckpointFile] = list(
        {file.key: file for checkpoint in catalogue.checkpoints for file in checkpoint.files}.values()
    )

    on_plan(len(files), sum(file.size for file in files))

    def look(file: CheckpointFile) -> str:
        read = _Reading(file.size, on_progress)
        try:
            is_whole = store.head(file.key).size_bytes == file.size and (not deep or _has_hash(store, file, read))
        except ObjectNotFoundError:
            return "missing"
        finally:
            read.rest()
        return "" if is_whole else "damaged"

    with ThreadPoolExecutor(_THREADS, thread_name_prefix="artifactsync-verify") as pool:
        verdicts = list(zip(files, pool.map(look, files), strict=True))
    return VerifyReport(
        run_name=run_name,
        checked_files=len(files),
        checked_bytes=sum(file.size for file in files),
        damaged=tuple(file.key for file, verdict in verdicts if verdict == "damaged"),
        missing=tuple(file.key for file, verdict in verdicts if verdict == "missing"),
        wrong_packs=tuple(wrong_packs),
    )


class _Reading:
    """Tells of a file's bytes, each once."""

    def __init__(self, size_bytes: int, on_progress: Callable[[int], None]) -> None:
        self._left, self._tell = size_bytes, on_progress

    def advance(self, count_bytes: int) -> None:
        count_bytes = min(count_bytes, self._left)
        self._left -= count_bytes
        self._tell(count_bytes)

    def rest(self) -> None:
        self.advance(self._left)


def _has_hash(store: Store, file: CheckpointFile, read: _Reading) -> bool:
    digest, start = hashlib.sha256(), 0
    while start < file.size:
        data = store.get(file.key, start=start, end=min(start + _READ_BYTES, file.size))
        if not data:
            return False
        digest.update(data)
        start += len(data)
        read.advance(len(data))
    return digest.hexdigest() == file.sha256
