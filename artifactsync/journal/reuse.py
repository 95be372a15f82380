"""Bytes that the run has on its remote already are not sent again.

Owns: for each file of a checkpoint, whether it is referenced, copied within the remote, or sent. Does not own: the
sending, the choice of keys, or the commit (``publication``).

The same bytes at the same path are *referenced*: the record names the key that an earlier commit named. The same bytes
at another path, or twice within one checkpoint (``best`` and ``last``), are *copied by the store itself*, so that every
path of an attempt has its own plain key, and none of it passes through this machine (docs/design/008-writing.md).

Invariant: bytes are known by their sha256 and their length alone, never by a name, a time or a counter; a store that
cannot copy them gets them sent.
"""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

from artifactsync.errors import ArtifactSyncError, ObjectNotFoundError
from artifactsync.journal.catalogue import CheckpointFile
from artifactsync.transfer.hashing import hash_file

if TYPE_CHECKING:
    from collections.abc import Sequence
    from collections.abc import Set as AbstractSet

    from artifactsync.journal.catalogue import Catalogue
    from artifactsync.journal.pending import LocalFile
    from artifactsync.stores.protocol import Store

_log = logging.getLogger(__name__)

_COPY_BYTES = 64 * 1024
"""Shorter files are sent: asking the store to copy costs as much."""

_KEYS = 16
"""So many of the newest keys with the same bytes are looked at before one more is noted: enough to meet it again."""


@dataclass(frozen=True)
class Reused:
    """What becomes of the files of a checkpoint."""

    referenced: Sequence[CheckpointFile]
    """Their bytes lie where an earlier commit put them."""
    sent: Sequence[LocalFile]
    """Their bytes are to be sent."""
    copied: Sequence[tuple[LocalFile, str]]
    """Their bytes are to be copied: from a key of an earlier commit, or from the path of one of ``sent``, which has
    the same hash and begins with ``/``."""


def reuse(files: Sequence[LocalFile], known: KnownBytes, store: Store) -> Reused:
    """Sort the files of a checkpoint. What is to be copied, or is equal to another, has its hash afterwards.

    A file that is still being written has no hash yet and is always sent: whoever writes it knows whether it may be
    equal to an earlier one, and then waits for the hash.

    Args:
        files: Of the checkpoint.
        known: What the run has, as of now.
        store: The remote.
    """
    referenced: list[CheckpointFile] = []
    sent: list[LocalFile] = []
    copied: list[tuple[LocalFile, str]] = []
    sizes = [file.size_bytes for file in files if file.writing is None and file.size_bytes >= _COPY_BYTES]
    mine: dict[tuple[str, int], str] = {}
    for file in files:
        if file.writing is not None:
            sent.append(file)
            continue
        is_twin = sizes.count(file.size_bytes) > 1
        if file.sha256 is None and (is_twin or known.may_have(file)):
            file = dataclasses.replace(file, sha256=hash_file(file.local).sha256)  # noqa: PLW2901 the same, with its hash
        if (entry := known.entry_at_its_path(file, store)) is not None:
            referenced.append(entry)
            continue
        origin = known.key_of(file, store)
        bytes_of_it = (file.sha256 or "", file.size_bytes)
        if origin is None and file.sha256 and file.size_bytes >= _COPY_BYTES:
            origin = mine.get(bytes_of_it)
        if origin is not None:
            copied.append((file, origin))
        else:
            sent.append(file)
            if file.sha256:
                mine[bytes_of_it] = f"/{file.path}"
    return Reused(referenced, sent, copied)


def copy_within(store: Store, origin: str, target: str) -> bool:
    """Have the store copy an object; says whether it did. The copy is verified as an upload is."""
    try:
        store.copy(origin, target)
    except ArtifactSyncError as error:
        _log.debug("%s was not copied to %s and is sent instead: %s", origin, target, error)
        return False
    return True


class KnownBytes:
    """What the commits of a run say of bytes; looked for on the remote, and not verified once more.

    It grows with the run: one more commit costs what that commit has, however many were before.

    A prune may be deleting what is referenced: its record is met when the checkpoint is committed.
    """

    def __init__(self) -> None:
        self._seq = 0
        self._retired_keys: AbstractSet[str] = frozenset()
        self._at_path: dict[tuple[str, str, int], list[str]] = {}
        self._anywhere: dict[tuple[str, int], list[str]] = {}
        self._sizes_at_path: set[tuple[str, int]] = set()
        self._sizes: set[int] = set()

    def update(self, catalogue: Catalogue) -> KnownBytes:
        """Enter what was committed, and heed what was given up, since the last time; returns itself."""
        self._retired_keys = catalogue.retired_keys
        newest_first = takewhile(lambda checkpoint: checkpoint.seq > self._seq, reversed(catalogue.checkpoints))
        for checkpoint in reversed(list(newest_first)):
            for file in checkpoint.files:
                self._enter(file)
        self._seq = max(self._seq, catalogue.seq)
        return self

    def may_have(self, file: LocalFile) -> bool:
        """Whether a file of its length is known, so that its hash is worth knowing."""
        return (file.path, file.size_bytes) in self._sizes_at_path or file.size_bytes in self._sizes

    def entry_at_its_path(self, file: LocalFile, store: Store) -> CheckpointFile | None:
        """What a record may say of a file whose very bytes were committed at its path before."""
        if file.sha256 is None:
            return None
        key = self._living(self._at_path.get((file.path, file.sha256, file.size_bytes)))
        if key is None or not _is_there(store, key, file.size_bytes):
            return None
        return CheckpointFile(path=file.path, key=key, size=file.size_bytes, sha256=file.sha256)

    def key_of(self, file: LocalFile, store: Store) -> str | None:
        """A key that has the bytes of a file, whatever its path."""
        if file.sha256 is None or file.size_bytes < _COPY_BYTES:
            return None
        key = self._living(self._anywhere.get((file.sha256, file.size_bytes)))
        return key if key is not None and _is_there(store, key, file.size_bytes) else None

    def _enter(self, file: CheckpointFile) -> None:
        self._sizes_at_path.add((file.path, file.size))
        if file.size >= _COPY_BYTES:
            self._sizes.add(file.size)
        for keys in (
            self._at_path.setdefault((file.path, file.sha256, file.size), []),
            self._anywhere.setdefault((file.sha256, file.size), []),
        ):
            if file.key not in keys[-_KEYS:]:
                keys.append(file.key)

    def _living(self, keys: list[str] | None) -> str | None:
        """The newest key that no retirement names. One that does never ends, so it is forgotten."""
        while keys and keys[-1] in self._retired_keys:
            keys.pop()
        return keys[-1] if keys else None


def _is_there(store: Store, key: str, size_bytes: int) -> bool:
    try:
        return store.head(key).size_bytes == size_bytes
    except ObjectNotFoundError:
        return False
